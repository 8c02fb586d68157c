//! Pooled connections that die under a request that is hedged.

use outrigger_model::cluster::Discovery;
use outrigger_model::endpoint::{Endpoint, LocalityEndpoints};
use tokio::sync::Notify;

use super::*;

/// A pooled connection dies under the first attempt, after a rival was bad: what goes by a fresh one is still the first attempt, and whoever
/// was asked besides is not asked again.
#[tokio::test]
async fn what_met_a_dead_connection_is_sent_again_as_the_same_attempt() {
    run(async {
        let go = Rc::new(Notify::new());
        let leave = go.clone();
        let first = upstream(move |number, mut wire| {
            let leave = leave.clone();
            async move {
                loop {
                    let head = wire.head().await;
                    wire.send(&ok(&headers(&head)["x-envoy-attempt-count"])).await;
                    if number == 0 {
                        // Has the next request, and leaves without a word.
                        wire.head().await;
                        leave.notified().await;
                        return;
                    }
                }
            }
        })
        .await;
        let asked: Count = Rc::default();
        let count = asked.clone();
        let rival = upstream(move |_, mut wire| {
            let count = count.clone();
            async move {
                loop {
                    wire.head().await;
                    count.set(count.get() + 1);
                    wire.send("HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n").await;
                }
            }
        })
        .await;
        let mut setup = hedged(&[first], after(100 * MILLI));
        let Discovery::Static(set) = &mut setup.cluster.discovery else { panic!() };
        let endpoints = vec![Endpoint::new(rival)];
        set.localities.push(LocalityEndpoints { priority: 1, endpoints, ..LocalityEndpoints::default() });
        let rig = proxy(setup, Http1).await;
        assert_eq!(ask(&rig, GET).await, ("200".into(), "1".into()));
        let then = async {
            bad_one(&rig).await;
            go.notify_one();
        };
        let (answer, ()) = tokio::join!(ask(&rig, GET), then);
        assert_eq!(answer, ("200".into(), "1".into()), "it is the first that the application sees");
        assert_eq!(asked.get(), 1, "nobody is asked twice");
    })
    .await;
}
