//! Which replica writes: the holder of a Lease (coordination.k8s.io/v1), by the rules and times of client-go's leader election.
//!
//! The holder renews; others take the Lease when they have not seen it renewed for its whole length, each by its own clock. The holder
//! counts from before it asked, and ends by itself earlier than others can begin: what it may still have on its way by then has less
//! patience than is left. One that stops gives the Lease back.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Trouble;

/// How long others wait for a holder that they do not hear of (client-go's LeaseDuration).
const LENGTH: Duration = Duration::from_secs(15);
/// How long the holder goes on without a renewal (RenewDeadline). A write that begins before it ends within [`LENGTH`]: none may take
/// longer than [`WRITE`].
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries (RetryPeriod); up to a fifth more by chance.
const RETRY: Duration = Duration::from_secs(2);
/// For a write of the leader, at most.
pub(crate) const WRITE: Duration = Duration::from_secs(5);
/// For an answer about the Lease.
const PATIENCE: Duration = Duration::from_secs(4);

/// Whether this one leads.
#[derive(Debug, Clone, Copy, Default)]
struct Term {
    /// Until when, if it does.
    until: Option<Instant>,
    /// How often it has become the leader.
    number: u64,
}

impl Term {
    fn runs(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }
}

/// Whether this control plane is the one that writes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Leadership {
    /// Absent where there are no others.
    term: Option<watch::Receiver<Term>>,
}

impl Leadership {
    /// There are no others.
    pub(crate) fn alone() -> Self {
        Self { term: None }
    }

    /// Whether this one leads now. Asked before each write.
    pub(crate) fn leads(&self) -> bool {
        self.term.as_ref().is_none_or(|term| term.borrow().runs())
    }

    /// Returns when this one leads, with the number of its term: where that is another than before, others may have written meanwhile.
    pub(crate) async fn lead(&self) -> u64 {
        let Some(mut term) = self.term.clone() else { return 0 };
        let number = term.wait_for(Term::runs).await.map(|term| term.number).ok();
        match number {
            Some(number) => number,
            // Without a candidate nobody will ever lead.
            None => std::future::pending().await,
        }
    }
}

/// What is remembered of the Lease: what it said, and since when by our own clock.
struct Observed {
    holder: String,
    renewed: Option<MicroTime>,
    version: Option<String>,
    at: Instant,
    length: Duration,
}

/// One who may lead.
pub(super) struct Candidate {
    api: Api<Lease>,
    name: Arc<str>,
    identity: Arc<str>,
    term: watch::Sender<Term>,
    observed: Option<Observed>,
}

/// Ends it and gives the Lease back.
pub(super) struct Stop {
    tell: watch::Sender<bool>,
    done: watch::Receiver<Term>,
}

impl Candidate {
    /// By this identity, which nobody else has.
    pub(super) fn new(client: Client, namespace: &str, name: &str, identity: Arc<str>) -> Self {
        let (term, _) = watch::channel(Term::default());
        Self { api: Api::namespaced(client, namespace), name: name.into(), identity, term, observed: None }
    }

    pub(super) fn leadership(&self) -> Leadership {
        Leadership { term: Some(self.term.subscribe()) }
    }

    /// Runs until it is stopped.
    pub(super) fn run(self) -> (Stop, impl Future<Output = ()> + Send + 'static) {
        let (tell, told) = watch::channel(false);
        let done = self.term.subscribe();
        (Stop { tell, done }, self.stand(told))
    }

    async fn stand(mut self, mut stop: watch::Receiver<bool>) {
        let mut complained: Option<String> = None;
        loop {
            let begun = Instant::now();
            let outcome = timeout(PATIENCE, self.attempt()).await;
            let outcome = outcome.unwrap_or_else(|_| Err(Trouble::Away("no answer in time".to_owned())));
            match outcome {
                Ok(true) => {
                    self.goes_on(begun + DEADLINE);
                    complained = None;
                }
                Ok(false) => {
                    if self.ends() {
                        tracing::warn!(lease = &*self.name, "another replica leads now");
                    }
                    complained = None;
                }
                Err(trouble) => {
                    let why = trouble.to_string();
                    if complained.as_ref() != Some(&why) {
                        tracing::warn!(lease = &*self.name, %why, "the Lease cannot be asked for");
                    }
                    complained = Some(why);
                }
            }
            self.expire();
            let pause = RETRY + (RETRY / 5).mul_f64(fastrand::f64());
            tokio::select! {
                () = sleep(pause) => self.expire(),
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        if self.ends() && !matches!(timeout(PATIENCE, self.release()).await, Ok(Ok(()))) {
            tracing::info!(
                lease = &*self.name,
                "the Lease could not be given back; others wait until it has run out"
            );
        }
    }

    fn goes_on(&self, until: Instant) {
        let begins = !self.term.borrow().runs();
        if begins {
            tracing::info!(lease = &*self.name, identity = %self.identity, "this replica leads: it writes status and caBundles");
        }
        self.term.send_modify(|term| {
            term.until = Some(until);
            term.number += u64::from(begins);
        });
    }

    /// Whether it led until now.
    fn ends(&self) -> bool {
        let mut led = false;
        self.term.send_modify(|term| led = term.until.take().is_some());
        led
    }

    /// The deadline has passed without a renewal.
    fn expire(&self) {
        let over = {
            let term = self.term.borrow();
            term.until.is_some() && !term.runs()
        };
        if over && self.ends() {
            tracing::warn!(
                lease = &*self.name,
                "the Lease was not renewed within {DEADLINE:?}: this replica writes no longer"
            );
        }
    }

    /// Takes the Lease or renews it. Whether this one has it.
    async fn attempt(&mut self) -> Result<bool, Trouble> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.to_string()), ..ObjectMeta::default() };
            let spec = Some(self.held(None));
            let new = Lease { metadata, spec };
            return self.written(self.api.create(&PostParams::default(), &new).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        self.observe(&lease, &spec);
        if !self.may_take(&spec) {
            return Ok(false);
        }
        lease.spec = Some(self.held(Some(&spec)));
        // Under the version that was read: one of two who try has it.
        self.written(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn written(&self, answer: Result<Lease, kube::Error>) -> Result<bool, Trouble> {
        match answer {
            Ok(_) => Ok(true),
            // Another was quicker. One that led finds out with the next look whether it still does.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn observe(&mut self, lease: &Lease, spec: &LeaseSpec) {
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone();
        let same = self.observed.as_ref().is_some_and(|known| {
            known.holder == holder && known.renewed == spec.renew_time && known.version == version
        });
        if !same {
            let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let length = seconds.map_or(LENGTH, Duration::from_secs);
            let renewed = spec.renew_time.clone();
            self.observed = Some(Observed { holder, renewed, version, at: Instant::now(), length });
        }
    }

    fn may_take(&self, spec: &LeaseSpec) -> bool {
        match spec.holder_identity.as_deref() {
            None | Some("") => true,
            Some(holder) if holder == &*self.identity => true,
            Some(_) => self.observed.as_ref().is_some_and(|known| known.at.elapsed() > known.length),
        }
    }

    fn held(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(jiff::Timestamp::now());
        let ours = before.filter(|spec| spec.holder_identity.as_deref() == Some(&*self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.to_string()),
            lease_duration_seconds: i32::try_from(LENGTH.as_secs()).ok(),
            acquire_time: ours.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(before.is_some() && ours.is_none())),
            ..LeaseSpec::default()
        }
    }

    /// Others need not wait.
    async fn release(&self) -> Result<(), Trouble> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&*self.identity) {
            return Ok(());
        }
        lease.spec =
            Some(LeaseSpec { holder_identity: Some(String::new()), lease_duration_seconds: Some(1), ..spec });
        self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(())
    }
}

impl Stop {
    /// Returns when the Lease has been given back, or nobody could be told in time.
    pub(super) async fn stop(mut self) {
        self.tell.send_replace(true);
        // The sender goes with the candidate.
        let gone = async { while self.done.changed().await.is_ok() {} };
        let _ = timeout(2 * PATIENCE, gone).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_leader_ends_before_another_can_begin() {
        // A write that begins at the last moment has ended when others may take the Lease.
        assert!(DEADLINE + WRITE <= LENGTH && PATIENCE < DEADLINE && RETRY < PATIENCE);
        let (term, watched) = watch::channel(Term::default());
        let leadership = Leadership { term: Some(watched) };
        assert!(!leadership.leads() && Leadership::alone().leads());
        let waiting = tokio::spawn({
            let leadership = leadership.clone();
            async move { leadership.lead().await }
        });
        term.send_replace(Term { until: Some(Instant::now() + DEADLINE), number: 3 });
        assert_eq!((waiting.await.unwrap(), leadership.lead().await), (3, 3));
        tokio::time::advance(DEADLINE).await;
        assert!(!leadership.leads(), "without a word of anybody");
    }
}
