//! ExternalAuth (GEP-1494): a service that is asked about each request of a rule. Whatever is wrong with it, no request passes unasked.

use std::time::Duration;

use outrigger_model::ext_authz::{AuthzBody, AuthzService, ExtAuthz, HttpAuthz, is_path_prefix};
use outrigger_model::matcher::StringMatch;

use super::flaw::{Flaws, UNSUPPORTED, flaw};
use super::reference;
use crate::dialect::shared::bounded;
use crate::finding::quote;
use crate::intent::ExternalAuth;
use crate::reader::{At, Fields, Reader, Table};

const AUTH: Table =
    Table::new("an external authorization", &["protocol", "backendRef", "grpc", "http", "forwardBody"]);
const GRPC: Table = Table::new("an authorization by gRPC", &["allowedHeaders"]);
const HTTP: Table =
    Table::new("an authorization by HTTP", &["path", "allowedHeaders", "allowedResponseHeaders"]);
const BODY: Table = Table::new("a body that is forwarded", &["maxSize"]);

/// For the answer: the API says nothing of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Nothing where nobody can be asked.
pub(super) fn read(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<ExternalAuth> {
    let fields = reader.fields(at, &AUTH)?;
    for name in ["protocol", "backendRef"] {
        if !fields.has(name) {
            reader.missing(&fields, name);
        }
    }
    let protocols = [("HTTP", ("http", "grpc")), ("GRPC", ("grpc", "http"))];
    let (own, other) = reader.choice(fields.get("protocol"), &protocols)?;
    if let Some(at) = fields.get(other) {
        reader.error(&at, format!("{} belongs to the other protocol", at.path));
    }
    let Some(config) = fields.get(own) else {
        reader.missing(&fields, own);
        return None;
    };
    let (service, allowed_headers) = match own {
        "grpc" => grpc(reader, &config)?,
        _ => http(reader, &config, flaws)?,
    };
    let body = fields.get("forwardBody").and_then(|at| body(reader, &at));
    let backend = fields.get("backendRef")?;
    let target =
        reference::object(reader, &backend, flaws, "requests of the rule are answered with an error")?;
    let plain = ExtAuthz::new(service, "");
    let filter = ExtAuthz { timeout: PATIENCE, body, allowed_headers, ..plain };
    Some(ExternalAuth { target, filter, place: backend.place() })
}

type Service = (AuthzService, Option<Vec<StringMatch>>);

/// Without a list all headers go along.
fn grpc(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Service> {
    let fields = reader.fields(at, &GRPC)?;
    let allowed = names(reader, &fields, "allowedHeaders");
    Some((AuthzService::Grpc { authority: String::new(), metadata: Vec::new() }, allowed))
}

/// Without a list only those headers go along that always do.
fn http(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<Service> {
    let fields = reader.fields(at, &HTTP)?;
    let path_prefix = reader.text(fields.get("path")).unwrap_or_default();
    if let Some(at) = fields.get("path").filter(|_| !is_path_prefix(&path_prefix)) {
        reader
            .error(&at, format!("{} must be the beginning of a path, not {}", at.path, quote(&path_prefix)));
        return None;
    }
    let allowed = names(reader, &fields, "allowedHeaders");
    // What describes the answer itself would come over what describes the request.
    let Some(upstream_headers) = names(reader, &fields, "allowedResponseHeaders") else {
        let message = format!(
            "{}: without allowedResponseHeaders all headers of an answer would be copied into the request, its content type too, which \
             Outrigger does not do: requests of the rule are answered with an error. Name those that the backend needs",
            at.path
        );
        flaw(reader, flaws, at, UNSUPPORTED, message);
        return None;
    };
    Some((AuthzService::Http(HttpAuthz { path_prefix, upstream_headers, ..HttpAuthz::default() }), allowed))
}

/// Names of headers; nothing for none.
fn names(reader: &mut Reader<'_>, fields: &Fields<'_>, name: &'static str) -> Option<Vec<StringMatch>> {
    bounded(reader, fields, &[(name, 64)]);
    let mut all = Vec::new();
    for item in reader.list(fields.get(name)) {
        let Some(text) = reader.text(Some(item.clone())) else { continue };
        all.extend(reader.header_name(&item, &text).map(StringMatch::exact));
    }
    Some(all).filter(|all| !all.is_empty())
}

/// A longer one is refused; of 0 bytes there is none.
fn body(reader: &mut Reader<'_>, at: &At<'_>) -> Option<AuthzBody> {
    let fields = reader.fields(at, &BODY)?;
    let most = reader.number(fields.get("maxSize"), 0..=u32::from(u16::MAX)).unwrap_or(0);
    (most > 0).then_some(AuthzBody { max_bytes: most, allow_partial: false, as_bytes: false })
}
