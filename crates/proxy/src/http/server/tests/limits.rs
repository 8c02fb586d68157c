//! Time, size, policy, faults: requests that are not forwarded, or not to their end.

use std::rc::Rc;
use std::time::Duration;

use outrigger_model::listener::{Direction, HttpFilter};
use outrigger_model::matcher::StringMatch;
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::route::{
    Fault, FaultAbort, FaultDelay, FaultStatus, NoCluster, PathMatch, RetryOn, RetryPolicy, RouteAction,
    WeightedCluster,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::rig::*;
use crate::http::{conn, server};
use crate::protocol::HttpVersion::Http1;

async fn echo() -> std::net::SocketAddr {
    upstream(|_, mut wire| async move {
        loop {
            let head = wire.head().await;
            wire.send(&ok(head.lines().next().unwrap())).await;
        }
    })
    .await
}

async fn get(client: &mut Wire, path: &str) -> String {
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    client.head().await
}

#[tokio::test(start_paused = true)]
async fn slow_head_is_a_408_and_the_end() {
    run(async {
        let rig = proxy(Setup::to(&[echo().await]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let start = Instant::now();
        client.send("GET / HTTP/1.1\r\nHost:").await;
        assert!(client.rest().await.starts_with("HTTP/1.1 408"));
        assert_eq!(start.elapsed().as_secs(), 10);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_closed_after_its_time() {
    run(async {
        let mut setup = Setup::to(&[echo().await]);
        setup.http.idle_timeout = Duration::from_secs(700);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let start = Instant::now();
        assert_eq!(client.rest().await, "");
        assert_eq!(start.elapsed().as_secs(), 700);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn connection_that_is_old_takes_leave() {
    run(async {
        let mut setup = Setup::to(&[echo().await]);
        setup.http.idle_timeout = Duration::ZERO;
        setup.http.max_connection_duration = Some(Duration::from_secs(700));
        let rig = proxy(setup, Http1).await;
        let (mut client, mut other) = (Wire::connect(rig.address).await, Wire::connect(rig.address).await);
        let start = Instant::now();
        let young = get(&mut other, "/").await;
        assert!(!headers(&young).contains_key("connection"), "{young}");
        other.bytes("GET / HTTP/1.1".len()).await;
        assert_eq!(client.rest().await, "", "an idle one has a little time for what is on its way");
        assert_eq!(start.elapsed().as_secs(), 702);
        // What another had asked by then is answered, and it is told.
        let mut late = Wire::connect(rig.address).await;
        get(&mut late, "/").await;
        late.bytes("GET / HTTP/1.1".len()).await;
        tokio::time::advance(Duration::from_secs(701)).await;
        let old = get(&mut late, "/").await;
        assert_eq!(headers(&old)["connection"], "close", "{old}");
        assert_eq!(late.rest().await, "GET / HTTP/1.1");
    })
    .await;
}

#[tokio::test]
async fn endless_head_is_a_431_and_the_end() {
    run(async {
        let rig = proxy(Setup::to(&[echo().await]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n").await;
        client.send(&format!("X: {}", "y".repeat(70_000))).await;
        assert!(client.rest().await.starts_with("HTTP/1.1 431"));
    })
    .await;
}

#[tokio::test]
async fn garbage_is_a_400_and_the_end() {
    run(async {
        let rig = proxy(Setup::to(&[echo().await]), Http1).await;
        for garbage in
            ["\x16\x03\x01\x02\x00\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n", "GET  / HTTP/1.1\r\n\r\n"]
        {
            let mut client = Wire::connect(rig.address).await;
            client.send(garbage).await;
            let answer = client.rest().await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{garbage:?}: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn smuggled_length_is_refused() {
    run(async {
        let rig = proxy(Setup::to(&[echo().await]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n")
            .await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(!answer.contains("200 OK"), "{answer}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn route_timeout_is_a_504() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            wire.head().await;
            assert_eq!(wire.rest().await, "");
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.forward().timeout = Some(Duration::from_secs(3));
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let start = Instant::now();
        let head = get(&mut client, "/").await;
        assert!(head.starts_with("HTTP/1.1 504"), "{head}");
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(client.bytes(24).await, "upstream request timeout");
    })
    .await;
}

#[tokio::test]
async fn client_that_leaves_takes_its_upstream_request_along() {
    run(async {
        let (arrived, left) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let signals = (arrived.clone(), left.clone());
        let app = upstream(move |_, mut wire| {
            let (arrived, left) = signals.clone();
            async move {
                wire.head().await;
                arrived.notify_one();
                wire.rest().await;
                left.notify_one();
            }
        })
        .await;
        let rig = proxy(Setup::to(&[app]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        arrived.notified().await;
        drop(client);
        left.notified().await;
        assert_eq!(rig.worker.pools.idle(), 0);
    })
    .await;
}

fn deny_admin() -> Rbac {
    let policy = RbacPolicy {
        permissions: vec![Permission::Path(StringMatch::prefix("/admin"))],
        principals: vec![Principal::Any],
        origin: None,
    };
    Rbac { action: RbacAction::Deny, policies: [("no-admin".to_owned(), policy)].into() }
}

#[tokio::test]
async fn denied_request_is_a_403_and_the_connection_lives_on() {
    run(async {
        let mut setup = Setup::to(&[echo().await]);
        setup.http.filters = vec![HttpFilter::Rbac(deny_admin())];
        setup.direction = Direction::Inbound;
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let head = get(&mut client, "/admin/x").await;
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        assert!(!headers(&head).contains_key("x-outrigger-error"), "an outsider learns nothing: {head}");
        assert_eq!(client.bytes(19).await, "RBAC: access denied");
        assert!(get(&mut client, "/").await.starts_with("HTTP/1.1 200"));
    })
    .await;
}

/// As Envoy: neither a fault nor a slow client uses up the time of the application.
#[tokio::test(start_paused = true)]
async fn the_clocks_of_route_and_attempt_begin_with_the_end_of_the_request() {
    run(async {
        let begun = Count::default();
        let seen = begun.clone();
        let app = upstream(move |number, mut wire| {
            let seen = seen.clone();
            async move {
                let head = wire.head().await;
                if head.starts_with("POST") {
                    wire.bytes(2).await;
                    seen.set(seen.get() + 1);
                    wire.bytes(2).await;
                }
                match number {
                    0 | 1 => wire.send(&ok("there")).await,
                    _ => assert_eq!(wire.rest().await, ""),
                }
            }
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.cluster.max_requests_per_connection = 1;
        setup.forward().timeout = Some(Duration::from_secs(3));
        let per_try_timeout = Some(Duration::from_secs(2));
        setup.forward().retry = Some(RetryPolicy { per_try_timeout, attempts: 0, ..RetryPolicy::default() });
        setup.route.fault = Some(Fault {
            delay: Some(FaultDelay { duration: Duration::from_secs(5), percentage: 100.0 }),
            abort: None,
        });
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let start = Instant::now();
        assert!(get(&mut client, "/").await.starts_with("HTTP/1.1 200"), "after the delay");
        client.bytes(5).await;
        for (at, answered) in [(1, true), (2, false)] {
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await;
            // After the delay the application has it: the kernel may take its time for that, which passes here.
            until("the application has it", || begun.get() >= at).await;
            tokio::time::sleep(Duration::from_secs(15)).await;
            client.send("cd").await;
            let (sent, head) = (Instant::now(), client.head().await);
            match answered {
                true => assert!(head.starts_with("HTTP/1.1 200"), "a slow upload: {head}"),
                false => assert_eq!((&head[9..12], sent.elapsed().as_secs()), ("504", 2), "{head}"),
            }
            client.bytes(if answered { 5 } else { 24 }).await;
        }
        assert!((47..52).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    })
    .await;
}

/// Before the end of the request time passes while nobody takes it: no connection is there, or the application does not read.
#[tokio::test]
async fn the_clock_of_the_route_runs_while_nobody_takes_the_request() {
    run(async {
        let (unconnected, _held) = full().await;
        let stopped = upstream(|_, mut wire| async move {
            wire.head().await;
            std::future::pending().await
        })
        .await;
        for (app, length) in [(unconnected, 4), (stopped, 64 << 20)] {
            for retried in [false, true] {
                let mut setup = Setup::to(&[app]);
                setup.forward().timeout = Some(Duration::from_millis(400));
                let on = vec![RetryOn::ConnectFailure, RetryOn::Reset];
                let policy = RetryPolicy { on, attempts: 5, ..RetryPolicy::default() };
                setup.forward().retry = retried.then_some(policy);
                let rig = proxy(setup, Http1).await;
                let mut client = Wire::connect(rig.address).await;
                let start = Instant::now();
                client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).await;
                let body = "x".repeat(length.min(8 << 20));
                // What nobody takes need not leave.
                let _ = tokio::time::timeout(Duration::from_millis(100), client.send(&body)).await;
                let head = client.head().await;
                assert!(head.starts_with("HTTP/1.1 504"), "{head}");
                let took = start.elapsed();
                assert!(took < Duration::from_secs(3), "{took:?} of {length} bytes, retried: {retried}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn faults_act_once_and_in_order() {
    run(async {
        let mut setup = Setup::to(&[echo().await]);
        setup.route.fault = Some(Fault {
            delay: Some(FaultDelay { duration: Duration::from_secs(5), percentage: 100.0 }),
            abort: Some(FaultAbort { status: FaultStatus::Http(418), percentage: 100.0 }),
        });
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let start = Instant::now();
        assert!(get(&mut client, "/").await.starts_with("HTTP/1.1 418"));
        assert_eq!(start.elapsed().as_secs(), 5);
        assert_eq!(client.bytes(18).await, "fault filter abort");
    })
    .await;
}

#[tokio::test]
async fn unrouted_request_is_a_404() {
    run(async {
        let mut setup = Setup::to(&[echo().await]);
        setup.route.matches.path = PathMatch::Exact("/only".into());
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let head = get(&mut client, "/other").await;
        assert!(head.starts_with("HTTP/1.1 404"), "{head}");
        assert!(headers(&head)["x-outrigger-error"].contains("reason=no_route"));
    })
    .await;
}

#[tokio::test]
async fn redirects_and_direct_responses_need_no_upstream() {
    run(async {
        let mut setup = Setup::to(&[]);
        setup.route.action = RouteAction::Direct { status: 418, body: "teapot".into() };
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        assert!(get(&mut client, "/").await.starts_with("HTTP/1.1 418"));
        assert_eq!(client.bytes(6).await, "teapot");

        let mut setup = Setup::to(&[]);
        let redirect = outrigger_model::route::Redirect {
            scheme: Some("https".into()),
            prefix: Some("/".into()),
            status: 308,
            ..Default::default()
        };
        setup.route.matches.path = PathMatch::Prefix("/old/".into());
        setup.route.action = RouteAction::Redirect(redirect);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let head = get(&mut client, "/old/x?y=1").await;
        assert!(head.starts_with("HTTP/1.1 308"), "{head}");
        assert_eq!(headers(&head)["location"], "https://a/x?y=1");
    })
    .await;
}

#[tokio::test]
async fn a_redirect_by_pattern_keeps_the_rest_of_the_path_and_the_query() {
    run(async {
        let mut setup = Setup::to(&[]);
        let regex = Some(("^/foo/?".to_owned(), "/xyz/".to_owned()));
        let redirect =
            outrigger_model::route::Redirect { regex, status: 302, port: Some(80), ..Default::default() };
        setup.route.action = RouteAction::Redirect(redirect);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        for (path, expected) in [("/foo/bar?y=1", "http://a/xyz/bar?y=1"), ("/foo", "http://a/xyz/")] {
            assert_eq!(headers(&get(&mut client, path).await)["location"], expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_share_that_goes_nowhere_is_answered_as_its_route_says() {
    run(async {
        for (no_cluster, status) in
            [(NoCluster::Unavailable, 503), (NoCluster::NotFound, 404), (NoCluster::InternalError, 500)]
        {
            let mut setup = Setup::to(&[]);
            setup.forward().clusters = vec![WeightedCluster::only(outrigger_model::cluster::NOWHERE)];
            setup.forward().no_cluster = no_cluster;
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            let head = get(&mut client, "/").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            assert!(headers(&head)["x-outrigger-error"].contains("reason=no_cluster"), "{head}");
        }
    })
    .await;
}

#[tokio::test]
async fn rewrites_and_header_edits_apply() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            assert!(head.starts_with("GET /internal/x?y=1 HTTP/1.1\r\n"), "{head}");
            let headers = headers(&head);
            assert_eq!((&*headers["host"], &*headers["x-new"]), ("b.example", "1"));
            assert_eq!(headers["x-envoy-original-path"], "/api/x?y=1");
            assert!(!headers.contains_key("x-gone"));
            wire.send(&ok("")).await;
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.route.matches.path = PathMatch::Prefix("/api".into());
        setup.route.request_headers.set = vec![("x-new".into(), "1".into())];
        setup.route.request_headers.remove = vec!["x-gone".into()];
        setup.route.response_headers.add = vec![("x-mark".into(), "2".into())];
        setup.forward().rewrite.prefix = Some("/internal".into());
        setup.forward().rewrite.authority = Some("b.example".into());
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET /api/x?y=1 HTTP/1.1\r\nHost: a\r\nX-Gone: 0\r\n\r\n").await;
        assert_eq!(headers(&client.head().await)["x-mark"], "2");
    })
    .await;
}

#[tokio::test]
async fn request_limit_names_itself() {
    run(async {
        let mut setup = Setup::to(&[echo().await]);
        setup.cluster.limits.max_requests = 0;
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let head = get(&mut client, "/").await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(headers(&head)["x-outrigger-error"].contains("limit=max_requests:0"), "{head}");
    })
    .await;
}

#[tokio::test]
async fn draining_connection_says_so_and_ends() {
    run(async {
        let rig = proxy(Setup::to(&[echo().await]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        assert!(!headers(&get(&mut client, "/").await).contains_key("connection"));
        client.bytes(14).await;
        rig.worker.process.drain.begin();
        assert_eq!(headers(&get(&mut client, "/").await)["connection"], "close");
        assert_eq!(client.rest().await, "GET / HTTP/1.1");
    })
    .await;
}

/// A handshake takes its time, and what is in force may change meanwhile: then nothing comes that would tell the connection of it.
#[tokio::test]
async fn a_connection_that_was_let_in_before_a_change_is_served_by_what_is_in_force() {
    run(async {
        let world = super::world::World::new(Setup::to(&[]));
        let address = "127.0.0.1:80".parse().unwrap();
        let (listener, purpose) = (
            tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
            crate::listen::Purpose::Inbound { app: None },
        );
        let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepted =
            crate::conn::Accepted { tcp, source: address, destination: address, transparent: false, purpose };
        let info = Rc::new(world.info(&accepted));
        let next = super::world::snapshot(Setup::to(&[]), &world.worker.snapshot());
        world.worker.process.swap(next);
        let conn = conn::HttpConn::new(world.worker.clone(), info.clone(), world.http.clone());
        let present = world.worker.snapshot().http(info.listener.name(), &info.chain.name).unwrap();
        assert!(std::sync::Arc::ptr_eq(&conn.view().http, &present));
    })
    .await;
}

/// Per-connection memory is a feature: the future of a connection holds the whole request path.
#[tokio::test]
async fn futures_stay_small() {
    run(async {
        let world = super::world::World::new(Setup::to(&[]));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let purpose = crate::listen::Purpose::Inbound { app: None };
        let accepted =
            crate::conn::Accepted { tcp, source: address, destination: address, transparent: false, purpose };
        let info = Rc::new(world.info(&accepted));
        let conn = conn::HttpConn::new(world.worker.clone(), info, world.http.clone());
        let stream = accepted.tcp;
        let size = size_of_val(&server::h1::serve(&conn, stream.into()));
        assert!(size < 8 * 1024, "an HTTP/1 connection's future has {size} bytes");
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let purpose = crate::listen::Purpose::Inbound { app: None };
        let accepted =
            crate::conn::Accepted { tcp, source: address, destination: address, transparent: false, purpose };
        let size = size_of_val(&crate::conn::serve(world.worker.clone(), accepted));
        assert!(size <= 192, "a connection's task has {size} bytes");
    })
    .await;
}
