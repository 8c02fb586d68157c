//! Whom the mesh trusts, and no more.

use super::*;

#[tokio::test]
async fn a_revoked_identity_is_cut_off_everywhere_and_may_be_reinstated() {
    let (running, _dir) = start().await;
    let api = running.client();
    let (channel, store) = credentials(&running, "web").await;
    let token = join(&running, "web").await;
    let mut web = connect(channel.clone(), "web-1", "outrigger");
    let mut catalog = connect(credentials(&running, "catalog").await.0, "catalog-1", "outrigger");
    for sidecar in [&mut web, &mut catalog] {
        sidecar.client.subscribe(ResourceKind::Barrier, "barrier");
        sidecar.client.subscribe(ResourceKind::Secret, "ROOTCA");
        sidecar.barrier(0).await;
    }
    let whom = RevocationRequest {
        namespace: Some("shop".into()),
        service_account: Some("web".into()),
        ..RevocationRequest::default()
    };
    let done = api.revoke(&whom).await.unwrap();
    assert_eq!(done.entry, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(done.tokens, 2, "the token that it joined with, and the other");

    // Its stream ends and does not come back; others learn whom to refuse.
    web.until(|event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
    let told = catalog.until(|event| match event {
        Event::Update { upserts, .. } => upserts.iter().find_map(|(resource, _)| match resource {
            Resource::Secret(secret) if !secret.revoked.is_empty() => Some(secret.revoked.clone()),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(told.await, std::slice::from_ref(&done.entry));
    let hour = Duration::from_secs(3600);
    let own = store.load().certificate.as_ref().unwrap().id().clone();
    let by_certificate = request_certificate(channel.channel(), &own, hour, None).await;
    assert!(by_certificate.is_err(), "no renewal");
    let by_token = request_certificate(channel.anonymous_channel(), &own, hour, Some(&token.token)).await;
    assert!(by_token.unwrap_err().error.to_string().contains("unknown"), "its tokens are gone with it");
    let fresh = join(&running, "web").await;
    let by_fresh = request_certificate(channel.anonymous_channel(), &own, hour, Some(&fresh.token)).await;
    assert!(by_fresh.unwrap_err().error.to_string().contains("is revoked"));
    let world = running.keeper().published();
    assert!(world.world.instance("web-1").is_none(), "nobody is sent to it");
    assert_eq!(api.revoked().await.unwrap()[0].entry, done.entry);

    let again = api.reinstate(&whom).await.unwrap();
    assert!(again.generation > done.generation);
    web.barrier(again.generation).await;
    assert!(running.keeper().published().world.instance("web-1").is_some());
    let twice = api.reinstate(&whom).await.unwrap_err();
    assert_eq!(twice.status().unwrap(), 404);
    running.stop().await;
}

#[tokio::test]
async fn a_single_certificate_can_be_revoked_and_that_survives_a_restart() {
    let (running, dir) = start().await;
    let (channel, store) = credentials(&running, "web").await;
    let mut web = connect(channel, "web-1", "outrigger");
    web.client.subscribe(ResourceKind::Barrier, "barrier");
    web.barrier(0).await;
    let serial = store.load().certificate.as_ref().unwrap().serial().to_owned();
    let whom = RevocationRequest { serial: Some(serial.to_uppercase()), ..RevocationRequest::default() };
    let done = running.client().revoke(&whom).await.unwrap();
    assert_eq!(done.entry, format!("serial:{serial}"));
    web.until(|event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
    // The same identity with another certificate is as good as before.
    let (other, _) = credentials(&running, "web").await;
    let mut anew = connect(other, "web-1", "outrigger");
    anew.client.subscribe(ResourceKind::Barrier, "barrier");
    anew.barrier(done.generation).await;
    running.stop().await;
    let again = ControlPlane::start(Settings::ephemeral(dir.path())).await.unwrap();
    assert_eq!(again.client().revoked().await.unwrap()[0].entry, done.entry);
    assert_eq!(again.authority().bundle().revoked().entries().collect::<Vec<_>>(), [done.entry]);
    let own = RevocationRequest {
        namespace: Some("outrigger-system".into()),
        service_account: Some("outrigger-control".into()),
        ..RevocationRequest::default()
    };
    assert_eq!(again.client().revoke(&own).await.unwrap_err().status().unwrap(), 400);
    again.stop().await;
}

#[tokio::test]
async fn the_root_is_rotated_by_the_api_and_the_old_one_forgotten_when_nobody_needs_it() {
    let (running, _dir) = start().await;
    let api = running.client();
    let mut web = connect(credentials(&running, "web").await.0, "web-1", "outrigger");
    web.client.subscribe(ResourceKind::Secret, "ROOTCA");
    let roots = |wanted: usize| {
        move |event: &Event| match event {
            Event::Update { upserts, .. } => upserts.iter().find_map(|(resource, _)| match resource {
                Resource::Secret(secret) => {
                    (secret.roots_pem.matches("BEGIN").count() == wanted).then_some(())
                }
                _ => None,
            }),
            _ => None,
        }
    };
    web.until(roots(1)).await;
    let before = api.authority().await.unwrap().roots;
    let after = api.rotate_root().await.unwrap().roots;
    assert_eq!((before.len(), after.len()), (1, 2));
    assert_eq!(after[1], before[0], "the old root stays trusted");
    web.until(roots(2)).await;
    credentials(&running, "web").await;
    let early = api.forget_old_roots(false).await.unwrap_err();
    assert_eq!(early.status().unwrap(), 409);
    assert_eq!(api.forget_old_roots(true).await.unwrap().roots, after[..1]);
    running.stop().await;
}
