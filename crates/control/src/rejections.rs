//! Who was turned away lately, and why: shown by `outrigger status`, so that a lost authority, a wrong clock or a spent
//! token is seen where the operator looks, and logged, but not as often as it happens.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_identity::Refused;
use outrigger_identity::csr::service::{Caller, CallerPolicy, Denied};
use outrigger_model::identity::SpiffeId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Kinds of refusals that are remembered; the one not seen for longest makes room.
const MOST: usize = 64;
/// Bytes of a reason.
const LONGEST: usize = 512;
/// A refusal that goes on is logged this often.
const REPEAT: Duration = Duration::from_secs(60);
/// Refusals are forgotten after this time without another.
const FORGET: Duration = Duration::from_secs(3600);
/// Lines of new refusals within [`REPEAT`]: strangers can cause them. And those of one source.
const LINES: (usize, usize) = (60, 15);

/// What is at fault where a handshake fails.
const CERTIFICATE: &str = "certificate";
/// What is where somebody asks for a certificate and shows nothing that was given to anybody.
const GUESS: &str = "unknown token";

/// What is where somebody calls the management API with nothing that lets them in.
pub(crate) const MANAGEMENT: &str = "management";

/// Who was turned away; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Rejections {
    shared: Arc<Mutex<Ledger>>,
}

#[derive(Default)]
struct Ledger {
    seen: Vec<Seen>,
    /// Of lines: since when, and whose.
    window: Option<(Instant, Vec<Origin>)>,
}

/// Who one source is: an address, of IPv6 a network of 64 bits, which is one host's; or a name.
#[derive(PartialEq)]
enum Origin {
    Address(IpAddr),
    Name(String),
}

impl Origin {
    fn of(from: &str) -> Self {
        match from.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(IpAddr::V6(address)) => Self::Address(IpAddr::V6((address.to_bits() >> 64 << 64).into())),
            Ok(address) => Self::Address(address),
            Err(_) => Self::Name(from.to_owned()),
        }
    }
}

struct Seen {
    what: &'static str,
    from: String,
    reason: String,
    count: u64,
    last: Instant,
    logged: Instant,
}

/// Refusals of one kind from one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// What was refused: `certificate`, `token`, `unknown token`, `renewal`, `xds`, `management`.
    pub what: String,
    /// Where it came from.
    pub from: String,
    /// Why.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// Seconds since the last time.
    pub age_seconds: u64,
    /// A certificate or an unknown token was at fault, or the management API was called with neither, and no registered instance has
    /// this address: anybody can cause that.
    #[serde(default)]
    pub stranger: bool,
}

impl Rejections {
    /// Notes a refusal.
    pub(crate) fn note(&self, what: &'static str, from: &str, reason: &str) {
        self.note_at(what, from, reason, Instant::now());
    }

    /// A handshake that failed. What scanners and health checks leave behind is only for the log's small print.
    pub(crate) fn handshake(&self, refused: &Refused) {
        if refused.of_certificates {
            self.note(CERTIFICATE, &refused.remote.ip().to_string(), &refused.reason);
        } else {
            tracing::debug!(remote = %refused.remote, reason = refused.reason, "TLS handshake failed");
        }
    }

    fn token(&self, caller: &Caller, denied: &Denied) {
        let from = caller.remote.ip().to_string();
        self.note(if denied.guess { GUESS } else { "token" }, &from, &denied.reason);
    }

    fn note_at(&self, what: &'static str, from: &str, reason: &str, now: Instant) {
        let reason = &reason[..reason.floor_char_boundary(LONGEST)];
        let mut state = self.shared.lock();
        state.forget(now);
        let known = state.seen.iter_mut().find(|s| s.what == what && s.from == from && s.reason == reason);
        let due = match known {
            Some(seen) => {
                seen.count += 1;
                seen.last = now;
                let due = now.duration_since(seen.logged) >= REPEAT;
                if due {
                    seen.logged = now;
                }
                due.then_some(seen.count)
            }
            None => {
                state.make_room();
                let (from, reason) = (from.to_owned(), reason.to_owned());
                state.seen.push(Seen { what, from, reason, count: 1, last: now, logged: now });
                Some(1)
            }
        };
        if let Some(count) = due.filter(|_| state.may_log(from, now)) {
            drop(state);
            tracing::warn!(what, from, reason, count, "turned away");
        }
    }

    /// What was refused within the last hour, the latest first. `knows`: somebody who is registered has this address.
    pub(crate) fn list(&self, knows: impl Fn(IpAddr) -> bool) -> Vec<Rejection> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        state.forget(now);
        state.seen.sort_by_key(|seen| std::cmp::Reverse(seen.last));
        let shown = state.seen.iter().map(|seen| Rejection {
            what: seen.what.to_owned(),
            from: seen.from.clone(),
            reason: seen.reason.clone(),
            count: seen.count,
            age_seconds: now.duration_since(seen.last).as_secs(),
            stranger: matches!(seen.what, CERTIFICATE | GUESS | MANAGEMENT)
                && !seen.from.parse().is_ok_and(&knows),
        });
        shown.collect()
    }
}

impl Ledger {
    fn forget(&mut self, now: Instant) {
        self.seen.retain(|seen| now.duration_since(seen.last) < FORGET);
    }

    /// Of the source that has most the oldest goes, so that nobody's crowd hides what others were told.
    fn make_room(&mut self) {
        if self.seen.len() < MOST {
            return;
        }
        let origins: Vec<Origin> = self.seen.iter().map(|seen| Origin::of(&seen.from)).collect();
        let crowd = |at: usize| origins.iter().filter(|origin| **origin == origins[at]).count();
        let goes = (0..self.seen.len()).max_by_key(|at| (crowd(*at), std::cmp::Reverse(self.seen[*at].last)));
        goes.map(|at| self.seen.swap_remove(at));
    }

    fn may_log(&mut self, from: &str, now: Instant) -> bool {
        if self.window.as_ref().is_none_or(|(since, _)| now.duration_since(*since) >= REPEAT) {
            self.window = Some((now, Vec::new()));
        }
        let Some((_, lines)) = &mut self.window else { return false };
        let from = Origin::of(from);
        let own = lines.iter().filter(|line| **line == from).count();
        let may = lines.len() < LINES.0 && own < LINES.1;
        lines.extend(may.then_some(from));
        may
    }
}

/// A policy whose refusals are noted.
pub(crate) struct Noting<P> {
    pub(crate) policy: P,
    pub(crate) rejections: Rejections,
}

#[tonic::async_trait]
impl<P: CallerPolicy> CallerPolicy for Noting<P> {
    async fn identify(&self, caller: &Caller) -> Result<SpiffeId, Denied> {
        self.policy.identify(caller).await.inspect_err(|denied| {
            self.rejections.token(caller, denied);
        })
    }

    async fn spend(&self, caller: &Caller) -> Result<(), Denied> {
        self.policy.spend(caller).await.inspect_err(|denied| {
            self.rejections.token(caller, denied);
        })
    }

    fn renew(&self, identity: &SpiffeId) -> Result<(), Denied> {
        self.policy.renew(identity).inspect_err(|denied| {
            if !denied.expected {
                self.rejections.note("renewal", identity.as_str(), &denied.reason);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token that may be used once.
    #[derive(Default)]
    struct Once(std::sync::atomic::AtomicBool);

    #[tonic::async_trait]
    impl CallerPolicy for Once {
        async fn identify(&self, _: &Caller) -> Result<SpiffeId, Denied> {
            Ok(SpiffeId::workload("cluster.local", "shop", "web").unwrap())
        }

        async fn spend(&self, _: &Caller) -> Result<(), Denied> {
            match self.0.swap(true, std::sync::atomic::Ordering::SeqCst) {
                false => Ok(()),
                true => Err(Denied::new("used as often as it may".into())),
            }
        }

        fn renew(&self, _: &SpiffeId) -> Result<(), Denied> {
            Err(Denied::expected("by token".into()))
        }
    }

    #[tokio::test]
    async fn a_use_is_counted_by_the_policy_within_and_its_refusal_is_noted() {
        let noting = Noting { policy: Once::default(), rejections: Rejections::default() };
        let caller = Caller {
            certificate: None,
            bearer: Some("x".into()),
            remote: ([10, 0, 0, 1], 1).into(),
            request: String::new(),
        };
        assert!(noting.identify(&caller).await.is_ok());
        assert!(noting.spend(&caller).await.is_ok());
        assert!(noting.spend(&caller).await.is_err());
        assert_eq!(noting.rejections.list(|_| true).len(), 1);
        assert!(noting.renew(&noting.identify(&caller).await.unwrap()).is_err());
        assert_eq!(noting.rejections.list(|_| true).len(), 1, "nothing is wrong with that");
    }

    #[test]
    fn the_same_refusal_is_one_line_with_a_count() {
        let rejections = Rejections::default();
        for _ in 0..1000 {
            rejections.note("token", "10.0.0.1", "the token is unknown");
        }
        rejections.note("token", "10.0.0.2", "the token is unknown");
        let list = rejections.list(|_| false);
        assert_eq!(list.len(), 2);
        assert!(list.iter().all(|one| !one.stranger), "a token is nobody's by chance");
        assert_eq!((list[0].from.as_str(), list[0].count), ("10.0.0.2", 1), "the latest first");
        assert_eq!((list[1].from.as_str(), list[1].count), ("10.0.0.1", 1000));
    }

    #[test]
    fn what_anybody_can_cause_is_a_strangers_where_nobody_is_registered() {
        let rejections = Rejections::default();
        rejections.note(CERTIFICATE, "10.0.0.1", "it refuses our certificate");
        rejections.note(MANAGEMENT, "10.0.0.1", "the token is unknown");
        let strangers = |known: &str| {
            let list = rejections.list(|ip| ip.to_string() == known);
            list.iter().map(|one| one.stranger).collect::<Vec<_>>()
        };
        assert_eq!((strangers("10.0.0.1"), strangers("10.0.0.2")), (vec![false; 2], vec![true; 2]));
    }

    #[test]
    fn a_guess_is_a_strangers_and_a_spent_token_is_not() {
        let rejections = Rejections::default();
        let caller = Caller {
            certificate: None,
            bearer: None,
            remote: ([10, 0, 0, 1], 1).into(),
            request: String::new(),
        };
        for denied in [Denied::new("used up".into()), Denied::guess("unknown".into())] {
            rejections.token(&caller, &denied);
        }
        let strangers: Vec<_> =
            rejections.list(|_| false).iter().map(|one| (one.reason.clone(), one.stranger)).collect();
        assert!(
            strangers.contains(&("used up".into(), false)) && strangers.contains(&("unknown".into(), true))
        );
    }

    #[test]
    fn a_crowd_hides_nobody_else() {
        let (rejections, now) = (Rejections::default(), Instant::now());
        rejections.note_at("renewal", "spiffe://cluster.local/ns/shop/sa/web", "is revoked", now);
        for n in 0..1000 {
            let later = now + Duration::from_millis(n + 1);
            rejections.note_at(CERTIFICATE, &format!("2001:db8::{n:x}"), &format!("reason {n}"), later);
        }
        rejections.note_at(
            CERTIFICATE,
            "10.0.0.7",
            "it refuses our certificate",
            now + Duration::from_secs(2),
        );
        let list = rejections.list(|_| false);
        let froms: Vec<&str> = list.iter().map(|one| one.from.as_str()).collect();
        assert!(
            froms.contains(&"spiffe://cluster.local/ns/shop/sa/web") && froms.contains(&"10.0.0.7"),
            "{froms:?}"
        );
        assert!(rejections.shared.lock().may_log("10.0.0.8", now), "fifteen lines are one source's");
    }

    #[test]
    fn strangers_fill_neither_memory_nor_log() {
        let (rejections, now) = (Rejections::default(), Instant::now());
        for n in 0..10_000 {
            rejections.note_at("certificate", &n.to_string(), &"ä".repeat(4000), now);
        }
        let list = rejections.list(|_| true);
        assert_eq!(list.len(), MOST);
        assert!(list.iter().all(|rejection| rejection.stranger), "these are no addresses");
        assert!(list.iter().all(|rejection| rejection.reason.len() <= LONGEST));
        let mut state = rejections.shared.lock();
        assert!(!state.may_log("x", now), "sixty lines a minute are enough");
        assert!(state.may_log("x", now + REPEAT));
    }
}
