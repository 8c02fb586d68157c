//! Which endpoint of a cluster gets a request: of those that are allowed, the one that `balance` picks.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};

use outrigger_model::cluster::{Cluster, Discovery, Labels, PASSTHROUGH, Part, SubsetFallback, Subsets};
use outrigger_model::endpoint::spread::shares;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::ClusterHandle;
use crate::balance::{self, Candidates, Level, spread};
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::runtime::endpoint::{EndpointState, Reach};
use crate::runtime::table::EndpointTable;

/// Addresses that nobody told us (passthrough, the application) kept per cluster.
const MAX_DYNAMIC: usize = 1024;

/// Of each member of a level.
type Weights = SmallVec<[u32; 32]>;

/// What a pick depends on besides the cluster.
#[derive(Debug, Clone, Copy)]
pub struct PickContext<'a> {
    /// Endpoints that this request tried already; avoided while there are others.
    pub tried: &'a [SocketAddr],
    /// Where the connection was going, or in explicit mode inbound, where the application is. Clusters of kind original
    /// destination go there.
    pub original: (SocketAddr, Reach),
    /// For consistent hashing.
    pub hash: Option<u64>,
}

/// Attempts of a request for which the priorities are left that they went to.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// Where they went, in order.
    pub attempts: &'a [SocketAddr],
    /// Looked at again after each so many, at least 1.
    pub every: usize,
}

type Priorities = SmallVec<[u32; 4]>;

/// A level whose members were all tried in vain: which they are, and their weights where some are not usable.
type Again<'l> = (&'l Level, SmallVec<[u32; 4]>, Option<Weights>);

impl Left<'_> {
    /// Which are left by now: as Envoy's `previous_priorities`, that begins anew where nobody else is usable.
    fn priorities(&self, table: &EndpointTable, usable: impl Fn(&EndpointState) -> bool) -> Priorities {
        let (mut left, mut holds) = (Priorities::new(), false);
        let mut begun = 0;
        for end in 1..=self.attempts.len() {
            let attempts = self.attempts.get(begun..end).unwrap_or_default();
            if attempts.len() < self.every {
                holds = false;
                continue;
            }
            if !attempts.len().is_multiple_of(self.every) {
                continue;
            }
            holds = true;
            left.extend(attempts.iter().filter_map(|address| table.priority_of(*address)));
            let bears = |level: &Level| {
                !left.contains(&level.priority) && level.members.iter().any(|member| usable(member))
            };
            if !table.levels.iter().any(bears) {
                left.clear();
                begun = end;
            }
        }
        if holds { left } else { Priorities::new() }
    }
}

/// From where an endpoint is picked.
#[derive(Debug)]
pub(super) enum Way {
    /// All of them.
    All,
    /// Where the client was going.
    Original,
    /// Those with these labels, or none in particular, of a cluster that has parts.
    Part(Labels),
}

impl Way {
    pub(super) fn of(config: &Cluster) -> Self {
        match (&config.discovery, &config.subsets) {
            (Discovery::OriginalDestination, _) => Self::Original,
            (_, Some(_)) => Self::Part(Labels::new()),
            (_, None) => Self::All,
        }
    }

    /// To a part, where there are any.
    pub(super) fn to(&self, part: &Part) -> Self {
        match self {
            Self::All => Self::All,
            Self::Original => Self::Original,
            Self::Part(_) => Self::Part(part.labels.clone()),
        }
    }
}

impl ClusterHandle {
    /// Picks an endpoint.
    ///
    /// # Errors
    /// There is none: no endpoints, none healthy, or all ejected.
    pub fn pick(&self, ctx: &PickContext<'_>) -> Result<Arc<EndpointState>, Failure> {
        if !matches!(self.way, Way::All) {
            return self.pick_otherwise(ctx, None);
        }
        let table = self.lasting.table.load();
        if ctx.tried.is_empty() && !self.lasting.ejections.any() {
            let level = match &table.spread {
                None => table.levels.first(),
                Some(spread) => table.levels.get(spread.level(&table.levels, ctx.hash)),
            };
            let found = level.and_then(|level| {
                balance::pick(self.config.balance, &Candidates::All(level), &self.lasting.cursor, ctx.hash)
            });
            return found.cloned().ok_or_else(|| self.nothing(&table, false));
        }
        self.pick_among(&table, ctx, None, |_| true)
    }

    /// As [`Self::pick`], after attempts for which the priorities are left that they went to.
    ///
    /// # Errors
    /// As [`Self::pick`].
    #[cold]
    pub fn pick_leaving(
        &self,
        ctx: &PickContext<'_>,
        left: &Left<'_>,
    ) -> Result<Arc<EndpointState>, Failure> {
        if !matches!(self.way, Way::All) {
            return self.pick_otherwise(ctx, Some(left));
        }
        self.pick_among(&self.lasting.table.load(), ctx, Some(left), |_| true)
    }

    /// The endpoint of that address, if it takes requests and is one of those that this picks from.
    pub fn serving_at(&self, address: SocketAddr) -> Option<Arc<EndpointState>> {
        let table = self.lasting.table.load();
        let found = table.all.iter().find(|endpoint| endpoint.address == address && endpoint.serves)?;
        if let Way::Part(wanted) = &self.way
            && !self.part_of(wanted, &table).is_some_and(|labels| has(labels, found))
        {
            return None;
        }
        let ejected = self.lasting.ejections.is_ejected(&found.load.health, Instant::now());
        (!ejected).then(|| found.clone())
    }

    fn pick_otherwise(
        &self,
        ctx: &PickContext<'_>,
        left: Option<&Left<'_>>,
    ) -> Result<Arc<EndpointState>, Failure> {
        let Way::Part(wanted) = &self.way else {
            let (mut original, reach) = ctx.original;
            if let Some(port) = self.config.original_port {
                original.set_port(port);
            }
            return Ok(self.dynamic((original, reach)));
        };
        let table = self.lasting.table.load();
        let Some(labels) = self.part_of(wanted, &table) else { return Err(self.nothing(&table, false)) };
        self.pick_among(&table, ctx, left, |endpoint| has(labels, endpoint))
    }

    /// The labels of those that serve a part: its own, or of who serves in its place; `None`: nobody does.
    fn part_of<'l>(&'l self, wanted: &'l Labels, table: &EndpointTable) -> Option<&'l Labels> {
        let subsets = self.config.subsets.as_deref().unwrap_or(&NO_SUBSETS);
        let is_part = subsets.selectors.iter().any(|selector| selector.keys.iter().eq(wanted.keys()))
            && table.all.iter().any(|endpoint| has(wanted, endpoint));
        match subsets.fallback(wanted) {
            _ if is_part => Some(wanted),
            SubsetFallback::Any => Some(&NO_LABELS),
            SubsetFallback::Default => Some(&subsets.default),
            SubsetFallback::None => None,
        }
    }

    /// The pick that looks at each endpoint: something is ejected, or hosts are avoided.
    fn pick_among(
        &self,
        table: &EndpointTable,
        ctx: &PickContext<'_>,
        left: Option<&Left<'_>>,
        of: impl Fn(&EndpointState) -> bool,
    ) -> Result<Arc<EndpointState>, Failure> {
        let now = Instant::now();
        let usable_now = |member: &EndpointState| {
            of(member) && !self.lasting.ejections.is_ejected(&member.load.health, now)
        };
        let mut again: Option<Again<'_>> = None;
        let left = left.map_or_else(Priorities::new, |left| left.priorities(table, usable_now));
        let first = self.first_level(table, ctx, &of, |level, member| {
            !left.contains(&level.priority) && usable_now(member)
        });
        let mut order = in_order(table, first, usable_now);
        if !left.is_empty() {
            let is_left =
                |at: &usize| table.levels.get(*at).is_some_and(|level| left.contains(&level.priority));
            order.sort_by_key(is_left);
        }
        for level in order.into_iter().filter_map(|at| table.levels.get(at)) {
            let mut usable: SmallVec<[u32; 32]> = SmallVec::new();
            let mut tried: SmallVec<[u32; 4]> = SmallVec::new();
            for (i, member) in level.members.iter().enumerate() {
                if !usable_now(member) {
                    continue;
                }
                match ctx.tried.contains(&member.address) {
                    true => tried.push(i as u32),
                    false => usable.push(i as u32),
                }
            }
            let weights = self.weights_left(level, &usable, &tried);
            if let Some(found) = self.one_of(level, &usable, weights.as_ref(), ctx.hash) {
                return Ok(found.clone());
            }
            // Who has tried all of a priority in vain goes on: that one cannot serve.
            if again.is_none() && !tried.is_empty() {
                again = Some((level, tried, weights));
            }
        }
        let found = again.and_then(|(level, tried, weights)| {
            self.one_of(level, &tried, weights.as_ref(), ctx.hash).cloned()
        });
        found.ok_or_else(|| self.nothing(table, true))
    }

    /// The weights of a level's members where some are not usable and places have shares, which then lose what those that are left of
    /// them cannot bear. Who was tried is still counted. The weights of places do not hold for a part of a cluster.
    pub(super) fn weights_left(&self, level: &Level, usable: &[u32], tried: &[u32]) -> Option<Weights> {
        let places = level.places().filter(|_| usable.len() + tried.len() < level.members.len())?;
        // Whoever may be picked has a weight: another thread may eject one of them meanwhile.
        let is_usable = |at: usize| [usable, tried].iter().any(|of| of.binary_search(&(at as u32)).is_ok());
        matches!(self.way, Way::All).then(|| places.weights(is_usable))
    }

    fn one_of<'l>(
        &self,
        level: &'l Level,
        indices: &'l [u32],
        weights: Option<&'l Weights>,
        hash: Option<u64>,
    ) -> Option<&'l Arc<EndpointState>> {
        let candidates = match weights {
            Some(weights) => Candidates::Scaled(level, indices, weights),
            None => Candidates::Some(level, indices),
        };
        balance::pick(self.config.balance, &candidates, &self.lasting.cursor, hash)
    }

    /// The level that a request is to go to, by how many of each are usable.
    fn first_level(
        &self,
        table: &EndpointTable,
        ctx: &PickContext<'_>,
        of: impl Fn(&EndpointState) -> bool,
        usable: impl Fn(&Level, &EndpointState) -> bool,
    ) -> usize {
        if table.levels.len() < 2 {
            return 0;
        }
        let count =
            |level: &Level| level.members.iter().filter(|member| usable(level, member)).count() as u32;
        let bearing = table.levels.iter().map(|level| {
            let total = match self.way {
                Way::All => level.total,
                _ => table.of_priority(level.priority).filter(|one| of(one)).count() as u32,
            };
            (count(level), total)
        });
        shares(bearing).map_or(0, |shares| spread::draw(&shares, ctx.hash))
    }

    #[cold]
    fn nothing(&self, table: &EndpointTable, looked: bool) -> Failure {
        self.lasting.unmet.fetch_add(1, Relaxed);
        let (kind, detail) = if let Some(why) = table.trouble.as_ref().filter(|_| *self.name == *PASSTHROUGH)
        {
            (FailureKind::Blocked, why.clone())
        } else if table.all.is_empty() {
            let why = match &table.trouble {
                Some(trouble) => &format!("has no endpoints: {trouble}"),
                None if table.known => "has no endpoints",
                None => "has not received its endpoints",
            };
            (FailureKind::NoEndpoints, format!("cluster {} {why}", self.name))
        } else if let Way::Part(labels) = &self.way
            && !looked
        {
            (FailureKind::NoEndpoints, format!("cluster {}: no endpoint has {labels:?}", self.name))
        } else if looked && !table.levels.is_empty() {
            let n = table.all.len();
            (FailureKind::AllEjected, format!("cluster {}: all of {n} endpoints are ejected", self.name))
        } else {
            let n = table.all.len();
            let fail = table.failing().map(|(count, one)| format!(", health checks of {count} fail: {one}"));
            let fail = fail.unwrap_or_default();
            (
                FailureKind::NoHealthyUpstream,
                format!("cluster {}: none of {n} endpoints is healthy{fail}", self.name),
            )
        };
        let failure = Failure { retry: Retry::IfUnsent, ..Failure::local(Stage::Pick, kind, detail) };
        failure.because_of(self.origin.clone())
    }

    fn dynamic(&self, (address, reach): (SocketAddr, Reach)) -> Arc<EndpointState> {
        if let Some(last) = &*self.lasting.last_dynamic.load()
            && (last.address, last.reach) == (address, reach)
        {
            return last.clone();
        }
        let mut known = self.lasting.dynamic.lock();
        if known.len() >= MAX_DYNAMIC {
            known.retain(|_, endpoint| endpoint.in_flight() > 0);
        }
        let endpoint =
            known.entry((address, reach)).or_insert_with(|| Arc::new(EndpointState::plain(address, reach)));
        self.lasting.last_dynamic.store(Some(endpoint.clone()));
        endpoint.clone()
    }
}

static NO_LABELS: Labels = Labels::new();
static NO_SUBSETS: LazyLock<Subsets> = LazyLock::new(Subsets::default);

/// Whether an endpoint has all of these labels.
fn has(labels: &Labels, endpoint: &EndpointState) -> bool {
    let own = |key| endpoint.labels.as_ref().and_then(|own| own.get(key));
    labels.iter().all(|(key, value)| own(key) == Some(value))
}

/// The levels as they are tried: those behind the first by priority, and who is full behind all that are not.
fn in_order(
    table: &EndpointTable,
    first: usize,
    usable: impl Fn(&EndpointState) -> bool,
) -> SmallVec<[usize; 6]> {
    let others = (0..table.levels.len()).filter(|at| *at != first);
    let mut order: SmallVec<[usize; 6]> = std::iter::once(first).chain(others).collect();
    if let Some(capacity) = table.spread.as_ref().and_then(|spread| spread.capacity) {
        let is_full =
            |at: &usize| table.levels.get(*at).is_some_and(|level| spread::is_full(level, capacity, &usable));
        order.sort_by_cached_key(is_full);
    }
    order
}
