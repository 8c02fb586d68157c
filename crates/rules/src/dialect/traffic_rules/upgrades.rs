//! What requests to a service may switch to besides WebSocket.

use outrigger_model::route::RouteUpgrade;
use serde_json::Value;

use crate::reader::{At, Reader};
use crate::schema::{list, text};

/// Of one page.
const MOST: usize = 16;

pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<String> {
    let items = reader.list(at.clone());
    if let Some(at) = at.filter(|_| items.len() > MOST) {
        reader.error(&at, format!("{}: at most {MOST} protocols are taken", at.path));
        return Vec::new();
    }
    let mut names = Vec::new();
    for item in items {
        let Some(name) = reader.text(Some(item.clone())) else { continue };
        if RouteUpgrade::is_name(&name) {
            names.push(name.to_ascii_lowercase());
        } else {
            let message =
                format!("{}: {name:?} is no name of a protocol, such as tcp or spdy/3.1", item.path);
            reader.error(&item, message);
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

pub(super) fn schema() -> Value {
    list(
        text(""),
        "Protocols besides websocket that requests to it may switch to, such as tcp or spdy/3.1; connect is CONNECT.",
    )
}

#[cfg(test)]
mod tests {
    use crate::testing::{limits, object, one_told};

    fn page(upgrades: &str) -> String {
        object("outrigger.io/v1", "TrafficRules", &format!("service: reviews\nupgrades: {upgrades}"))
    }

    #[test]
    fn protocols_are_named_in_any_case_and_nothing_else_is_one() {
        assert_eq!(limits(&page("[TCP, SPDY/3.1, tcp, connect]")).upgrades, ["connect", "spdy/3.1", "tcp"]);
        for (bad, wanted) in [
            ("[a b]", "spec.upgrades[0]: \"a b\" is no name of a protocol"),
            ("[tcp, /1]", "spec.upgrades[1]"),
            ("[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q]", "at most 16 protocols"),
        ] {
            let told = one_told(&page(bad));
            assert!(told.contains(wanted), "{bad}: {told}");
        }
    }
}
