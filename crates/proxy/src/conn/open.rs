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

/// Judges the open connections whenever configuration or trust changes; a task of each worker, for its life.
pub async fn watch(worker: Rc<Worker>) {
    let mut swapped = worker.process.swapped.subscribe();
    let mut credentials = worker.process.credentials.subscribe();
    let mut known = worker.process.credentials.load().bundle.clone();
    loop {
        // Neither sender ends before the worker does.
        tokio::select! {
            changed = swapped.changed() => if changed.is_err() { return },
            changed = credentials.changed() => if changed.is_err() { return },
        }
        let bundle = worker.process.credentials.load().bundle.clone();
        let trust = (*bundle != *known).then_some(&*bundle);
        let snapshot = worker.snapshot();
        worker.connections.judge(|entry| verdict(entry, &snapshot, trust));
        known = bundle;
    }
}
