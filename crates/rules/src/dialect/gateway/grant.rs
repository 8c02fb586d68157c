//! ReferenceGrant: which routes of other namespaces may refer to objects of this one. A mesh needs none (GEP-1294): who may call whom,
//! policies say.

use crate::finding::code;
use crate::intent::Intent;
use crate::reader::{At, Reader, Table};

const SPEC: Table = Table::new("a ReferenceGrant", &["from", "to"]);
const FROM: Table = Table::new("who may refer", &["group", "kind", "namespace"]);
const TO: Table = Table::new("what may be referred to", &["group", "kind", "name"]);

pub(in crate::dialect) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let lists: [(_, &'static Table, &[&'static str]); 2] =
        [("from", &FROM, &["group", "kind", "namespace"]), ("to", &TO, &["group", "kind"])];
    for (list, table, needed) in lists {
        if !fields.has(list) {
            reader.missing(&fields, list);
        }
        for item in reader.list(fields.get(list)) {
            let Some(fields) = reader.fields(&item, table) else { continue };
            for name in table.known {
                reader.text(fields.get(name));
            }
            for name in needed.iter().filter(|name| !fields.has(name)) {
                reader.missing(&fields, name);
            }
        }
    }
    let message = "a ReferenceGrant has no effect: routes of services may send to services of any namespace, and there are no Gateways \
                   yet, whose routes need one";
    reader.warn(code::NO_EFFECT, spec, message);
    Vec::new()
}
