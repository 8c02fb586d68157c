//! The health check of a native page: how its callers ask the service's instances whether they are well. Fields are Envoy's.

use std::time::Duration;

use outrigger_model::cluster::{CHECK_METHODS, CheckHow, GrpcCheck, HealthCheck, HttpCheck, TcpCheck};
use serde_json::Value as Json;

use crate::finding::quote;
use crate::intent::HealthCheckIntent;
use crate::reader::{At, Reader, Table};
use crate::schema::{DURATION, any, described, number, object, one_of, text};
use crate::yaml::Value;

pub(super) const CHECK: Table = Table::new(
    "a health check",
    &[
        "http",
        "tcp",
        "grpc",
        "port",
        "timeout",
        "interval",
        "initialJitter",
        "intervalJitter",
        "intervalJitterPercent",
        "unhealthyThreshold",
        "healthyThreshold",
        "noTrafficInterval",
    ],
);
const HTTP: Table = Table::new("a check by HTTP", &["path", "host", "method", "expectedStatuses"]);
const TCP: Table = Table::new("a check by TCP", &["send", "receive"]);
const GRPC: Table = Table::new("a check by gRPC", &["serviceName", "authority"]);

/// All endpoints of a service are asked so often, by each of its callers.
const SHORTEST: Duration = Duration::from_millis(100);
/// Of what is sent, and of what must come.
const MOST_BYTES: usize = 1024;
const MOST_PARTS: usize = 16;
const MOST_RANGES: usize = 32;
/// Every status: natively all failures count towards the threshold.
const ANY_STATUS: (u16, u16) = (100, 599);

pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<HealthCheckIntent> {
    let at = at?;
    let fields = reader.fields(&at, &CHECK)?;
    let kinds = ["http", "tcp", "grpc"];
    if kinds.into_iter().filter(|kind| fields.has(kind)).count() != 1 {
        reader
            .error(&at, format!("{} needs one of http, tcp and grpc; `tcp: {{}}` is a connection", at.path));
        return None;
    }
    let http = fields.get("http").and_then(|at| http(reader, &at)).map(CheckHow::Http);
    let tcp = fields.get("tcp").and_then(|at| tcp(reader, &at)).map(CheckHow::Tcp);
    let grpc = fields.get("grpc").and_then(|at| grpc(reader, &at)).map(CheckHow::Grpc);
    let port = reader.port(fields.get("port"));
    let default = HealthCheck::new(http.or(tcp).or(grpc)?);
    let interval = reader.positive(fields.get("interval")).unwrap_or(default.interval);
    let quiet = reader.positive(fields.get("noTrafficInterval")).unwrap_or(default.no_traffic_interval);
    for (name, time) in [("interval", interval), ("noTrafficInterval", quiet)] {
        if let Some(at) = fields.get(name).filter(|_| time < SHORTEST) {
            reader.error(&at, format!("{}: must be at least 100ms", at.path));
        }
    }
    let mut jitter = |name| reader.duration(fields.get(name)).unwrap_or_default();
    let (initial_jitter, interval_jitter) = (jitter("initialJitter"), jitter("intervalJitter"));
    let mut threshold = |name, default| reader.number(fields.get(name), 1..=1_000).unwrap_or(default);
    let unhealthy_threshold = threshold("unhealthyThreshold", default.unhealthy_threshold);
    let healthy_threshold = threshold("healthyThreshold", default.healthy_threshold);
    let check = HealthCheck {
        timeout: reader.positive(fields.get("timeout")).unwrap_or(default.timeout),
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent: reader.number(fields.get("intervalJitterPercent"), 0..=100).unwrap_or(0),
        unhealthy_threshold,
        healthy_threshold,
        no_traffic_interval: quiet,
        how: default.how,
    };
    Some(HealthCheckIntent { check, port, place: at.place() })
}

fn http(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HttpCheck> {
    let fields = reader.fields(at, &HTTP)?;
    let Some(path_at) = fields.get("path") else {
        reader.missing(&fields, "path");
        return None;
    };
    let path = reader.text(Some(path_at.clone()))?;
    if !path.starts_with('/') || path.len() > MOST_BYTES || !is_shown(&path) || path.contains('#') {
        let message = format!("{} must be a path such as /healthz, and not {}", path_at.path, quote(&path));
        reader.error(&path_at, message);
        return None;
    }
    let host_at = fields.get("host");
    let host = host_at.as_ref().and_then(|at| name(reader, at)).unwrap_or_default();
    let methods: Vec<(&str, &str)> = CHECK_METHODS.into_iter().map(|method| (method, method)).collect();
    let method = reader.choice(fields.get("method"), &methods).unwrap_or(CHECK_METHODS[0]).to_owned();
    let expected = statuses(reader, fields.get("expectedStatuses"));
    Some(HttpCheck { host, path, method, http2: false, expected, retriable: vec![ANY_STATUS] })
}

/// `200`, or `200-299`; one or a list.
fn statuses(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<(u16, u16)> {
    let Some(at) = at else { return Vec::new() };
    let items = match at.node.value {
        Value::List(_) => reader.list(Some(at.clone())),
        _ => vec![at.clone()],
    };
    if items.is_empty() || items.len() > MOST_RANGES {
        reader.error(&at, format!("{}: name from 1 to {MOST_RANGES} statuses or ranges", at.path));
    }
    let mut ranges = Vec::new();
    for item in items {
        let written = match &item.node.value {
            Value::Number(text) | Value::Text(text) => text.clone(),
            _ => String::new(),
        };
        let (from, to) = written.split_once('-').unwrap_or((&written, &written));
        match (from.trim().parse::<u16>(), to.trim().parse::<u16>()) {
            (Ok(from), Ok(to)) if (100..600).contains(&from) && (from..600).contains(&to) => {
                ranges.push((from, to));
            }
            _ => {
                let message =
                    format!("{} must be a status such as 200, or a range such as 200-299", item.path);
                reader.error(&item, message);
            }
        }
    }
    ranges
}

fn tcp(reader: &mut Reader<'_>, at: &At<'_>) -> Option<TcpCheck> {
    let fields = reader.fields(at, &TCP)?;
    let send = fields.get("send").and_then(|at| bytes(reader, &at)).unwrap_or_default();
    let receive = match fields.get("receive") {
        Some(at) if matches!(at.node.value, Value::List(_)) => reader.list(Some(at)),
        one => one.into_iter().collect(),
    };
    if let Some(at) = fields.get("receive").filter(|_| receive.len() > MOST_PARTS) {
        reader.error(&at, format!("{}: at most {MOST_PARTS} parts are looked for", at.path));
    }
    let receive = receive.iter().filter_map(|at| bytes(reader, at)).collect();
    Some(TcpCheck { send, receive })
}

fn bytes(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Vec<u8>> {
    let text = reader.text(Some(at.clone()))?;
    if text.is_empty() || text.len() > MOST_BYTES {
        reader.error(at, format!("{} must have from 1 to {MOST_BYTES} bytes", at.path));
        return None;
    }
    Some(text.into_bytes())
}

fn grpc(reader: &mut Reader<'_>, at: &At<'_>) -> Option<GrpcCheck> {
    let fields = reader.fields(at, &GRPC)?;
    let mut named = |field| fields.get(field).and_then(|at| name(reader, &at)).unwrap_or_default();
    Some(GrpcCheck { service: named("serviceName"), authority: named("authority") })
}

/// A name of a host or a service.
fn name(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    let text = reader.text(Some(at.clone()))?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if text.is_empty() || text.len() > 256 || !text.bytes().all(fits) {
        reader.error(at, format!("{} must be a name, and not {}", at.path, quote(&text)));
        return None;
    }
    Some(text)
}

fn is_shown(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

pub(super) fn schema() -> Json {
    let time = |what: &str| text(&format!("{what}, {DURATION}"));
    let schema = object(&CHECK, &[], |name| match name {
        "http" => object(&HTTP, &["path"], |name| match name {
            "path" => text("With its query, such as /healthz."),
            "host" => text("`Host`; without it, the service."),
            "method" => one_of(&CHECK_METHODS, "GET without it."),
            "expectedStatuses" => any("200, `200-299`, or a list of these; 200 without it."),
            _ => Json::Null,
        }),
        "tcp" => object(&TCP, &[], |name| match name {
            "send" => text("What is sent; nothing without it."),
            "receive" => any("What must come: a text, or a list of them in their order."),
            _ => Json::Null,
        }),
        "grpc" => object(&GRPC, &[], |name| match name {
            "serviceName" => text("Which service of the server; without it, the server."),
            "authority" => text("`:authority`; without it, the service."),
            _ => Json::Null,
        }),
        "port" => number("Only this port of the service; without it, all that speak so."),
        "timeout" => time("For one check"),
        "interval" => time("Between two checks of an instance"),
        "initialJitter" => time("The first check comes up to so much later"),
        "intervalJitter" => time("Each next one comes up to so much later"),
        "intervalJitterPercent" => number("And up to so much of the interval."),
        "unhealthyThreshold" => number("So many failures in a row take an instance away."),
        "healthyThreshold" => number("So many successes in a row bring it back."),
        "noTrafficInterval" => time("In place of the interval while nobody calls the service"),
        _ => Json::Null,
    });
    described(
        schema,
        "Whether instances are well: callers' sidecars ask them, and send nothing to those that are not.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::{DestinationIntent, Intent};
    use crate::testing::{destination, object as page_of, one_told};

    fn page(check: &str) -> String {
        page_of("outrigger.io/v1", "TrafficRules", &format!("service: reviews\nhealthCheck: {check}"))
    }

    fn check(text: &str) -> HealthCheckIntent {
        destination(&page(text)).policy.health_check.unwrap()
    }

    #[test]
    fn a_check_has_defaults_and_counts_every_failure() {
        let found = check("{http: {path: /healthz}}");
        let how = HttpCheck { retriable: vec![(100, 599)], ..HttpCheck::of("/healthz") };
        assert_eq!(found.check, HealthCheck::new(CheckHow::Http(how)));
        assert_eq!(found.port, None);
        assert_eq!(check("{tcp: {}}").check, HealthCheck::new(CheckHow::Tcp(TcpCheck::default())));
        assert_eq!(check("{grpc: {}}").check, HealthCheck::new(CheckHow::Grpc(GrpcCheck::default())));
    }

    #[test]
    fn every_field_of_a_check_is_read() {
        let found = check(
            "{http: {path: '/h?a=b', host: h.test, method: HEAD, expectedStatuses: [204, 300-399]}, port: 8080, timeout: 2s, interval: 3s, \
             initialJitter: 4s, intervalJitter: 5s, intervalJitterPercent: 6, unhealthyThreshold: 7, healthyThreshold: 8, noTrafficInterval: 9s}",
        );
        let seconds = Duration::from_secs;
        let http = HttpCheck {
            host: "h.test".into(),
            method: "HEAD".into(),
            expected: vec![(204, 204), (300, 399)],
            retriable: vec![(100, 599)],
            ..HttpCheck::of("/h?a=b")
        };
        let wanted = HealthCheck {
            how: CheckHow::Http(http),
            timeout: seconds(2),
            interval: seconds(3),
            initial_jitter: seconds(4),
            interval_jitter: seconds(5),
            interval_jitter_percent: 6,
            unhealthy_threshold: 7,
            healthy_threshold: 8,
            no_traffic_interval: seconds(9),
        };
        assert_eq!((found.check, found.port), (wanted, Some(8080)));
        let CheckHow::Tcp(tcp) = check(r#"{tcp: {send: "PING\r\n", receive: [PONG, ok]}}"#).check.how else {
            panic!()
        };
        assert_eq!(tcp, TcpCheck { send: b"PING\r\n".into(), receive: vec![b"PONG".into(), b"ok".into()] });
        let CheckHow::Grpc(grpc) = check("{grpc: {serviceName: a.B, authority: a.test}}").check.how else {
            panic!()
        };
        assert_eq!(grpc, GrpcCheck { service: "a.B".into(), authority: "a.test".into() });
    }

    #[test]
    fn the_example_asks_three_services_in_three_ways() {
        let text = include_str!("../../../../../config/examples/health-check.yaml");
        let all: Vec<_> =
            crate::testing::objects(text).into_iter().flat_map(|object| object.intents).collect();
        let [Intent::Destination(catalog), Intent::Destination(pricing), Intent::Destination(cache)] =
            &all[..]
        else {
            panic!("{all:?}")
        };
        let check = |rule: &DestinationIntent| rule.policy.health_check.clone().unwrap();
        let CheckHow::Http(http) = check(catalog).check.how else { panic!() };
        assert!(http.expects(204) && !http.expects(301) && http.retries(301));
        assert_eq!((check(pricing).port, check(cache).check.interval), (Some(9090), Duration::from_secs(5)));
        let CheckHow::Tcp(tcp) = check(cache).check.how else { panic!() };
        assert_eq!(tcp.send, b"PING\r\n");
    }

    #[test]
    fn a_check_that_cannot_be_is_an_error_that_says_why() {
        for (block, wanted) in [
            ("{}", "needs one of http, tcp and grpc"),
            ("{tcp: {}, grpc: {}}", "needs one of http, tcp and grpc"),
            ("{http: {}}", "path"),
            ("{http: {path: healthz}}", "must be a path such as /healthz, and not \"healthz\""),
            ("{http: {path: '/a b'}}", "must be a path"),
            ("{http: {path: '/a#b'}}", "must be a path"),
            ("{http: {path: /, method: CONNECT}}", "GET"),
            ("{http: {path: /, host: 'a/b'}}", "must be a name"),
            ("{http: {path: /, expectedStatuses: [99]}}", "a status such as 200"),
            ("{http: {path: /, expectedStatuses: 300-200}}", "a status such as 200"),
            ("{http: {path: /, expectedStatuses: []}}", "name from 1 to 32"),
            ("{http: {path: /, statuses: 200}}", "unknown field"),
            ("{tcp: {send: ''}}", "must have from 1 to 1024 bytes"),
            ("{grpc: {serviceName: 'a b'}}", "must be a name"),
            ("{tcp: {}, interval: 99ms}", "at least 100ms"),
            ("{tcp: {}, noTrafficInterval: 1ms}", "at least 100ms"),
            ("{tcp: {}, timeout: 0s}", "timeout"),
            ("{tcp: {}, unhealthyThreshold: 0}", "unhealthyThreshold"),
            ("{tcp: {}, intervalJitterPercent: 101}", "intervalJitterPercent"),
            ("{tcp: {}, port: 0}", "port"),
        ] {
            let told = one_told(&page(block));
            assert!(told.contains(wanted), "{block}: {told}");
        }
    }
}
