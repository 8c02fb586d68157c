//! References to Services that requests can be sent to.

use super::flaw::{Flaws, INVALID_KIND, flaw};
use super::parent::service;
use crate::intent::Target;
use crate::reader::{At, Fields, Reader, Table};

/// Where it stands alone, for a mirror or who is asked.
const OBJECT: Table = Table::new("a backend reference", &["group", "kind", "namespace", "name", "port"]);

/// A Service's port. Nothing for what is no Service, which is told.
pub(super) fn target(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    fields: &Fields<'_>,
    flaws: &mut Flaws,
    otherwise: &str,
) -> Option<Target> {
    let group = reader.text(fields.get("group")).unwrap_or_default();
    let kind = reader.text(fields.get("kind")).unwrap_or_else(|| "Service".to_owned());
    let namespace = reader.text(fields.get("namespace"));
    if !fields.has("name") {
        reader.missing(fields, "name");
    }
    let name = reader.text(fields.get("name"))?;
    let port = reader.port(fields.get("port"));
    if !(group.is_empty() || group == "core") || kind != "Service" {
        let message = format!("{} is a {kind}, and only a Service can be sent to: {otherwise}", at.path);
        flaw(reader, flaws, at, INVALID_KIND, message);
        return None;
    }
    if !fields.has("port") {
        reader.missing(fields, "port");
    }
    Some(Target { host: service(reader, at, &name, namespace.as_deref())?, subset: None, port: Some(port?) })
}

/// A backend that stands alone; `otherwise` says what becomes of it where it is none.
pub(super) fn object(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    flaws: &mut Flaws,
    otherwise: &str,
) -> Option<Target> {
    let fields = reader.fields(at, &OBJECT)?;
    target(reader, at, &fields, flaws, otherwise)
}
