//! How long streams may last and be silent, in a native page.

use outrigger_model::route::{GrpcTimeout, StreamLimits};
use serde_json::Value as Json;

use crate::reader::{At, Reader, Table};
use crate::schema::{DURATION, described, object, text};

const STREAMS: Table = Table::new("limits of streams", &["maxDuration", "idleTimeout", "grpcTimeout"]);
const GRPC: Table = Table::new("the own time of calls", &["max", "offset"]);

pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<StreamLimits> {
    let at = at?;
    let fields = reader.fields(&at, &STREAMS)?;
    if STREAMS.known.iter().all(|name| !fields.has(name)) {
        reader.error(&at, format!("{} says nothing: it needs {}", at.path, STREAMS.known.join(", ")));
    }
    let grpc_duration = fields.get("grpcTimeout").and_then(|at| {
        let fields = reader.fields(&at, &GRPC)?;
        let max = reader.duration(fields.get("max")).unwrap_or_default();
        Some(GrpcTimeout { max, offset: reader.duration(fields.get("offset")).unwrap_or_default() })
    });
    Some(StreamLimits {
        max_duration: reader.duration(fields.get("maxDuration")),
        grpc_duration,
        grpc_timeout: None,
        idle_timeout: reader.duration(fields.get("idleTimeout")),
    })
}

pub(super) fn schema() -> Json {
    let schema = object(&STREAMS, &[], |name| match name {
        "maxDuration" => {
            text(&format!("From the request's head to the end of its answer, {DURATION} 0s is for ever."))
        }
        "idleTimeout" => text(&format!("Without a byte in either direction, {DURATION} 0s is for ever.")),
        "grpcTimeout" => object(&GRPC, &[], |name| match name {
            "max" => text("At most so much; 0s, or nothing, is whatever the call says."),
            "offset" => text("So much less than the call says."),
            _ => Json::Null,
        }),
        _ => Json::Null,
    });
    described(schema, "How long streams may last and be silent.")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{object as page_of, one_told, route};

    fn page(spec: &str) -> String {
        page_of("outrigger.io/v1", "TrafficRules", &format!("service: reviews\n{spec}"))
    }

    #[test]
    fn limits_of_streams_are_the_pages_or_the_routes_own() {
        let found = route(&page(
            "streams: {maxDuration: 1h, idleTimeout: 0s, grpcTimeout: {max: 5s, offset: 1s}}\n\
             routes:\n- {match: {path: /a}}\n- {streams: {maxDuration: 2s}}",
        ));
        let of = |at: usize| **found.http[at].forward().unwrap().limits.as_ref().unwrap();
        let seconds = Duration::from_secs;
        let whole = StreamLimits {
            max_duration: Some(seconds(3600)),
            grpc_duration: Some(GrpcTimeout { max: seconds(5), offset: seconds(1) }),
            grpc_timeout: None,
            idle_timeout: Some(Duration::ZERO),
        };
        assert_eq!(of(0), whole);
        assert_eq!(of(1), StreamLimits { max_duration: Some(seconds(2)), ..StreamLimits::default() });
    }

    #[test]
    fn limits_that_say_nothing_are_an_error() {
        assert!(one_told(&page("streams: {}")).contains("says nothing"));
        assert!(one_told(&page("streams: {maxDuration: soon}")).contains("must be a duration"));
    }
}
