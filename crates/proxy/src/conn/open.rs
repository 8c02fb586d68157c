//! Open connections are judged again: when authorization, mTLS mode or trust changes, exactly those that are now forbidden
//! are closed, with flag and reason.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_identity::{TrustBundle, verify};
use outrigger_model::listener::Direction;
use rustls::pki_types::UnixTime;

use super::{authorize, terminate};
use crate::downstream::ConnInfo;
use crate::downstream::registry::{Entry, Open};
use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::snapshot::{Snapshot, TerminalHandle};
use crate::worker::Worker;

/// Whether what is in force now still permits the connection: since it chose its chain and was let in, configuration or
/// trust may have changed. A change that comes after the registration finds it there, so none slips between the two.
///
/// # Errors
/// It is forbidden by now.
pub fn judge(open: &Open, worker: &Worker) -> Result<(), Failure> {
    let credentials = &worker.process.credentials;
    // A signature is dear to verify: only where something did change.
    let changed = open.entry.info.mtls && open.entry.info.verified_by != credentials.trust();
    let trust = changed.then(|| credentials.load());
    verdict(&open.entry, &worker.snapshot(), trust.as_deref().map(|credentials| &*credentials.bundle))
}

fn verdict(entry: &Entry, snapshot: &Snapshot, trust: Option<&TrustBundle>) -> Result<(), Failure> {
    let info = &*entry.info;
    if let Some(failure) = trust.and_then(|bundle| info.revoked(bundle)) {
        return Err(failure);
    }
    if let Some(bundle) = trust.filter(|_| info.mtls) {
        let now = entry.verified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(now);
        verify::verify_peer(bundle, &info.certificates, verify::Role::Client, now).map_err(|problem| {
            let detail = format!("trust has changed: {problem}");
            Failure::downstream(Stage::Terminate, FailureKind::DownstreamTls, detail)
        })?;
    }
    // Where no listener is left for its address at all, what is open is served until it ends.
    let Some(listener) = info.present(snapshot) else { return Ok(()) };
    if Arc::ptr_eq(listener, &info.listener) {
        return Ok(());
    }
    match info.chosen(listener) {
        None if !info.is_tls => Err(terminate::plain_text(info)),
        None => {
            let detail = format!("listener {} has no filter chain for it any more", listener.name());
            Err(Failure::local(Stage::Authorize, FailureKind::NoChain, detail))
        }
        Some(chain) if chain.tls.is_some() != info.mtls => {
            let detail = format!("the mTLS mode of {} has changed", listener.name());
            Err(Failure::local(Stage::Terminate, FailureKind::PlainText, detail))
        }
        Some(chain) => {
            let again = ConnInfo { chain: chain.clone(), listener: listener.clone(), ..info.clone() };
            if info.direction == Direction::Inbound && are_requests_now(info, &again) {
                let detail = format!(
                    "{} serves HTTP by now, and what this connection carries was not looked at",
                    listener.name()
                );
                return Err(Failure::local(Stage::Authorize, FailureKind::NoChain, detail));
            }
            authorize::connection(&again)
        }
    }
}

/// Whether what passed as bytes would be looked at by now, and its requests judged: the port has become one of HTTP, or one whose
/// protocol is detected, which it was not when the connection came.
fn are_requests_now(info: &ConnInfo, again: &ConnInfo) -> bool {
    let are_bytes = |info: &ConnInfo| matches!(info.chain.terminal, TerminalHandle::Tcp(_));
    are_bytes(info) && (!are_bytes(again) || (again.may_be_http() && !info.may_be_http()))
}

/// The number of the trust by which all open connections were judged last.
struct Judged(u64);

impl Judged {
    /// The trust to judge all by, if `number`, which was read before, is another by now. The number comes behind the trust that it counts:
    /// whoever was let in by an older number while that trust was to be seen already is judged when it comes, though it be the same trust.
    fn again<T>(&mut self, number: u64, trust: impl FnOnce() -> T) -> Option<T> {
        let last = std::mem::replace(&mut self.0, number);
        (number != last).then(trust)
    }
}

/// Judges the open connections whenever configuration or trust changes; a task of each worker, for its life.
pub async fn watch(worker: Rc<Worker>) {
    let store = &worker.process.credentials;
    let mut swapped = worker.process.swapped.subscribe();
    let mut credentials = store.subscribe();
    let mut judged = Judged(store.trust());
    loop {
        // Neither sender ends before the worker does.
        tokio::select! {
            changed = swapped.changed() => if changed.is_err() { return },
            changed = credentials.changed() => if changed.is_err() { return },
        }
        let trust = judged.again(store.trust(), || store.load());
        let snapshot = worker.snapshot();
        let trust = trust.as_deref().map(|credentials| &*credentials.bundle);
        worker.connections.judge(|entry| verdict(entry, &snapshot, trust));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer stores a bundle, and then counts it. Who is let in between the two is judged by neither of them.
    #[test]
    fn a_bundle_that_was_seen_before_its_number_is_judged_by_once_more() {
        let mut judged = Judged(7);
        // Woken by another change, which came before the number did.
        assert_eq!(judged.again(7, || "new"), None, "who comes now would never be judged by it");
        assert_eq!(judged.again(8, || "new"), Some("new"));
        assert_eq!(judged.again(8, || "new"), None, "a signature is dear to verify");
        // There and back again: who came in between was let in by what is in force no more.
        assert_eq!(judged.again(10, || "new"), Some("new"));
    }
}
