//! Barriers within responses.

use outrigger_model::resource::Barrier;
use prost::Message;

use super::*;

#[test]
fn a_barrier_within_a_response_is_confirmed_with_it_or_after_it() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(cluster("a", 0));
    let mut engine = Engine::new(shelf.view(), false).taking_barriers_within(true);
    let out = ask(&mut engine, delta(ResourceKind::Barrier, &["barrier"], ""));
    assert_eq!(barrier_of(&out), Some(1), "alone where there is nothing else to say");
    ask(&mut engine, delta(ResourceKind::Barrier, &[], &out[0].nonce));
    let first = ask(&mut engine, delta(CDS, &["*"], ""));
    ask(&mut engine, delta(CDS, &[], &first[0].nonce));
    let acked = |generation| ClientEvent::Acked { kind: CDS, generation };
    let in_force = |generation| ClientEvent::BarrierAcked { generation };

    shelf.put(cluster("a", 1));
    let out = next(&mut engine, 2);
    assert_eq!((out.len(), upserts(&out), out[0].barrier.is_some()), (1, vec!["a"], true));
    shelf.events();
    assert!(ask(&mut engine, delta(ResourceKind::Barrier, &[], &out[0].nonce)).is_empty());
    assert_eq!(shelf.events(), [acked(2), in_force(2)], "one answer to both");

    shelf.put(cluster("a", 2));
    let out = next(&mut engine, 3);
    shelf.events();
    ask(&mut engine, delta(CDS, &[], &out[0].nonce));
    assert_eq!(shelf.events(), [acked(3)]);
    ask(&mut engine, delta(ResourceKind::Barrier, &[], &out[0].nonce));
    assert_eq!(shelf.events(), [in_force(3)]);
}

#[test]
fn a_barrier_within_a_response_is_on_the_wire_the_last_of_its_resources() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let mut engine = Engine::new(shelf.view(), false).taking_barriers_within(true);
    let out = ask(&mut engine, delta(ResourceKind::Barrier, &["barrier"], ""));
    ask(&mut engine, delta(ResourceKind::Barrier, &[], &out[0].nonce));
    let first = ask(&mut engine, delta(CDS, &["a", "gone"], ""));
    ask(&mut engine, delta(CDS, &[], &first[0].nonce));
    shelf.put(cluster("a", 1));
    let out = next(&mut engine, 2);
    let (response, mut bytes) = (delta::Response::new(&out[0]), Vec::new());
    response.encode(&mut bytes);
    assert_eq!(bytes.len(), response.encoded_len());
    let read = discovery::DeltaDiscoveryResponse::decode(&*bytes).unwrap();
    let [a, barrier] = read.resources.as_slice() else { panic!("{read:?}") };
    assert_eq!((&*a.name, &*a.version), ("a", &*shelf.version(CDS, "a")));
    let any = a.resource.as_ref().unwrap();
    assert_eq!(crate::decode(&any.type_url, &any.value).unwrap(), cluster("a", 1));
    let any = barrier.resource.as_ref().unwrap();
    let is = Barrier { name: "barrier".into(), generation: 2 };
    assert_eq!(crate::decode(&any.type_url, &any.value).unwrap(), Resource::Barrier(is));
    assert_eq!(
        (&*read.nonce, &*read.type_url, &*read.system_version_info),
        (&*out[0].nonce, type_url(CDS), "2")
    );
    let mut bytes = Vec::new();
    delta::Response::new(&first[0]).encode(&mut bytes);
    let read = discovery::DeltaDiscoveryResponse::decode(&*bytes).unwrap();
    assert_eq!(read.removed_resources, ["a", "gone"]);
}
