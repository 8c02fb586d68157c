use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A reader of text format 0.0.4 as strict as promtool where it matters to us: one TYPE per family and before its
/// samples, families contiguous, no series twice, buckets cumulative and closed by +Inf, escapes valid.
fn check(page: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let mut closed = BTreeSet::new();
    let mut family = (String::new(), String::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let name = rest.split(' ').next().unwrap();
            assert!(closed.insert(name.to_owned()), "family twice: {name}");
            family = (name.to_owned(), String::new());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family.0);
            kind.clone_into(&mut family.1);
        } else {
            let at = line.rfind(' ').unwrap();
            let (key, value) = (&line[..at], &line[at + 1..]);
            let name = key.split('{').next().unwrap();
            let base = match family.1.as_str() {
                "histogram" => {
                    ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap()
                }
                _ => name,
            };
            assert_eq!(base, family.0, "sample outside of its family: {line}");
            let value: f64 = value.replace("Inf", "inf").parse().unwrap();
            assert!(series.insert(key.to_owned(), value).is_none(), "series twice: {key}");
        }
    }
    assert!(page.is_empty() || page.ends_with('\n'));
    series
}

#[test]
fn label_values_and_help_are_escaped() {
    let mut page = Page::new();
    page.counter("odd_total", "back\\slash, \"quote\"\nand line")
        .sample([("path", "a\\b\"c\nd"), ("unicode", "ü→")], 3_u64);
    let text = page.finish();
    assert_eq!(
        text,
        "# HELP odd_total back\\\\slash, \"quote\"\\nand line\n# TYPE odd_total counter\n\
         odd_total{path=\"a\\\\b\\\"c\\nd\",unicode=\"ü→\"} 3\n"
    );
    assert_eq!(check(&text).len(), 1);
}

#[test]
fn names_that_prometheus_refuses_are_mended() {
    let mut page = Page::new();
    page.gauge("1 bad-name", "x").sample([("9-l:b", "v")], 1_u64);
    assert!(page.finish().contains("\n_1_bad_name{_9_l_b=\"v\"} 1\n"));
}

#[test]
fn family_written_by_several_sources_stands_together() {
    let registry = Registry::new();
    for worker in ["0", "1"] {
        registry.register_fn(move |page| {
            page.counter("a_total", "A.").sample([("worker", worker)], 1_u64);
            page.gauge("b", "B.").sample([("worker", worker)], -2_i64);
        });
    }
    let series = check(&registry.render());
    assert_eq!(series.len(), 4);
    assert_eq!(series["b{worker=\"1\"}"], -2.0);
}

#[test]
fn family_declared_with_two_types_keeps_the_first() {
    let mut page = Page::new();
    page.counter("x_total", "X.").sample((), 1_u64);
    page.gauge("x_total", "X.").sample((), 2_u64);
    let series = check(&page.finish());
    assert_eq!(series["x_total"], 1.0);
}

#[test]
fn numbers_are_written_as_prometheus_reads_them() {
    let mut page = Page::new();
    let mut family = page.gauge("n", "N.");
    family.sample([("v", "a")], f64::INFINITY);
    family.sample([("v", "b")], f64::NEG_INFINITY);
    family.sample([("v", "c")], f64::NAN);
    family.sample([("v", "d")], u64::MAX);
    family.sample([("v", "e")], 0.25);
    family.sample([("v", "f")], true);
    let text = page.finish();
    for line in ["a\"} +Inf", "b\"} -Inf", "c\"} NaN", "d\"} 18446744073709551615", "e\"} 0.25", "f\"} 1"] {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
}

#[test]
fn histogram_is_cumulative_and_ends_in_infinity() {
    let registry = Registry::new();
    let shards = Arc::new([Histogram::new(), Histogram::new()]);
    let shown = shards.clone();
    let labels = Labels::new().with("reporter", "source");
    registry.register_fn(move |page| {
        let mut total = HistogramSnapshot::default();
        for shard in shown.iter() {
            shard.merge_into(&mut total);
        }
        page.histogram("istio_request_duration_milliseconds", "Duration.").sample(&labels, &total);
    });
    shards[0].observe(0.4);
    shards[0].observe(7.0);
    shards[1].observe(7.5);
    shards[1].observe(9e9);
    let text = registry.render();
    let series = check(&text);
    let at = |le: &str| {
        series[&format!("istio_request_duration_milliseconds_bucket{{reporter=\"source\",le=\"{le}\"}}")]
    };
    assert_eq!((at("0.5"), at("5"), at("10"), at("3600000"), at("+Inf")), (1.0, 1.0, 3.0, 3.0, 4.0));
    assert_eq!(series["istio_request_duration_milliseconds_count{reporter=\"source\"}"], 4.0);
    assert_eq!(series["istio_request_duration_milliseconds_sum{reporter=\"source\"}"], 9e9 + 14.9);
}

#[test]
fn shared_metrics_appear_with_exactly_their_names() {
    let registry = Registry::new();
    let pushes = registry.counters("pilot_xds_pushes", "Pushes.", ["type"]);
    pushes.with(["cds"]).inc();
    pushes.with(["cds"]).inc();
    pushes.with(["lds"]).add(5);
    let clients = registry.gauge("pilot_xds", "Clients.");
    clients.set(2.0);
    clients.add(-0.5);
    let push_time = registry.histogram("pilot_xds_push_time", "Seconds.", &[0.01, 0.1, 1.0]);
    push_time.observe(0.1);
    push_time.observe(30.0);
    let series = check(&registry.render());
    assert_eq!(series["pilot_xds_pushes{type=\"cds\"}"], 2.0);
    assert_eq!(series["pilot_xds_pushes{type=\"lds\"}"], 5.0);
    assert_eq!(series["pilot_xds"], 1.5);
    assert_eq!(series["pilot_xds_push_time_bucket{le=\"0.1\"}"], 1.0);
    assert_eq!(series["pilot_xds_push_time_bucket{le=\"+Inf\"}"], 2.0);
    pushes.remove(["lds"]);
    assert_eq!(check(&registry.render()).len(), 8);
}

#[test]
fn labels_that_grow_without_end_share_one_child() {
    let registry = Registry::new();
    let hits = registry.counters("hits_total", "Hits.", ["path"]);
    for n in 0..shared::MAX_CHILDREN + 50 {
        hits.with([&format!("/{n}")]).inc();
    }
    let series = check(&registry.render());
    assert_eq!(series.len(), shared::MAX_CHILDREN + 1);
    assert_eq!(series["hits_total{path=\"other\"}"], 50.0);
}

#[test]
fn process_metrics_are_plausible() {
    let series = check(&Registry::with_process("proxy", "0.1.0").render());
    assert_eq!(series["istio_build{component=\"proxy\",tag=\"0.1.0\"}"], 1.0);
    assert!(series["process_resident_memory_bytes"] > 500_000.0);
    assert!(series["process_open_fds"] >= 3.0);
    assert!(series["process_max_fds"] >= series["process_open_fds"]);
    assert!(series["process_cpu_seconds_total"] >= 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - series["process_start_time_seconds"];
    assert!((-2.0..3600.0).contains(&age), "{age}");
    let beside = check(&Registry::with_process_as("outrigger_", "proxy", "0.1.0").render());
    assert!(
        beside["outrigger_process_max_fds"] >= 3.0
            && beside.contains_key("istio_build{component=\"proxy\",tag=\"0.1.0\"}")
    );
    assert!(!beside.keys().any(|name| name.starts_with("process_")), "{beside:?}");
}

#[test]
fn promtool_accepts_the_page() {
    use std::io::Write;
    use std::process::{Command, Stdio};

    let registry = Registry::with_process("proxy", "0.1.0");
    registry
        .counters("odd_total", "Back\\slash, \"quote\"\nand line.", ["path"])
        .with(["a\\b\"c\nd →"])
        .inc();
    let histogram = Histogram::new();
    histogram.observe(7.0);
    registry.register_fn(move |page| {
        page.histogram("request_duration", "Duration.")
            .sample([("reporter", "source")], &histogram.snapshot());
    });
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        assert_ne!(
            std::env::var("OUTRIGGER_REQUIRE").as_deref(),
            Ok("all"),
            "promtool is required and missing"
        );
        eprintln!("SKIPPED: promtool is not installed");
        return;
    };
    promtool.stdin.take().unwrap().write_all(registry.render().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
