use outrigger_telemetry::metrics::Registry;

use super::*;

fn local() -> Local {
    Local {
        workload: Workload {
            name: "web-v1".into(),
            namespace: "shop".into(),
            service: "web".into(),
            revision: "v1".into(),
        },
        principal: Some(SpiffeId::parse("spiffe://td/ns/shop/sa/web").unwrap()),
        cluster: "home".into(),
        ..Local::default()
    }
}

fn series(direction: Direction, code: u16) -> SeriesOf<'static> {
    SeriesOf {
        direction,
        protocol: Protocol::Http1,
        is_grpc: false,
        code,
        grpc_status: None,
        flags: Flags::default(),
        mtls: true,
        peer: None,
        called: None,
        said: None,
        peer_hash: 0,
        cluster: Some("outbound|8080|v1|catalog.shop.svc.cluster.local"),
        cluster_id: 3,
        workload: None,
        endpoint_identity: None,
    }
}

fn page(totals: &Arc<Totals>) -> String {
    let registry = Registry::new();
    registry.register(totals.clone());
    registry.render()
}

#[test]
fn shards_of_one_series_add_up() {
    let totals = Totals::new(local());
    let shards = [totals.shard(), totals.shard()];
    let workload =
        Arc::new(Workload { name: "catalog-v1".into(), service: "catalog".into(), ..Workload::default() });
    for shard in &shards {
        let series = SeriesOf { workload: Some(&workload), ..series(Direction::Outbound, 200) };
        shard.request(&series, 3.0, (10, 20), None);
        shard.request(&series, 3.0, (10, 20), None);
    }
    let page = page(&totals);
    let line = page.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
    assert!(line.ends_with("} 4"), "{line}");
    for label in [
        "reporter=\"source\"",
        "source_workload=\"web-v1\"",
        "source_principal=\"spiffe://td/ns/shop/sa/web\"",
        "source_cluster=\"home\"",
        "destination_workload=\"catalog-v1\"",
        "destination_service=\"catalog.shop.svc.cluster.local\"",
        "destination_service_name=\"catalog\"",
        "destination_service_namespace=\"shop\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"unknown\"",
    ] {
        assert!(line.contains(label), "{label} in {line}");
    }
    assert!(page.contains("istio_request_bytes_sum{") && page.contains("istio_response_bytes_count{"));
}

#[test]
fn inbound_series_name_the_proved_peer() {
    let totals = Totals::new(local());
    let shard = totals.shard();
    let peer = SpiffeId::parse("spiffe://td/ns/front/sa/cart").unwrap();
    let peer_hash = shard.hash_of(Some(&peer), None, None);
    let series = SeriesOf { peer: Some(&peer), peer_hash, ..series(Direction::Inbound, 403) };
    shard.request(&series, 1.0, (0, 0), None);
    let page = page(&totals);
    for label in [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://td/ns/front/sa/cart\"",
        "source_workload_namespace=\"front\"",
        "destination_workload=\"web-v1\"",
        "destination_service_name=\"web\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(page.contains(label), "{label} in {page}");
    }
}

#[test]
fn series_are_bounded() {
    let totals = Totals::new(local());
    let shard = totals.shard();
    for account in 0..MAX_SERIES + 20 {
        let peer = SpiffeId::parse(&format!("spiffe://td/ns/a/sa/s{account}")).unwrap();
        let peer_hash = shard.hash_of(Some(&peer), None, None);
        shard.request(
            &SeriesOf { peer: Some(&peer), peer_hash, ..series(Direction::Inbound, 200) },
            1.0,
            (0, 0),
            None,
        );
    }
    let count = |cells: &RequestCells, total: &mut u64| *total += cells.requests.value();
    let all = totals.merged(|shard| &shard.requests, count);
    assert_eq!(all.len(), MAX_SERIES + 1);
    assert_eq!(all[&labels::other(Direction::Inbound)], 20);
    // A page does not show that many.
    let page = page(&totals);
    assert!(page.len() < 40 << 20 && page.contains("outrigger_metrics_left_out"), "{} bytes", page.len());
}

#[test]
fn tcp_and_cluster_families_have_their_names() {
    let totals = Totals::new(local());
    let shard = totals.shard();
    let tcp = SeriesOf { protocol: Protocol::Tcp, ..series(Direction::Outbound, 0) };
    shard.tcp(&tcp, |cells| {
        cells.opened.inc();
        cells.sent.add(7);
    });
    let cells = shard.cluster(&"outbound|9080|v1|reviews".into());
    cells.attempt();
    cells.response(503, Duration::from_millis(2));
    cells.connections_active.inc();
    let page = page(&totals);
    for line in [
        "istio_tcp_connections_opened_total{",
        "istio_tcp_sent_bytes_total{",
        "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"outbound|9080|v1|reviews\"} 1",
        "envoy_cluster_upstream_rq_xx{envoy_cluster_name=\"outbound|9080|v1|reviews\",envoy_response_code_class=\"5\"} 1",
        "envoy_cluster_upstream_cx_active{envoy_cluster_name=\"outbound|9080|v1|reviews\"} 1",
        "envoy_cluster_upstream_rq_time_count{",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    let tcp = page.lines().find(|line| line.starts_with("istio_tcp_sent_bytes_total{")).unwrap();
    assert!(!tcp.contains("response_code") && tcp.ends_with(" 7"), "{tcp}");
}

#[test]
fn inbound_series_name_the_service_that_was_called() {
    let totals = Totals::new(local());
    let shard = totals.shard();
    let peer = SpiffeId::parse("spiffe://td/ns/front/sa/cart").unwrap();
    let call = |called| {
        let peer_hash = shard.hash_of(Some(&peer), called, None);
        let series = SeriesOf { peer: Some(&peer), called, peer_hash, ..series(Direction::Inbound, 200) };
        shard.request(&series, 1.0, (0, 0), None);
    };
    call(Some("web-admin.shop.svc.example.org"));
    call(Some("www.example.com"));
    call(Some("stock.warehouse.svc.cluster.local"));
    call(None);
    let page = page(&totals);
    let count = |service: &str| {
        let label = format!("destination_service=\"{service}\"");
        let line = page.lines().find(|l| l.starts_with("istio_requests_total{") && l.contains(&label));
        line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
    };
    assert_eq!(count("web-admin.shop.svc.example.org").as_deref(), Some("1"));
    assert_eq!(count("www.example.com").as_deref(), Some("1"));
    assert_eq!(
        count("web.shop.svc.cluster.local").as_deref(),
        Some("2"),
        "another namespace's is not ours to name"
    );
    assert_eq!(count("stock.warehouse.svc.cluster.local"), None);
}

#[test]
fn messages_are_shown_for_grpc_only() {
    let totals = Totals::new(local());
    let shard = totals.shard();
    shard.request(&series(Direction::Outbound, 200), 1.0, (0, 0), None);
    assert!(!page(&totals).contains("messages_total"));
    let grpc = SeriesOf { is_grpc: true, grpc_status: Some(0), ..series(Direction::Outbound, 200) };
    shard.request(&grpc, 1.0, (0, 0), Some((3, 5)));
    let page = page(&totals);
    for (name, count) in [("istio_request_messages_total{", " 3"), ("istio_response_messages_total{", " 5")] {
        let lines: Vec<_> = page.lines().filter(|line| line.starts_with(name)).collect();
        assert!(
            matches!(lines.as_slice(), [one] if one.ends_with(count) && one.contains("\"grpc\"")),
            "{lines:?}"
        );
    }
}

/// What an identity says of itself in many connections.
#[test]
fn an_identity_has_only_few_names() {
    let totals = Totals::new(local());
    let shard = totals.shard();
    let peer = SpiffeId::parse("spiffe://td/ns/front/sa/cart").unwrap();
    for n in 0..9000 {
        let workload =
            Workload { name: format!("{n:0>250}"), namespace: "front".into(), ..Workload::default() };
        let said = Introduced { workload, cluster: "c".into() };
        let host = format!("{n:0>200}.shop.svc.cluster.local");
        let called = Some(host.as_str());
        let peer_hash = shard.hash_of(Some(&peer), called, Some(&said));
        let series = SeriesOf {
            peer: Some(&peer),
            called,
            said: Some(&said),
            peer_hash,
            ..series(Direction::Inbound, 200)
        };
        shard.request(&series, 1.0, (0, 0), None);
    }
    let page = page(&totals);
    let lines: Vec<_> = page.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
    println!(
        "figure: 9000 introductions make {} series and a page of {} KiB",
        lines.len(),
        page.len() / 1024
    );
    assert_eq!(lines.len(), 17);
    assert!(page.len() < 2 << 20, "{} bytes", page.len());
    let rest = lines.iter().find(|line| line.contains("source_workload=\"cart\"")).unwrap();
    assert!(rest.ends_with("} 8984"), "{rest}");
}

#[tokio::test(start_paused = true)]
async fn a_series_without_news_is_not_shown_and_comes_back_as_it_was() {
    let totals = Totals::new(local());
    let shards = [totals.shard(), totals.shard()];
    let both =
        |code| shards.iter().for_each(|s| s.request(&series(Direction::Outbound, code), 1.0, (0, 0), None));
    both(200);
    both(404);
    let shown = |code: u16| {
        let label = format!("response_code=\"{code}\"");
        let page = page(&totals);
        let line = page.lines().find(|l| l.starts_with("istio_requests_total{") && l.contains(&label));
        line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
    };
    assert_eq!((shown(200).as_deref(), shown(404).as_deref()), (Some("2"), Some("2")));
    for _ in 0..7 {
        tokio::time::advance(Duration::from_secs(600)).await;
        shards[0].request(&series(Direction::Outbound, 200), 1.0, (0, 0), None);
        shown(200);
    }
    assert_eq!(shown(200).as_deref(), Some("9"), "of both workers, though one rests");
    assert_eq!(shown(404), None);
    both(404);
    assert_eq!(shown(404).as_deref(), Some("4"));
}

#[tokio::test(start_paused = true)]
async fn series_that_rest_make_way_for_others() {
    let totals = Totals::new(local());
    let shard = totals.shard();
    let named = |n: usize| {
        let peer = SpiffeId::parse(&format!("spiffe://td/ns/a/sa/s{n}")).unwrap();
        let peer_hash = shard.hash_of(Some(&peer), None, None);
        let series = SeriesOf { peer: Some(&peer), peer_hash, ..series(Direction::Inbound, 200) };
        shard.request(&series, 1.0, (0, 0), None);
    };
    (0..MAX_SERIES).for_each(named);
    page(&totals);
    tokio::time::advance(Duration::from_secs(3601)).await;
    named(MAX_SERIES);
    let page = page(&totals);
    let count = page.lines().filter(|line| line.starts_with("istio_requests_total{")).count();
    assert_eq!(count, 1, "the old ones went");
    assert!(page.contains(&format!("sa/s{MAX_SERIES}")));
}

#[test]
fn a_peer_has_no_more_statuses_than_grpc() {
    let totals = Totals::new(local());
    let shard = totals.shard();
    for status in 0..1000 {
        let grpc = SeriesOf { is_grpc: true, grpc_status: Some(status), ..series(Direction::Outbound, 200) };
        shard.request(&grpc, 1.0, (0, 0), None);
    }
    let page = page(&totals);
    assert_eq!(page.lines().filter(|line| line.starts_with("istio_requests_total{")).count(), 17);
}
