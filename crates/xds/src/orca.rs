//! Reports of load that endpoints send with responses, in the forms that they have in headers (ORCA, gRFC A51).

use outrigger_model::load_report::LoadReport;
use prost::Message;

use crate::wire::missing::OrcaLoadReport;

/// Metrics of a report, whatever its form.
const MOST: usize = 64;

fn bounded(metrics: usize) -> Result<(), String> {
    if metrics > MOST { Err(format!("has more than {MOST} metrics")) } else { Ok(()) }
}

/// Of `xds.data.orca.v3.OrcaLoadReport`, its bytes.
///
/// # Errors
/// It is none.
pub fn binary(bytes: &[u8]) -> Result<LoadReport, String> {
    let wire = OrcaLoadReport::decode(bytes).map_err(|error| error.to_string())?;
    let mut report = LoadReport {
        cpu: wire.cpu_utilization,
        memory: wire.mem_utilization,
        application: wire.application_utilization,
        rps: wire.rps_fractional,
        eps: wire.eps,
        ..LoadReport::default()
    };
    let maps = [
        ("request_cost", wire.request_cost),
        ("utilization", wire.utilization),
        ("named_metrics", wire.named_metrics),
    ];
    bounded(maps.iter().map(|(_, values)| values.len()).sum())?;
    for (map, values) in maps {
        report.more.extend(values.into_iter().map(|(key, value)| (format!("{map}.{key}"), value)));
    }
    Ok(report)
}

/// The same message as JSON.
///
/// # Errors
/// It is none.
pub fn json(text: &[u8]) -> Result<LoadReport, String> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let fields = value.as_object().ok_or("is no object")?;
    let of = |value: &serde_json::Value| value.as_object().map_or(1, serde_json::Map::len);
    bounded(fields.values().map(of).sum())?;
    let mut report = LoadReport::default();
    for (name, value) in fields {
        let name = snake(name);
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    put(&mut report, &format!("{name}.{key}"), value.as_f64())?;
                }
            }
            // What was in use before `rps_fractional`.
            _ if name == "rps" => {}
            value => put(&mut report, &name, value.as_f64())?,
        }
    }
    Ok(report)
}

/// `cpu_utilization=0.3, named_metrics.queue=7`, with a colon in place of the sign too.
///
/// # Errors
/// The name of what is not understood.
pub fn text(text: &str) -> Result<LoadReport, String> {
    let mut report = LoadReport::default();
    bounded(text.split(',').count())?;
    for pair in text.split(',') {
        let (name, value) = pair.split_once(['=', ':']).ok_or_else(|| format!("\"{pair}\" has no value"))?;
        let value = value.trim().parse::<f64>().ok().filter(|value| value.is_finite());
        put(&mut report, name.trim(), value)?;
    }
    Ok(report)
}

fn put(report: &mut LoadReport, name: &str, value: Option<f64>) -> Result<(), String> {
    let value = value.ok_or_else(|| format!("{name} is no number"))?;
    if report.set(name, value) { Ok(()) } else { Err(format!("{name} is not known")) }
}

/// Protobuf's JSON has names in both forms.
fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_the_same_in_all_forms() {
        let wire = OrcaLoadReport {
            cpu_utilization: 0.5,
            rps_fractional: 20.0,
            eps: 1.0,
            named_metrics: [("queue".to_owned(), 7.0)].into(),
            ..Default::default()
        };
        let wanted = LoadReport {
            cpu: 0.5,
            rps: 20.0,
            eps: 1.0,
            more: [("named_metrics.queue".to_owned(), 7.0)].into(),
            ..LoadReport::default()
        };
        assert_eq!(binary(&wire.encode_to_vec()).unwrap(), wanted);
        for form in [
            "cpu_utilization=0.5, rps_fractional=20,eps=1,named_metrics.queue=7",
            "cpu_utilization:0.5,rps_fractional: 20,eps:1,named_metrics.queue:7",
        ] {
            assert_eq!(text(form).unwrap(), wanted, "{form}");
        }
        let object = br#"{"cpuUtilization": 0.5, "rps_fractional": 20, "eps": 1.0, "rps": "3", "namedMetrics": {"queue": 7}}"#;
        assert_eq!(json(object).unwrap(), wanted);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(binary(b"\xff\xff").is_err());
        for form in [
            "",
            "cpu_utilization",
            "cpu_utilization=x",
            "cpu_utilization=NaN",
            "cpu_utilization=inf",
            "speed=1",
            "named_metrics.=1",
        ] {
            assert!(text(form).is_err(), "{form}");
        }
        assert!(text(&["eps=1"; MOST + 1].join(",")).is_err());
        let named = |count: usize| -> std::collections::HashMap<String, f64> {
            (0..count).map(|i| (format!("m{i}"), 1.0)).collect()
        };
        let wire =
            |count| OrcaLoadReport { named_metrics: named(count), ..Default::default() }.encode_to_vec();
        assert!(binary(&wire(MOST)).is_ok() && binary(&wire(MOST + 1)).is_err());
        let object = |count| {
            let named: std::collections::BTreeMap<String, f64> = named(count).into_iter().collect();
            serde_json::json!({ "namedMetrics": named }).to_string()
        };
        assert!(json(object(MOST).as_bytes()).is_ok() && json(object(MOST + 1).as_bytes()).is_err());
        for form in
            ["", "[]", "{\"cpuUtilization\": \"x\"}", "{\"speed\": 1}", "{\"namedMetrics\": {\"\": 1}}"]
        {
            assert!(json(form.as_bytes()).is_err(), "{form}");
        }
    }
}
