//! Policies for calls from pages of other origins, in the words that the dialects share.

use outrigger_model::route::Cors;

use super::shared::{Spelling, string_match};
use crate::finding::code;
use crate::reader::{At, Reader, Table, is_header_name};
use crate::schema;
use crate::yaml::Value;

const CORS: Table = Table::new(
    "a CORS policy",
    &[
        "allowOrigins",
        "allowOrigin",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
        "maxAge",
        "allowCredentials",
        "unmatchedPreflights",
    ],
);

/// The fields as a schema, natively.
pub(super) fn schema() -> serde_json::Value {
    let texts = |what| schema::list(schema::text(""), what);
    schema::object(&CORS, &[], |name| match name {
        "allowOrigins" => schema::list(
            schema::any("A text is exact; else exact, prefix, suffix or regex."),
            "Whose pages may call.",
        ),
        "allowOrigin" => texts("Its old name, exact."),
        "allowMethods" => texts("Methods that they may use."),
        "allowHeaders" => texts("Headers that they may send."),
        "exposeHeaders" => texts("Headers that they may see."),
        "maxAge" => schema::text("How long a browser may remember the answer, such as 1m."),
        "allowCredentials" => schema::boolean("Whether they may send the user's credentials."),
        "unmatchedPreflights" => {
            schema::one_of(&["UNSPECIFIED", "FORWARD", "IGNORE"], "What becomes of preflights of others.")
        }
        _ => serde_json::Value::Null,
    })
}

/// `corsPolicy` of Istio and `cors` of native pages.
pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>, spelling: Spelling) -> Option<Cors> {
    let at = at?;
    let fields = reader.fields(&at, &CORS)?;
    let mut allow_origins = Vec::new();
    for item in reader.list(fields.get("allowOrigins")) {
        allow_origins.extend(string_match(reader, Some(item), spelling, false));
    }
    // Its old name, a list of texts.
    for item in reader.list(fields.get("allowOrigin")) {
        allow_origins.extend(string_match(reader, Some(item), Spelling::Native, false));
    }
    if allow_origins.is_empty() && !fields.has("allowOrigins") && !fields.has("allowOrigin") {
        let message = format!("{} allows no origin, so it has no effect: write allowOrigins", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
    let words = [("UNSPECIFIED", true), ("FORWARD", true), ("IGNORE", false)];
    Some(Cors {
        allow_origins,
        allow_methods: names(reader, fields.get("allowMethods"), "a method"),
        allow_headers: names(reader, fields.get("allowHeaders"), "a header name"),
        expose_headers: names(reader, fields.get("exposeHeaders"), "a header name"),
        max_age: reader
            .duration(fields.get("maxAge"))
            .map(|age| age.as_secs().to_string())
            .unwrap_or_default(),
        allow_credentials: reader.boolean(fields.get("allowCredentials")).unwrap_or(false),
        forward_not_matching: reader.choice(fields.get("unmatchedPreflights"), &words).unwrap_or(true),
        ..Cors::default()
    })
}

/// A list of tokens (RFC 9110, 5.6.2) as the one text that is answered.
fn names(reader: &mut Reader<'_>, at: Option<At<'_>>, what: &str) -> String {
    let mut names = Vec::new();
    for item in reader.list(at) {
        match &item.node.value {
            Value::Text(name) if is_header_name(name) => names.push(name.clone()),
            other => {
                let message = format!("{} must be {what}, not {other}", item.path);
                reader.error(&item, message);
            }
        }
    }
    names.join(",")
}
