//! `egress`: which services are known.

use std::collections::HashSet;

use super::{not_bound, port};
use crate::dialect::shared::bounded;
use crate::finding::quote;
use crate::intent::{Egress, Host, Import, Whose};
use crate::reader::{At, Fields, Reader, Table};

const EGRESS: Table = Table::new("an egress listener", &["port", "bind", "captureMode", "hosts"]);

const CAPTURED: &str =
    "nothing is opened for it; its hosts are reached as all others are, by their names and addresses";

/// All egress listeners; `None` where nothing is said, so that everything is known.
pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<Vec<Egress>> {
    let at = at?;
    let items = reader.list(Some(at));
    let mut all: Vec<Egress> = Vec::new();
    let mut ports = HashSet::new();
    let last = items.len().checked_sub(1)?;
    for (index, item) in items.iter().enumerate() {
        let Some(read) = one(reader, item) else { continue };
        match read.port {
            Some(port) if !ports.insert(port) => {
                reader.error(item, format!("{}: the port {port} has a listener already", item.path));
            }
            None if index != last => {
                let message = format!("{} has no port, and only the last listener may have none", item.path);
                reader.error(item, message);
            }
            _ => all.push(read),
        }
    }
    Some(all)
}

fn one(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Egress> {
    let fields = reader.fields(at, &EGRESS)?;
    bounded(reader, &fields, &[("hosts", 4096)]);
    not_bound(reader, fields.get("captureMode"), CAPTURED);
    bind(reader, &fields);
    let spoken = match fields.get("port") {
        Some(at) => {
            let (number, protocol) = port(reader, &at)?;
            let number = u16::try_from(number).ok().filter(|number| *number > 0);
            if number.is_none() && !fields.has("bind") {
                reader.error(&at, format!("{}.number must be from 1 to 65535", at.path));
            }
            Some((number?, protocol))
        }
        None => None,
    };
    let items = reader.list(fields.get("hosts"));
    if items.is_empty() {
        reader.missing(&fields, "hosts");
    }
    let hosts = items.iter().filter_map(|item| import(reader, item)).collect();
    let (port, protocol) = (spoken.map(|(port, _)| port), spoken.map(|(_, protocol)| protocol));
    Some(Egress { port, protocol, hosts, place: at.place() })
}

fn bind(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<()> {
    let at = fields.get("bind")?;
    let text = reader.text(Some(at.clone()))?;
    if text.is_empty() {
        return None;
    }
    if !fields.has("port") {
        reader.error(&at, format!("{} needs a port beside it", at.path));
    }
    let is_file = text.strip_prefix("unix://").is_some_and(|path| path.starts_with(['/', '@']));
    if !is_file && text.parse::<std::net::IpAddr>().is_err() {
        let message = format!("{} must be an address or unix:// and a path, not {}", at.path, quote(&text));
        reader.error(&at, message);
        return None;
    }
    if is_file {
        let message = format!(
            "{} is a socket file, and sidecars of Outrigger have none: let the application call the services by name",
            at.path
        );
        reader.error(&at, message);
        return None;
    }
    reader.not_implemented(&at, CAPTURED);
    Some(())
}

/// `namespace/name`; `~` before it excludes, alone it is no namespace.
fn import(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Import> {
    let text = reader.text(Some(at.clone()))?;
    let Some((namespace, name)) = text.split_once('/') else {
        let message = format!(
            "{} must be a namespace and a host, such as \"shop/*\" or \"./reviews.shop.svc.cluster.local\", not {}",
            at.path,
            quote(&text)
        );
        reader.error(at, message);
        return None;
    };
    let (exclude, namespace) = match namespace.strip_prefix('~') {
        Some(rest) => (true, if rest.is_empty() { "*" } else { rest }),
        None => (false, namespace),
    };
    let namespace = match namespace {
        "*" => Whose::Any,
        "." => Whose::Own,
        name if is_namespace(name) => Whose::Named(name.to_owned()),
        other => {
            let message = format!(
                "{}: {} is no namespace; it may be a name, \".\" for the workload's own, \"*\" for any, and \"~\" before it excludes",
                at.path,
                quote(other)
            );
            reader.error(at, message);
            return None;
        }
    };
    let labels = name.strip_suffix('.').unwrap_or(name).split('.').count();
    let is_short = labels == 1 && name != "*";
    let of = match &namespace {
        Whose::Own => reader.origin.namespace.clone(),
        Whose::Named(name) => name.clone(),
        Whose::Any if is_short => {
            let message = format!(
                "{}: {} is a service of no namespace; write its whole name, as in \"*/reviews.shop.svc.cluster.local\"",
                at.path,
                quote(name)
            );
            reader.error(at, message);
            return None;
        }
        Whose::Any => String::new(),
    };
    let hosts = names(reader, at, name, &of)?;
    Some(Import { exclude, namespace, hosts, is_short, place: at.place() })
}

/// What a name may mean: as it is, and where it is a service's of one or two labels that.
fn names(reader: &mut Reader<'_>, at: &At<'_>, name: &str, namespace: &str) -> Option<Vec<Host>> {
    let resolver = reader.resolver();
    let whole = resolver.resolve_whole(name, namespace);
    let short = resolver.resolve(name, namespace);
    match (whole, short) {
        (Ok(whole), Ok(short)) if whole == short => Some(vec![whole]),
        (Ok(whole), Ok(short)) => Some(vec![whole, short]),
        (Err(error), _) | (_, Err(error)) => {
            reader.error(at, format!("{}: {error}", at.path));
            None
        }
    }
}

/// A DNS label, as Kubernetes names namespaces.
fn is_namespace(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
