//! Which instance gets a request, by what is measured of instances: failures, latency, reported load, room, zones; from the rule to the
//! instance.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use outrigger_control::instance::State;
use outrigger_tests::app::{body, echo, get};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::eventually;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::BINARY;
use crate::thin_thread::{catalog, web};

/// How an application answers a request; its name is what follows.
type Answer = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// An application of our own words.
async fn app(listen: SocketAddr, delay: Duration, answer: Answer) {
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(stream, delay, answer.clone()));
        }
    });
}

async fn talk(stream: TcpStream, delay: Duration, answer: Answer) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        tokio::time::sleep(delay).await;
        stream.get_mut().write_all(answer(&head).as_bytes()).await?;
    }
}

fn plain(status: u16, name: &'static str, headers: &'static str) -> Answer {
    Arc::new(move |_| {
        format!("HTTP/1.1 {status} Said\r\n{headers}X-App-Name: {name}\r\nContent-Length: 2\r\n\r\nok")
    })
}

fn page(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: catalog, namespace: shop}}\nspec:\n  service: catalog\n{spec}\n"
    )
}

/// How many of so many requests were answered by whom, and with what.
async fn answers(entry: SocketAddr, count: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let (status, text) = get(entry, "/", "").await.unwrap();
        let lower = text.to_ascii_lowercase();
        let name = lower.lines().find_map(|line| line.strip_prefix("x-app-name: ")).unwrap_or("nobody");
        *seen.entry(format!("{name} {status}")).or_default() += 1;
    }
    seen
}

/// What the caller's sidecar says of the instances of the catalog, by address.
async fn instances(web: &Sidecar) -> BTreeMap<String, Value> {
    let page: Value = serde_json::from_str(&body(&web.page("/clusters").await)).unwrap();
    let clusters = page.as_object().unwrap();
    let (_, cluster) = clusters.iter().find(|(name, _)| name.contains("||catalog.shop")).unwrap();
    let endpoints = cluster["endpoints"].as_array().unwrap().iter();
    endpoints.map(|one| (one["address"].as_str().unwrap().to_owned(), one.clone())).collect()
}

struct Three {
    mesh: Mesh,
    sidecars: Vec<Sidecar>,
    web: Sidecar,
}

impl Three {
    async fn start() -> Self {
        let mesh = Mesh::start(BINARY).await;
        let mut sidecars = Vec::new();
        for (version, host) in [("v1", 11), ("v2", 12), ("v3", 13)] {
            sidecars.push(mesh.workload(&catalog(version, host)).await);
        }
        let web = mesh.workload(&web(&["catalog:8080"])).await;
        Self { mesh, sidecars, web }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_more_than_the_others_gets_nothing_and_the_page_says_why() {
    let three = Three::start().await;
    for (at, (status, name)) in [(200, "c1"), (500, "c2"), (200, "c3")].into_iter().enumerate() {
        app(three.sidecars[at].app, Duration::ZERO, plain(status, name, "")).await;
    }
    let rule = "  loadBalancing: {policy: roundRobin}\n  circuitBreaker: {consecutiveErrors: 0, interval: 200ms, ejectionTime: 60s, maxEjectionPercent: 50, \
                successRate: {minHosts: 3, minRequests: 5, stdevFactor: 1.2}}";
    three.mesh.apply(&page(rule)).await;
    let entry = three.web.outbound[0];
    let failing = three.sidecars[1].inbound.to_string();
    let found = eventually("the failing one is ejected", || async {
        // Enough for each in an interval.
        answers(entry, 30).await;
        let all = instances(&three.web).await;
        let one = all[&failing].clone();
        if one["ejected"].is_null() { Err(format!("{one}")) } else { Ok(one) }
    })
    .await;
    assert_eq!(found["ejected"]["cause"], "SuccessRate", "{found}");
    assert!(found["ejected"]["secondsLeft"].as_f64().unwrap() > 50.0, "{found}");
    let seen = answers(entry, 20).await;
    assert_eq!(seen, [("c1 200".to_owned(), 10), ("c3 200".to_owned(), 10)].into());
    let metrics = three.web.page("/stats/prometheus").await;
    let counted = |name: &str| {
        let line = metrics.lines().find(|line| {
            line.starts_with(&format!("envoy_cluster_outlier_detection_ejections_{name}{{"))
                && line.contains("||catalog.shop")
        });
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!((&*counted("enforced_success_rate"), &*counted("enforced_total")), ("1", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_instance_gets_little_where_latency_decides() {
    let three = Three::start().await;
    for (at, (millis, name)) in [(0, "c1"), (150, "c2"), (0, "c3")].into_iter().enumerate() {
        app(three.sidecars[at].app, Duration::from_millis(millis), plain(200, name, "")).await;
    }
    three.mesh.apply(&page("  loadBalancing: {policy: peakEwma}")).await;
    let entry = three.web.outbound[0];
    // All have answered once.
    eventually("all are measured", || async {
        answers(entry, 5).await;
        let all = instances(&three.web).await;
        let known = all.values().filter(|one| one["latencyMillis"].is_f64()).count();
        if known == 3 { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    let seen = answers(entry, 60).await;
    assert!(seen.get("c2 200").copied().unwrap_or(0) <= 3, "{seen:?}");
    let all = instances(&three.web).await;
    let latency = |at: usize| all[&three.sidecars[at].inbound.to_string()]["latencyMillis"].as_f64().unwrap();
    assert!(latency(1) > 75.0 && latency(0) < 75.0 && latency(2) < 75.0, "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_load_make_weights_from_heads_and_trailers_and_are_passed_on() {
    let three = Three::start().await;
    // 100 requests a second by 0.25 and by 0.5; the third says nothing, and has the weight between.
    app(
        three.sidecars[0].app,
        Duration::ZERO,
        plain(200, "c1", "endpoint-load-metrics: TEXT cpu_utilization=0.25,rps_fractional=100\r\n"),
    )
    .await;
    let chunked: Answer = Arc::new(|_| {
        "HTTP/1.1 200 OK\r\nX-App-Name: c2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\
         endpoint-load-metrics-json: {\"application_utilization\": 0.5, \"rps_fractional\": 100}\r\n\r\n"
            .to_owned()
    });
    app(three.sidecars[1].app, Duration::ZERO, chunked).await;
    app(three.sidecars[2].app, Duration::ZERO, plain(200, "c3", "")).await;
    let rule = "  loadBalancing: {policy: reportedLoad, reports: {blackout: 0s, update: 100ms}}";
    three.mesh.apply(&page(rule)).await;
    let entry = three.web.outbound[0];
    // Of two weights the upper is the middle one, so it is two by one by two.
    let seen = eventually("the reports count", || async {
        let seen = answers(entry, 50).await;
        if seen.get("c2 200") == Some(&10) { Ok(seen) } else { Err(format!("{seen:?}")) }
    })
    .await;
    assert_eq!(seen["c1 200"] + seen["c3 200"], 40, "{seen:?}");
    let (_, text) = eventually("an answer with its report", || async {
        let answer = get(entry, "/", "").await.map_err(|error| error.to_string())?;
        if answer.1.contains("endpoint-load-metrics: TEXT") { Ok(answer) } else { Err(answer.1) }
    })
    .await;
    assert!(text.contains("x-app-name: c1") || text.contains("X-App-Name: c1"), "{text}");
    let all = instances(&three.web).await;
    let weight = |at: usize| all[&three.sidecars[at].inbound.to_string()]["loadReport"]["weight"].as_f64();
    assert_eq!([weight(0), weight(1), weight(2)], [Some(400.0), Some(200.0), None], "{all:?}");
}

/// An application that answers once it may.
async fn held(listen: SocketAddr, name: &'static str) -> (Arc<tokio::sync::Semaphore>, Arc<AtomicBool>) {
    let (leave, asked) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    let (waits, told) = (leave.clone(), asked.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (waits, told) = (waits.clone(), told.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    stream.read_line(&mut head).await?;
                }
                told.store(true, SeqCst);
                waits.acquire().await.expect("it is open").forget();
                let text = format!(
                    "HTTP/1.1 200 OK\r\nX-App-Name: {name}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                );
                stream.get_mut().write_all(text.as_bytes()).await
            });
        }
    });
    (leave, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_near_and_full_lets_the_next_place_help_out() {
    let mut mesh = Mesh::start(BINARY).await;
    mesh.locality = ("eu".into(), "a".into());
    let near = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.locality = ("us".into(), "a".into());
    let far = mesh.workload(&catalog("v2", 12)).await;
    let (leave, asked) = held(near.app, "near").await;
    echo(far.app, "far").await;
    mesh.apply(&page("  loadBalancing: {locality: {capacity: 1}}")).await;
    let entry = web.outbound[0];
    let first = tokio::spawn(async move { get(entry, "/", "").await });
    eventually("the near one is asked", || async {
        if asked.load(SeqCst) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(answers(entry, 5).await, [("far 200".to_owned(), 5)].into());
    leave.add_permits(10);
    let (status, text) = first.await.unwrap().unwrap();
    assert!(status == 200 && text.to_ascii_lowercase().contains("x-app-name: near"), "{text}");
    assert_eq!(answers(entry, 3).await, [("near 200".to_owned(), 3)].into(), "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_keeps_what_it_can_bear_beside_its_peers() {
    let mut mesh = Mesh::start(BINARY).await;
    mesh.locality = ("eu".into(), "a".into());
    let here = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.locality = ("eu".into(), "b".into());
    let other = outrigger_tests::mesh::Spec { version: "v2", host: 20, ..crate::thin_thread::web(&[]) };
    mesh.register(&other).await;
    echo(here.app, "here").await;
    let mut there = Vec::new();
    for (version, host) in [("v2", 12), ("v3", 13), ("v4", 14)] {
        let sidecar = mesh.workload(&catalog(version, host)).await;
        echo(sidecar.app, "there").await;
        there.push(sidecar);
    }
    mesh.apply(&page("  loadBalancing: {policy: roundRobin, locality: {zoneAware: {minEndpoints: 1}}}"))
        .await;
    // Half of the peers and a quarter of the instances are here: half of it stays.
    eventually("half of it stays", || async {
        let seen = answers(web.outbound[0], 60).await;
        if seen == [("here 200".to_owned(), 30), ("there 200".to_owned(), 30)].into() {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subset_that_nobody_runs_is_served_by_its_fallback() {
    let mesh = Mesh::start(BINARY).await;
    let old = mesh.workload(&catalog("v1", 11)).await;
    let new = mesh.workload(&catalog("v2", 12)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(old.app, "old").await;
    echo(new.app, "new").await;
    let rule =
        "  subsets: [{name: new, labels: {version: v2}, fallback: any}]\n  routes: [{to: [{subset: new}]}]";
    mesh.apply(&page(rule)).await;
    let only = |name: &'static str| {
        let entry = web.outbound[0];
        async move {
            eventually(name, || async {
                let seen = answers(entry, 10).await;
                if seen == [(format!("{name} 200"), 10)].into() { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
        }
    };
    only("new").await;
    mesh.client.set_state("catalog-v2", State::Maintenance).await.unwrap();
    only("old").await;
    mesh.client.set_state("catalog-v2", State::Running).await.unwrap();
    only("new").await;
}
