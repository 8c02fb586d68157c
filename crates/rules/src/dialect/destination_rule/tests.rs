use std::time::Duration;

use outrigger_model::cluster::{Balance, Outlier};
use outrigger_model::route::HashOn;

use crate::intent::{ClientTlsMode, LoadBalancing, Nearness};
use crate::testing::{destination, object, one_told, told};

fn rule(spec: &str) -> String {
    object("networking.istio.io/v1beta1", "DestinationRule", spec)
}

fn policy(fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("  {line}\n")).collect();
    rule(&format!("host: reviews\ntrafficPolicy:\n{fields}"))
}

#[test]
fn subsets_arrive_with_labels_and_policies() {
    let text = rule(
        "host: reviews
subsets:
- name: v1
  labels: {version: v1}
- name: v2
  labels: {version: v2}
  trafficPolicy: {loadBalancer: {simple: RANDOM}}",
    );
    let found = destination(&text);
    assert_eq!(found.host.as_str(), "reviews.shop.svc.cluster.local");
    assert_eq!(found.subset("v1").unwrap().labels["version"], "v1");
    assert_eq!(found.effective(Some("v2"), 80).load_balancing, Some(Balance::Random.into()));
    assert_eq!(found.subset("v2").unwrap().place.line, 10);
}

#[test]
fn limits_and_ejection_arrive() {
    let text = policy(
        "connectionPool:
  tcp: {maxConnections: 10, connectTimeout: 1s, tcpKeepalive: {time: 60s}}
  http: {http1MaxPendingRequests: 5, http2MaxRequests: 20, maxRetries: 3, maxRequestsPerConnection: 0, maxConcurrentStreams: 8, idleTimeout: 30s}
outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 100}
retryBudget: {percent: 50, minRetryConcurrency: 1}",
    );
    let found = destination(&text).policy;
    let pool = found.connection_pool.unwrap();
    assert_eq!(
        (pool.max_connections, pool.max_pending_requests, pool.max_requests, pool.max_retries),
        (Some(10), Some(5), Some(20), Some(3))
    );
    assert_eq!((pool.max_requests_per_connection, pool.max_streams_per_connection), (None, Some(8)));
    let unset = destination(&policy("connectionPool: {tcp: {maxConnections: 0}}"));
    assert_eq!(unset.policy.connection_pool.unwrap().max_connections, None, "protobuf's 0 is none");
    let age = |text: &str| policy(&format!("connectionPool: {{tcp: {{maxConnectionDuration: {text}}}}}"));
    let aged = destination(&age("1h")).policy.connection_pool.unwrap();
    assert_eq!(aged.max_connection_duration, Some(Duration::from_secs(3600)));
    assert!(one_told(&age("0s")).contains("maxConnectionDuration must be longer than 0"));
    let keepalive = pool.keepalive.unwrap();
    assert_eq!((keepalive.probes, keepalive.time, keepalive.interval), (None, Some(60), None));
    let outlier = found.outlier.unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.max_ejection_percent), (3, 100));
    assert_eq!((outlier.interval, outlier.base_ejection), (Duration::from_secs(1), Duration::from_secs(2)));
    let budget = found.retry_budget.unwrap();
    assert_eq!((budget.percent, budget.min_concurrency), (50.0, 1));
}

#[test]
fn an_empty_outlier_block_switches_ejection_on_with_defaults() {
    assert_eq!(destination(&policy("outlierDetection: {}")).policy.outlier, Some(Outlier::default()));
    assert_eq!(destination(&policy("loadBalancer: {simple: RANDOM}")).policy.outlier, None);
}

#[test]
fn gateway_errors_that_can_never_eject_are_told() {
    assert!(one_told(&policy("outlierDetection: {consecutiveGatewayErrors: 10}")).contains("has no effect"));
    assert_eq!(
        destination(&policy("outlierDetection: {consecutiveGatewayErrors: 3}"))
            .policy
            .outlier
            .unwrap()
            .consecutive_gateway,
        3
    );
}

#[test]
fn a_consistent_hash_is_read_and_told_where_the_data_plane_lacks_it() {
    let text = policy("loadBalancer: {consistentHash: {httpHeaderName: X-User, maglev: {}}}");
    let lacking = crate::ParseOptions { consistent_hash: false, ..Default::default() };
    let told = crate::parse_with("rules.yaml", &text, &lacking).findings;
    assert!(told[0].to_string().contains("warning OUT0005: spec.trafficPolicy.loadBalancer.consistentHash"));
    let hash = Some(HashOn::Header("x-user".into()));
    let expected = LoadBalancing { hash, ..Balance::Maglev { size: 65537 }.into() };
    assert_eq!(destination(&text).policy.load_balancing, Some(expected));
    assert_eq!(crate::parse("rules.yaml", &text).findings, []);
    // Who says a number of places wants an Envoy's ring.
    let balance = |said: &str| {
        let text = policy(&format!("loadBalancer: {{consistentHash: {{useSourceIp: true{said}}}}}"));
        destination(&text).policy.load_balancing.unwrap().balance
    };
    assert_eq!((balance(""), balance(", ringHash: {}")), (Balance::SteadyRing, Balance::SteadyRing));
    let envoys = Balance::RingHash { minimum: 1024, maximum: 262_144 };
    assert_eq!(balance(", minimumRingSize: 1024"), envoys);
    assert_eq!(balance(", ringHash: {minimumRingSize: 1024}"), envoys);
    let text = policy("loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 1000}}}");
    assert!(one_told(&text).contains("must be a prime"));
}

#[test]
fn port_level_settings_stand_alone() {
    let text = policy(
        "loadBalancer: {simple: ROUND_ROBIN}
outlierDetection: {}
portLevelSettings:
- port: {number: 80}
  loadBalancer: {simple: LEAST_REQUEST}",
    );
    let effective = destination(&text).effective(None, 80);
    assert_eq!((effective.load_balancing, effective.outlier), (Some(Balance::LeastRequest.into()), None));
}

#[test]
fn a_port_of_a_subset_has_the_budget_around_it() {
    let budget = |of_subset: &str| {
        let spec = format!(
            "host: reviews\ntrafficPolicy: {{retryBudget: {{percent: 30}}, outlierDetection: {{}}}}\nsubsets:\n- name: v1\n  \
             labels: {{version: v1}}\n  trafficPolicy:\n    {of_subset}portLevelSettings:\n    - port: {{number: 80}}\n      \
             loadBalancer: {{simple: RANDOM}}\n"
        );
        let effective = destination(&rule(&spec)).effective(Some("v1"), 80);
        assert_eq!(effective.outlier, None, "all else stands alone");
        effective.retry_budget.map(|budget| budget.percent)
    };
    assert_eq!(budget(""), Some(30.0));
    assert_eq!(budget("retryBudget: {percent: 50}\n    "), Some(50.0));
}

#[test]
fn tls_modes_arrive_and_mutual_needs_a_certificate() {
    let tls = destination(&policy("tls: {mode: ISTIO_MUTUAL, sni: x}")).policy.tls.unwrap();
    assert_eq!((tls.mode, tls.sni.as_deref()), (ClientTlsMode::IstioMutual, Some("x")));
    assert!(one_told(&policy("tls: {mode: MUTUAL}")).contains("needs clientCertificate and privateKey"));
}

#[test]
fn what_tls_cannot_do_is_told_and_never_ignored() {
    for (tls, told) in [
        (
            "{mode: MUTUAL, credentialName: c}",
            "error OUT0001: spec.trafficPolicy.tls.credentialName is not implemented",
        ),
        ("{mode: SIMPLE, credentialName: c}", "warning OUT0005: spec.trafficPolicy.tls.credentialName"),
        ("{mode: SIMPLE, insecureSkipVerify: true}", "the server is verified all the same"),
        ("{mode: ISTIO_MUTUAL, caCertificates: /ca.pem}", "has no effect"),
    ] {
        let text = one_told(&policy(&format!("tls: {tls}")));
        assert!(text.contains(told.rsplit(": ").next().unwrap()), "{tls}: {text}");
        assert_eq!(text.contains(" error "), told.starts_with("error"), "{tls}: {text}");
    }
    for quiet in [
        "{mode: SIMPLE, sni: a.b, caCertificates: /ca.pem, subjectAltNames: [a.b]}",
        "{mode: SIMPLE, insecureSkipVerify: false}",
    ] {
        assert_eq!(crate::parse("rules.yaml", &policy(&format!("tls: {quiet}"))).findings, []);
    }
}

#[test]
fn a_misspelt_word_is_told_with_the_right_one() {
    let told = one_told(&policy("loadBalancer: {simple: ROUND_ROBBIN}"));
    assert!(told.starts_with("rules.yaml:8:28 error IST0106"), "{told}");
    assert!(told.ends_with("Did you mean \"ROUND_ROBIN\"?"), "{told}");
}

#[test]
fn a_rule_for_certain_clients_does_not_become_one_for_all() {
    let text = rule(
        "host: reviews\nworkloadSelector: {matchLabels: {app: web}}\ntrafficPolicy: {outlierDetection: {}}",
    );
    assert!(one_told(&text).contains("its policies have no effect, and its subsets are there"));
    let found = destination(&text);
    assert!(found.subsets_only && found.is_without_policy(), "{found:?}");
}

#[test]
fn a_label_that_yaml_reads_as_a_number_must_be_quoted() {
    let told = one_told(&rule("host: reviews\nsubsets: [{name: v1, labels: {version: 1}}]"));
    assert!(told.contains("write it in quotes"), "{told}");
}

#[test]
fn a_subset_cannot_be_defined_twice() {
    assert!(one_told(&rule("host: reviews\nsubsets: [{name: v1}, {name: v1}]")).contains("defined twice"));
}

#[test]
fn a_warm_up_arrives_by_either_name() {
    let warmup = |text: &str| destination(&policy(&format!("loadBalancer: {text}"))).policy.warmup;
    let old = warmup("{simple: LEAST_REQUEST, warmupDurationSecs: 30s}").unwrap();
    assert_eq!((old.window, old.minimum_percent), (Duration::from_secs(30), 10.0));
    let new = warmup("{simple: ROUND_ROBIN, warmup: {duration: 1m, minimumPercent: 25}}").unwrap();
    assert_eq!((new.window, new.minimum_percent), (Duration::from_secs(60), 25.0));
    assert_eq!(warmup("{simple: ROUND_ROBIN}"), None);
    assert_eq!((old.aggression, new.aggression), (1.0, 1.0));
    assert_eq!(warmup("{warmup: {duration: 1m, aggression: 2.5}}").unwrap().aggression, 2.5);
    assert!(
        one_told(&policy("loadBalancer: {warmup: {duration: 1m, aggression: 0.5}}"))
            .contains("must be a number of at least 1, not")
    );
    let hash = policy("loadBalancer: {consistentHash: {useSourceIp: true}, warmupDurationSecs: 30s}");
    assert!(one_told(&hash).contains("no effect together with consistentHash"));
}

#[test]
fn keep_alive_counts_in_whole_seconds_that_the_kernel_takes() {
    let of = |fields: &str| policy(&format!("connectionPool: {{tcp: {{tcpKeepalive: {{{fields}}}}}}}"));
    let read = |fields: &str| {
        let found = destination(&of(fields)).policy.connection_pool.unwrap().keepalive.unwrap();
        (found.probes, found.time, found.interval)
    };
    assert_eq!(read("probes: 3, time: 7200s, interval: 75s"), (Some(3), Some(7200), Some(75)));
    assert_eq!(read("time: 1500ms"), (None, Some(2), None));
    assert_eq!(read("probes: 0"), (None, None, None));
    assert!(one_told(&of("time: 10h")).contains("tcpKeepalive.time must be at most 32767s"));
    assert!(one_told(&of("probes: 200")).contains("must be a whole number from 0 to 127"));
}

#[test]
fn what_has_no_effect_yet_is_told_by_name_and_the_rest_is_silent() {
    let told = one_told(&policy("retryBudget: {percent: 20, budgetInterval: 1s}"));
    let wanted = "warning OUT0005: spec.trafficPolicy.retryBudget.budgetInterval is not implemented";
    assert!(told.contains(wanted), "{told}");
    let quiet = "connectionPool: {tcp: {idleTimeout: 30s, maxConnections: 5, maxConnectionDuration: 1h}, http: {idleTimeout: 30s}}";
    assert_eq!(crate::parse("rules.yaml", &policy(quiet)).findings, []);
}

#[test]
fn what_is_said_of_idle_connections_of_bytes_holds_for_those_of_requests() {
    let both = |fields: &str| {
        let pool = destination(&policy(&format!("connectionPool: {fields}"))).policy.connection_pool.unwrap();
        (pool.tcp_idle_timeout.map(|time| time.as_secs()), pool.http_idle_timeout.map(|time| time.as_secs()))
    };
    assert_eq!(both("{tcp: {idleTimeout: 30s}}"), (Some(30), Some(30)));
    assert_eq!(both("{tcp: {idleTimeout: 30s}, http: {maxRetries: 1}}"), (Some(30), Some(30)));
    assert_eq!(both("{tcp: {idleTimeout: 30s}, http: {idleTimeout: 9s}}"), (Some(30), Some(9)));
    assert_eq!(both("{http: {idleTimeout: 9s}}"), (None, Some(9)));
}

#[test]
fn what_says_nothing_is_refused() {
    assert!(
        one_told(&rule("host: reviews\ntrafficPolicy: {}"))
            .contains("error IST0106: spec.trafficPolicy says nothing")
    );
    assert!(one_told(&policy("connectionPool: {}")).contains("connectionPool says nothing"));
    assert!(
        one_told(&policy("connectionPool: {tcp: {connectTimeout: 100us}}")).contains("whole milliseconds")
    );
}

#[test]
fn a_server_of_the_mesh_is_named_by_its_identity() {
    let told = one_told(&policy("tls: {mode: ISTIO_MUTUAL, subjectAltNames: [reviews.test]}"));
    assert!(
        told.contains("error IST0106") && told.contains("must be an identity such as spiffe://"),
        "{told}"
    );
    let named =
        policy("tls: {mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/reviews']}");
    assert_eq!(crate::parse("rules.yaml", &named).findings, []);
}

#[test]
fn fields_of_istios_api_of_2026_are_known_though_not_implemented() {
    for (field, fields) in [
        (
            "connectionPool.http.http2KeepAlive",
            "connectionPool: {http: {http2KeepAlive: {interval: 1s, timeout: 1s}}}",
        ),
        (
            "outlierDetection.outlierDetectionHttpErrorCodes",
            "outlierDetection: {outlierDetectionHttpErrorCodes: ['500']}",
        ),
    ] {
        let told = one_told(&policy(fields));
        assert!(
            told.contains(&format!("warning OUT0005: spec.trafficPolicy.{field} is not implemented")),
            "{told}"
        );
    }
}

fn near(setting: &str) -> String {
    let spec = format!("host: reviews\ntrafficPolicy:\n  loadBalancer:\n    localityLbSetting: {setting}");
    object("networking.istio.io/v1", "DestinationRule", &spec)
}

#[test]
fn a_locality_setting_says_shares_or_an_order() {
    let read = |setting: &str| destination(&near(setting)).policy.nearness;
    assert_eq!(read("{}"), Some(Nearness::default()));
    assert_eq!(read("{enabled: false}"), Some(Nearness { off: true, ..Nearness::default() }));
    let shares = read("{distribute: [{from: eu/a/*, to: {eu/a/*: 80, us/*: 20}}]}").unwrap();
    assert_eq!(shares.distribute[0].to.iter().map(|(_, share)| *share).collect::<Vec<_>>(), [80, 20]);
    let order = read(
        "{failover: [{from: eu, to: us}], failoverPriority: [topology.kubernetes.io/region=eu, tier=gold]}",
    );
    let order = order.unwrap();
    assert_eq!(order.failover, [("eu".to_owned(), "us".to_owned())]);
    assert_eq!(order.priority[1], ("tier".to_owned(), Some("gold".to_owned())));
}

#[test]
fn a_locality_setting_that_cannot_be_is_an_error_that_says_why() {
    for (setting, wanted) in [
        ("{distribute: [{from: eu, to: {us: 50}}]}", "the shares sum to 50, not to 100"),
        ("{distribute: [{from: eu, to: {us: 101}}]}", "must be"),
        ("{distribute: [{from: eu, to: {us: 0, asia: 100}}]}", "must be"),
        ("{distribute: [{from: e*, to: {us: 100}}]}", "must be REGION/ZONE/SUBZONE"),
        ("{distribute: [{from: eu, to: {us: 100}}, {from: eu/a, to: {us: 100}}]}", "[1].from overlaps"),
        ("{distribute: [{to: {us: 100}}]}", "from"),
        ("{failover: [{from: eu, to: eu}]}", "leads from \"eu\" to itself"),
        ("{failover: [{from: eu/a, to: us}]}", "must be a region, without zones"),
        ("{failoverPriority: ['=x']}", "must be a label, or LABEL=VALUE"),
        (
            "{failover: [{from: eu, to: us}], failoverPriority: [version, topology.kubernetes.io/zone]}",
            "failoverPriority[1] names topology.kubernetes.io/zone, and failover says which region is next",
        ),
        ("{distribute: [{from: eu, to: {us: 100}}], failover: [{from: eu, to: us}]}", "shares and an order"),
    ] {
        let told = told(&near(setting));
        assert!(told.len() == 1 && told[0].contains(wanted), "{setting}: {told:#?}");
    }
}
