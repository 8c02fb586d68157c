//! Keeps the credential store supplied: the first certificate, then a new one well before the old one ends.
//!
//! ```text
//!            ┌── failure: back off, keep the old certificate ──┐
//!  start ─> ask ── success: swap, write to disk ─> sleep until half to two thirds of its life ─> ask
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::bundle::TrustBundle;
use crate::channel::ControlPlane;
use crate::clock::{rfc3339, unix_time};
use crate::credentials::CredentialStore;
use crate::csr::client::{Issued, KeyAndRequest, RequestFailure, request_with};
use crate::error::IdentityError;
use crate::schedule::{renew_at, retry_pause};
use crate::state_dir::StateDir;
use crate::verify::{Role, verify_peer};

/// For one attempt, connecting included.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Sleeps are cut into pieces, or a suspended laptop would oversleep its certificate.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Certificates are backdated by five minutes; a clock this far off is worth a warning long before that is used up.
const SKEW_WARNING_MILLIS: i64 = 60_000;

/// How this workload proves itself before it has a certificate.
#[derive(Clone)]
pub enum Token {
    /// Not at all: a certificate from the state directory must do.
    None,
    /// The join file's.
    Text(String),
    /// Read anew at each attempt: a Kubernetes service-account token rotates.
    File(PathBuf),
}

impl Token {
    fn read(&self) -> Result<Option<String>, IdentityError> {
        match self {
            Self::None => Ok(None),
            Self::Text(text) => Ok(Some(text.clone())),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(IdentityError::file(path))?;
                match text.trim() {
                    "" => Err(IdentityError::content(path, "there is no token in it".to_owned())),
                    token => Ok(Some(token.to_owned())),
                }
            }
        }
    }
}

/// What the renewal loop needs to know.
#[derive(Clone)]
pub struct Enrollment {
    /// Who we are to become.
    pub identity: SpiffeId,
    /// Whom to ask.
    pub control: ControlPlane,
    /// The proof for the first time, and for when the certificate has expired.
    pub token: Token,
    /// The lifetime to ask for; the authority has the last word. Default of the product: 24 h.
    /// Zero leaves it to the authority.
    pub ttl: Duration,
    /// Where to keep what we get; `None` keeps it in memory only.
    pub state: Option<StateDir>,
}

/// What the admin server shows under `/certs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RenewalStatus {
    /// Who we are, or want to be.
    pub identity: String,
    /// Serial number of the current certificate, hex.
    pub serial: Option<String>,
    /// Start of its validity, RFC 3339.
    pub not_before: Option<String>,
    /// End of its validity, RFC 3339.
    pub not_after: Option<String>,
    /// `trust-domain sha256:…` per root.
    pub bundle_fingerprints: Vec<String>,
    /// When the next attempt is due, RFC 3339.
    pub next_attempt: Option<String>,
    /// Certificates obtained since start.
    pub renewals: u64,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure, until a success.
    pub last_error: Option<String>,
    /// The control plane's clock minus ours, milliseconds, when last measured.
    pub skew_millis: Option<i64>,
}

/// The outside's hold on the loop: reads its status, hurries it up. A clone is another hold on the same.
#[derive(Clone)]
pub struct RenewalHandle {
    shared: Arc<(watch::Sender<RenewalStatus>, Notify)>,
}

impl RenewalHandle {
    /// For one [`run_renewal`].
    pub fn new() -> Self {
        Self { shared: Arc::new((watch::channel(RenewalStatus::default()).0, Notify::new())) }
    }

    /// The status and its changes.
    pub fn status(&self) -> watch::Receiver<RenewalStatus> {
        self.shared.0.subscribe()
    }

    /// Renews at once instead of when it is due.
    pub fn renew_now(&self) {
        self.shared.1.notify_one();
    }

    fn publish(&self, change: impl FnOnce(&mut RenewalStatus)) {
        self.shared.0.send_modify(change);
    }
}

impl Default for RenewalHandle {
    fn default() -> Self {
        Self::new()
    }
}

/// Obtains and renews the certificate, for ever. Start it once per process, on the control runtime; drop it to stop.
pub async fn run_renewal(enrollment: Enrollment, store: CredentialStore, handle: RenewalHandle) {
    let identity = enrollment.identity.to_string();
    handle.publish(|status| status.identity = identity);
    let mut due = first_attempt(&store);
    show_credentials(&store, &handle);
    // The same until it is answered: an answer that was lost may have cost the use of a token.
    let mut asked = None;
    loop {
        handle.publish(|status| status.next_attempt = Some(rfc3339(due)));
        wait_until(due, &handle.shared.1).await;
        let outcome = match timeout(ATTEMPT_TIMEOUT, attempt(&enrollment, &store, &mut asked)).await {
            Ok(outcome) => outcome,
            Err(_) => Err((IdentityError::Control("no answer within 30 s".to_owned()), None)),
        };
        let now = SystemTime::now();
        due = match outcome {
            Ok(skew) => {
                succeeded(&store, &handle, skew);
                let end = store.load().certificate.as_ref().map_or(now, |own| own.not_after());
                renew_at(now, end, fastrand::f64())
            }
            Err((error, skew)) => now + failed(&enrollment, &store, &handle, &error, skew, now),
        };
    }
}

fn first_attempt(store: &CredentialStore) -> SystemTime {
    let now = SystemTime::now();
    match store.load().valid_certificate(now) {
        // Loaded from disk: its issuance was some minutes after its start, which makes no difference here.
        Some(own) => renew_at(own.not_before(), own.not_after(), fastrand::f64()),
        None => now,
    }
}

async fn wait_until(due: SystemTime, hurry: &Notify) {
    loop {
        let Ok(left) = due.duration_since(SystemTime::now()) else { return };
        tokio::select! {
            () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => {}
            () = hurry.notified() => return,
        }
    }
}

type Failure = (IdentityError, Option<i64>);

/// One renewal: by certificate while it is valid, and by token. Any failure of the first leads to the second: a
/// server that does not know our certificate's root ends the connection, which looks like any other broken one.
///
/// A token that is a file's is a Pod's, and goes first: it says that the Pod is there, which a certificate does not, so where it can be
/// judged a Pod's certificate renews nothing. Any other may be spent, and is kept for when there is no certificate.
async fn attempt(
    enrollment: &Enrollment,
    store: &CredentialStore,
    asked: &mut Option<KeyAndRequest>,
) -> Result<Option<i64>, Failure> {
    let by_certificate = store.load().valid_certificate(SystemTime::now()).is_some();
    let token = match enrollment.token.read() {
        Ok(token) => token,
        Err(_) if by_certificate => None,
        Err(error) => return Err((error, None)),
    };
    let pair = match asked.take() {
        Some(pair) => pair,
        None => KeyAndRequest::generate(&enrollment.identity).map_err(|error| (error, None))?,
    };
    let pair = &*asked.insert(pair);
    let mut failures: Vec<(&str, RequestFailure)> = Vec::new();
    let (certificate, token) =
        (by_certificate.then_some(("certificate", None)), token.map(|text| ("token", Some(text))));
    let proofs = match enrollment.token {
        Token::File(_) => [token, certificate],
        Token::None | Token::Text(_) => [certificate, token],
    };
    for (name, proof) in proofs.into_iter().flatten() {
        // A new channel each time: a connection keeps showing the certificate that it began with.
        let channel = match proof {
            None => enrollment.control.channel(),
            Some(_) => enrollment.control.anonymous_channel(),
        };
        match request_with(pair, channel, &enrollment.identity, enrollment.ttl, proof.as_deref()).await {
            Ok(issued) => {
                let skew = issued.skew_millis;
                install(enrollment, store, issued).map_err(|error| (error, skew))?;
                // Only now: an answer that is of no use may have cost the use of a token, too.
                *asked = None;
                return Ok(skew);
            }
            Err(failure) => failures.push((name, failure)),
        }
    }
    let skew = failures.iter().find_map(|(_, failure)| failure.skew_millis);
    let error = match (failures.pop(), failures.pop()) {
        (Some((last, second)), Some((first, one))) if one.error.to_string() != second.error.to_string() => {
            IdentityError::Control(format!("by {first}: {}; by {last}: {}", one.error, second.error))
        }
        (Some((_, only)), _) => only.error,
        (None, _) => IdentityError::Control(
            "there is neither a valid certificate nor a token; make a join file with `outrigger token create`"
                .to_owned(),
        ),
    };
    Err((error, skew))
}

/// Puts the answer into force: first checked against the bundle that comes with it, then swapped in, then on disk.
fn install(enrollment: &Enrollment, store: &CredentialStore, issued: Issued) -> Result<(), IdentityError> {
    let trust_domain = enrollment.identity.trust_domain();
    let certificate = Arc::new(issued.certificate);
    store.update(|old| {
        let bundle = if issued.roots_are_complete {
            old.bundle.replacing(trust_domain, issued.roots)?
        } else {
            old.bundle.union(&TrustBundle::empty().with_roots(trust_domain, issued.roots)?)
        };
        verify_peer(&bundle, certificate.chain(), Role::Client, unix_time(SystemTime::now()))?;
        let unchanged = bundle == *old.bundle;
        if !unchanged {
            tracing::info!(bundle = ?bundle, "the trust bundle has changed");
        }
        let bundle = if unchanged { old.bundle.clone() } else { Arc::new(bundle) };
        Ok::<_, IdentityError>((Some(certificate), bundle))
    })?;
    if let Some(state) = &enrollment.state
        && let Err(error) = state.save(&store.load())
    {
        // The certificate is good all the same; only a restart would miss it.
        tracing::warn!(%error, "the new certificate could not be written to the state directory");
    }
    Ok(())
}

fn show_credentials(store: &CredentialStore, handle: &RenewalHandle) {
    let current = store.load();
    handle.publish(|status| {
        status.bundle_fingerprints = current.bundle.fingerprints();
        if let Some(own) = &current.certificate {
            status.serial = Some(own.serial().to_owned());
            status.not_before = Some(rfc3339(own.not_before()));
            status.not_after = Some(rfc3339(own.not_after()));
        }
    });
}

fn succeeded(store: &CredentialStore, handle: &RenewalHandle, skew: Option<i64>) {
    show_credentials(store, handle);
    handle.publish(|status| {
        status.renewals += 1;
        status.failures = 0;
        status.last_error = None;
        status.skew_millis = skew.or(status.skew_millis);
    });
    if let Some(own) = &store.load().certificate {
        tracing::info!(id = %own.id(), serial = own.serial(), not_after = %rfc3339(own.not_after()), "certificate obtained");
    }
    warn_of_skew(skew);
}

fn failed(
    enrollment: &Enrollment,
    store: &CredentialStore,
    handle: &RenewalHandle,
    error: &IdentityError,
    skew: Option<i64>,
    now: SystemTime,
) -> Duration {
    let mut failures = 0;
    handle.publish(|status| {
        status.failures = status.failures.saturating_add(1);
        failures = status.failures;
        status.last_error = Some(error.to_string());
        status.skew_millis = skew.or(status.skew_millis);
    });
    let current = store.load();
    let remaining = current.certificate.as_ref().map_or(Duration::ZERO, |own| own.remaining(now));
    let pause = retry_pause(failures, remaining, fastrand::f64());
    let id = &enrollment.identity;
    let retry_in = format!("{:.1} s", pause.as_secs_f64());
    match &current.certificate {
        Some(_) if !remaining.is_zero() => {
            let valid_for = format!("{} s", remaining.as_secs());
            tracing::warn!(%id, %error, retry_in, valid_for, "the certificate was not renewed; the old one stays in use");
        }
        Some(own) => {
            let since = rfc3339(own.not_after());
            tracing::error!(%id, %error, retry_in, since, "the certificate has expired and was not renewed; peers will refuse us");
        }
        None => tracing::warn!(%id, %error, retry_in, "no certificate yet"),
    }
    warn_of_skew(skew);
    pause
}

fn warn_of_skew(skew: Option<i64>) {
    if let Some(skew) = skew.filter(|skew| skew.abs() >= SKEW_WARNING_MILLIS) {
        let seconds = skew.abs() / 1000;
        let direction = if skew > 0 { "behind" } else { "ahead of" };
        tracing::warn!(
            "this host's clock is {seconds} s {direction} the control plane's; certificates bear 5 minutes"
        );
    }
}
