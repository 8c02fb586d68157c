//! Sidecars introduce themselves: the first request of each connection between two of them carries who calls, so that
//! inbound metrics name a workload and not only its service account. No later request pays for it, and no application sees
//! it: `x-outrigger-` headers are removed from whatever arrives.
//!
//! What is said is a hint for metrics, never an identity: it counts only for a peer that proved one, and in its namespace.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;

use outrigger_model::endpoint::Workload;
use outrigger_model::identity::SpiffeId;

use crate::http::head::RequestHead;

/// `VERSION;WORKLOAD;NAMESPACE;SERVICE;REVISION;CLUSTER`.
pub const HEADER: &str = "x-outrigger-peer";

/// Istio's, which Envoys of other meshes send with every request.
const FOREIGN: &str = "x-envoy-peer-metadata";

const VERSION: &str = "1";

/// Longer is not read.
const MAX_VALUE: usize = 1024;

/// Names of workloads and services have at most 253 characters, the others 63 (RFC 1123).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// What a downstream connection knows of its peer's workload.
#[derive(Debug, Clone, Default)]
pub struct Introduction {
    /// The first request has come.
    heard: Cell<bool>,
    /// It carried Istio's form, so that the others do too.
    foreign: Cell<bool>,
    peer: OnceCell<Arc<Introduced>>,
}

/// Who a peer says it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Introduced {
    /// Its workload.
    pub workload: Workload,
    /// The cluster (of workloads) that it runs in.
    pub cluster: String,
}

impl Introduction {
    /// Who the peer said it is.
    pub fn peer(&self) -> Option<&Arc<Introduced>> {
        self.peer.get()
    }

    /// Hears a peer out that proved an identity, before its headers are removed.
    pub fn listen(&self, proved: &SpiffeId, head: &mut RequestHead) {
        if !self.heard.replace(true) {
            self.foreign.set(head.has("x-envoy-peer-metadata-id"));
            let said = head.first(HEADER).and_then(parse).filter(|said| is_credible(said, proved));
            if let Some(said) = said {
                let _ = self.peer.set(Arc::new(said));
            }
        }
        if self.foreign.get() {
            head.remove_prefix(FOREIGN);
        }
    }
}

/// The value of the header; `None` if a name has what a header or the format cannot carry.
pub fn text(workload: &Workload, cluster: &str) -> Option<Box<str>> {
    let Workload { name, namespace, service, revision } = workload;
    let fields = [VERSION, name, namespace, service, revision, cluster];
    let clean = |field: &&str| field.bytes().all(|b| b.is_ascii_graphic() && b != b';');
    (fields.iter().all(clean) && !name.is_empty()).then(|| fields.join(";").into())
}

fn parse(value: &[u8]) -> Option<Introduced> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= MAX_VALUE)?;
    // A later version may say more at the end.
    let mut fields = text.strip_prefix(VERSION)?.strip_prefix(';')?.split(';').map(str::to_owned);
    let mut next = || fields.next();
    let workload = Workload { name: next()?, namespace: next()?, service: next()?, revision: next()? };
    let said = Introduced { workload, cluster: next()? };
    let Workload { name, namespace, service, revision } = &said.workload;
    let fits = [name, service].iter().all(|name| name.len() <= MAX_NAME)
        && [namespace, revision, &said.cluster].iter().all(|name| name.len() <= MAX_LABEL);
    (fits && !said.workload.name.is_empty()).then_some(said)
}

fn is_credible(said: &Introduced, proved: &SpiffeId) -> bool {
    proved.namespace() == Some(said.workload.namespace.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload {
            name: "web-v1".into(),
            namespace: "shop".into(),
            service: "web".into(),
            revision: String::new(),
        }
    }

    #[test]
    fn an_introduction_reads_as_it_was_written() {
        let text = text(&workload(), "home").unwrap();
        assert_eq!(&*text, "1;web-v1;shop;web;;home");
        let read = parse(text.as_bytes()).unwrap();
        assert_eq!((read.workload, read.cluster.as_str()), (workload(), "home"));
        assert!(parse(b"1;web-v1;shop;web;;home;more of a later version").is_some());
    }

    #[test]
    fn what_is_none_is_nothing() {
        let long = format!("1;{};shop;web;;home", "x".repeat(MAX_NAME + 1));
        for bad in
            ["", "1", "1;web;shop", "2;web-v1;shop;web;;home", "1;;shop;web;;home", "1;w;s;a;\u{fffd}", &long]
        {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        for name in ["a;b", "a b", "\u{e4}", ""] {
            assert_eq!(text(&Workload { name: name.into(), ..workload() }, ""), None, "{name}");
        }
    }

    #[test]
    fn a_peer_speaks_only_for_its_own_namespace() {
        let said = parse(b"1;web-v1;shop;web;;home").unwrap();
        assert!(is_credible(&said, &SpiffeId::parse("spiffe://td/ns/shop/sa/web").unwrap()));
        assert!(!is_credible(&said, &SpiffeId::parse("spiffe://td/ns/other/sa/web").unwrap()));
    }
}
