//! ReferenceGrant: which routes of other namespaces may send requests to services of this one.

use crate::intent::{GrantFrom, GrantIntent, GrantTo, Intent};
use crate::reader::{At, Reader, Table};

const SPEC: Table = Table::new("a ReferenceGrant", &["from", "to"]);
const FROM: Table = Table::new("who may refer", &["group", "kind", "namespace"]);
const TO: Table = Table::new("what may be referred to", &["group", "kind", "name"]);

pub(in crate::dialect) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for item in reader.list(fields.get("from")) {
        let Some(fields) = reader.fields(&item, &FROM) else { continue };
        for name in ["group", "kind", "namespace"].into_iter().filter(|name| !fields.has(name)) {
            reader.missing(&fields, name);
        }
        let mut text = |name| reader.text(fields.get(name)).unwrap_or_default();
        from.push(GrantFrom { group: text("group"), kind: text("kind"), namespace: text("namespace") });
    }
    for item in reader.list(fields.get("to")) {
        let Some(fields) = reader.fields(&item, &TO) else { continue };
        for name in ["group", "kind"].into_iter().filter(|name| !fields.has(name)) {
            reader.missing(&fields, name);
        }
        let mut text = |name| reader.text(fields.get(name));
        let (group, kind, name) = (text("group"), text("kind"), text("name"));
        let name = name.filter(|name| !name.is_empty());
        to.push(GrantTo { group: group.unwrap_or_default(), kind: kind.unwrap_or_default(), name });
    }
    for name in ["from", "to"].into_iter().filter(|name| !fields.has(name)) {
        reader.missing(&fields, name);
    }
    vec![Intent::Grant(GrantIntent { origin: reader.origin.clone(), from, to })]
}
