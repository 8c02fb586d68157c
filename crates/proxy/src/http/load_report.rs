//! Reports of load (ORCA) in the heads of answers, or else in their trailers. They are passed on, as an Envoy passes them.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use outrigger_model::load_report::LoadReport;
use outrigger_telemetry::logging::Throttle;
use outrigger_xds::orca;
use tokio::time::Instant;

use super::head::{ResponseHead, Trailers};
use crate::runtime::endpoint::EndpointState;
use crate::runtime::reports::Reports;

/// Fields of a report: with the form before it, as text; and as JSON and protobuf.
const TEXT: &str = "endpoint-load-metrics";
const JSON: &str = "endpoint-load-metrics-json";
const BINARY: &str = "endpoint-load-metrics-bin";

/// Senders leave the padding out, or do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Who is to be told of a report that may come in the trailers.
#[derive(Debug)]
pub struct Awaited {
    reports: Arc<Reports>,
    endpoint: Arc<EndpointState>,
}

impl Awaited {
    pub fn new(reports: &Arc<Reports>, endpoint: &Arc<EndpointState>) -> Self {
        Self { reports: reports.clone(), endpoint: endpoint.clone() }
    }

    /// The trailers have come.
    #[cold]
    pub fn trailers(&self, trailers: &Trailers) {
        if let Some(report) = of_fields(|name| trailers.first(name)) {
            tell(&self.reports, &self.endpoint, report);
        }
    }
}

static REFUSED: Throttle = Throttle::new();

/// Takes a report.
pub fn tell(reports: &Reports, endpoint: &EndpointState, report: Result<LoadReport, String>) {
    let taken = reports.take(endpoint.load.reports(), report, Instant::now());
    if let Err(why) = taken
        && let Some(suppressed) = REFUSED.admit()
    {
        tracing::info!(endpoint = %endpoint.address, why, suppressed, "a report of load does not count");
    }
}

/// The report in a head.
pub fn of_head(head: &ResponseHead) -> Option<Result<LoadReport, String>> {
    of_fields(|name| head.first(name))
}

fn of_fields<'f>(first: impl Fn(&'static str) -> Option<&'f [u8]>) -> Option<Result<LoadReport, String>> {
    if let Some(value) = first(BINARY) {
        return Some(binary(value));
    }
    if let Some(value) = first(JSON) {
        return Some(orca::json(value));
    }
    let value = first(TEXT)?;
    let Some((form, rest)) = value.iter().position(|byte| *byte == b' ').map(|at| value.split_at(at)) else {
        return Some(text(value));
    };
    Some(match form {
        b"BIN" => binary(rest.trim_ascii()),
        b"JSON" => orca::json(rest),
        b"TEXT" => text(rest),
        _ => text(value),
    })
}

fn binary(value: &[u8]) -> Result<LoadReport, String> {
    let bytes = BASE64.decode(value).map_err(|error| error.to_string())?;
    orca::binary(&bytes)
}

fn text(value: &[u8]) -> Result<LoadReport, String> {
    orca::text(std::str::from_utf8(value).map_err(|error| error.to_string())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_found_in_each_field_and_form() {
        // cpu_utilization 0.5, rps_fractional 20.
        let bytes = [&[9_u8][..], &0.5_f64.to_le_bytes(), &[49], &20_f64.to_le_bytes()].concat();
        let packed = BASE64.encode(bytes);
        let packed = packed.trim_end_matches('=');
        let wanted = LoadReport { cpu: 0.5, rps: 20.0, ..LoadReport::default() };
        for (name, value) in [
            (BINARY, packed.to_owned()),
            (TEXT, format!("BIN {packed}")),
            (TEXT, "cpu_utilization=0.5,rps_fractional=20".to_owned()),
            (TEXT, "cpu_utilization:0.5, rps_fractional:20".to_owned()),
            (TEXT, "TEXT cpu_utilization=0.5,rps_fractional=20".to_owned()),
            (TEXT, "JSON {\"cpu_utilization\": 0.5, \"rpsFractional\": 20}".to_owned()),
            (JSON, "{\"cpu_utilization\": 0.5, \"rpsFractional\": 20}".to_owned()),
        ] {
            let found = of_fields(|field| (field == name).then_some(value.as_bytes())).unwrap();
            assert_eq!(found.as_ref(), Ok(&wanted), "{name}: {value}");
        }
        assert!(of_fields(|_| None).is_none());
        for (name, value) in [(BINARY, "%"), (TEXT, "BIN %"), (TEXT, "\u{e9}=1"), (JSON, "{")] {
            assert!(of_fields(|field| (field == name).then_some(value.as_bytes())).unwrap().is_err());
        }
    }
}
