//! What is kept of resources that were sent.

use super::*;

#[test]
fn what_one_stream_alone_holds_is_forgotten_but_for_its_version_and_what_several_hold_is_not() {
    let instances = (1..=6).map(|n| {
        let (id, service, ip) = (format!("s{n}-1"), format!("s{n}"), format!("127.0.1.{n}"));
        sample(&id, &service, "v1", &ip, 8080, Protocol::Http)
    });
    let c = compiled(instances.collect(), "").remembering(2);
    let streams = ["a", "b"].map(|stream| c.audience().join(Some(stream)));
    let (client, kind) = (scope(ClientKind::Outrigger, "client", "a"), ResourceKind::Endpoints);
    let name = |n: usize| format!("outbound|8080||s{n}.shop.svc.cluster.local");
    for n in 1..=6 {
        streams[0].hold(kind, &name(n));
    }
    streams[1].hold(kind, &name(1));
    let found: Vec<_> = (1..=6).map(|n| c.resource(&client, kind, &name(n)).unwrap()).collect();
    let (shared, alone) = (Arc::downgrade(&found[0]), Arc::downgrade(&found[1]));
    let versions: Vec<_> = found.iter().map(|versioned| versioned.version).collect();
    drop(found);
    assert!(shared.upgrade().is_some() && alone.upgrade().is_none());
    assert!((1..=6).all(|n| c.version(&client, kind, &name(n)) == Some(versions[n - 1])));
    assert!(alone.upgrade().is_none(), "its version is known without it");
    assert_eq!(c.resource(&client, kind, &name(2)).unwrap().version, versions[1]);
}
