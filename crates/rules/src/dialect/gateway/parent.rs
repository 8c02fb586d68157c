//! What a route is attached to: `parentRefs`, and the `hostnames` that mean nothing there.

use crate::finding::code;
use crate::intent::{GATEWAY_GROUP, Parent};
use crate::reader::{At, Fields, Reader, Table};

const PARENT: Table =
    Table::new("a parent reference", &["group", "kind", "namespace", "name", "sectionName", "port"]);

pub(super) fn parents(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Vec<Parent> {
    let items = reader.list(fields.get("parentRefs"));
    if items.is_empty() {
        let message =
            "a route without parentRefs is attached to nothing: name the Service whose requests it is for";
        reader.warn(code::NO_EFFECT, &fields.at, message);
    }
    items.iter().filter_map(|item| parent(reader, item)).collect()
}

fn parent(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Parent> {
    let fields = reader.fields(at, &PARENT)?;
    let group = reader.text(fields.get("group")).unwrap_or_else(|| GATEWAY_GROUP.to_owned());
    let kind = reader.text(fields.get("kind")).unwrap_or_else(|| "Gateway".to_owned());
    let namespace = reader.text(fields.get("namespace"));
    if !fields.has("name") {
        reader.missing(&fields, "name");
    }
    let name = reader.text(fields.get("name"))?;
    let section = reader.text(fields.get("sectionName"));
    let port = reader.port(fields.get("port"));
    let is_service = (group.as_str(), kind.as_str()) == ("", "Service");
    let host = is_service.then(|| service(reader, at, &name, namespace.as_deref())).flatten();
    match (group.as_str(), kind.as_str()) {
        ("", "Service") => {}
        (GATEWAY_GROUP, "Gateway") => {
            reader
                .not_implemented(at, "there are no Gateways yet, and the route is not attached to this one");
        }
        _ => {
            let message = format!(
                "{} is a {kind}: routes are attached to Services (group: \"\", kind: Service) only",
                at.path
            );
            reader.warn(code::NOT_IMPLEMENTED, at, message);
        }
    }
    Some(Parent { group, kind, namespace, name, section, port, host, place: at.place() })
}

/// The host of a Service of the Kubernetes kind, in the route's namespace if none is named.
pub(super) fn service(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    name: &str,
    namespace: Option<&str>,
) -> Option<crate::intent::Host> {
    let namespace = namespace.unwrap_or(&reader.origin.namespace).to_owned();
    let labels = name.contains('.') || namespace.contains('.');
    let whole = format!("{name}.{namespace}");
    match reader.resolver().resolve(&whole, &namespace) {
        Ok(host) if !labels && !host.is_wildcard() => Some(host),
        _ => {
            let message = format!("{}: {whole:.80} is not the name of a Service and its namespace", at.path);
            reader.error(at, message);
            None
        }
    }
}

/// A service is called by any of its names, so a mesh infers nothing from them (GEP-1294).
pub(super) fn hostnames(reader: &mut Reader<'_>, at: Option<At<'_>>, parents: &[Parent]) {
    let Some(at) = at else { return };
    if !reader.texts(Some(at.clone())).is_empty() && parents.iter().any(|parent| parent.host.is_some()) {
        let message = format!(
            "{} has no effect where the parent is a Service; to tell requests by their host, match the header Host",
            at.path
        );
        reader.warn(code::NO_EFFECT, &at, message);
    }
}
