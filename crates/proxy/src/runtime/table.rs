//! The endpoints of one moment, and who of them takes requests: those that the control plane has for healthy, and of a cluster with
//! active checks those of them that pass. A table is made anew when either changes; a pick reads only what is in it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_model::cluster::{Balance, Cluster, LoadReports};
use outrigger_model::endpoint::spread::{Bearing, shares};
use outrigger_model::endpoint::{EndpointSet, Health as Reported};

use crate::balance::Level;
use crate::balance::places::{Places, fitted};
use crate::balance::spread::Spread;
use crate::runtime::endpoint::EndpointState;
use crate::runtime::reports;
use crate::runtime::verdict::Verdict;
use tokio::time::Instant;

/// The endpoints of one moment: addresses and health together.
#[derive(Debug, Default)]
pub struct EndpointTable {
    /// All of them, those that take no requests too.
    pub all: Vec<Arc<EndpointState>>,
    /// Their priorities, in the same order; of those that drain while others serve, none.
    priorities: Vec<Option<u32>>,
    /// Those that take requests, most wanted priority first.
    pub levels: Vec<Level>,
    /// How requests are spread over them; `None`: the first takes all.
    pub(super) spread: Option<Spread>,
    /// Whether an endpoint set has arrived at all.
    pub known: bool,
    /// Why there are none, where somebody looked for them.
    pub trouble: Option<String>,
    /// Of a cluster with active checks, or weights by reports: whoever would take requests if it passed, with the weights that hold without.
    candidates: Vec<Group>,
}

/// Who could take requests of one priority.
#[derive(Debug, Clone)]
struct Group {
    priority: u32,
    /// How many endpoints it has, with those that should take requests and cannot.
    total: u32,
    members: Vec<(Arc<EndpointState>, u32)>,
    /// Of these members, where places have weights.
    places: Option<Box<Places>>,
}

impl Group {
    /// Leaves only those that serve; a place loses of its weight what those that are left of it cannot bear.
    fn keep_serving(&mut self) {
        let serves: Vec<bool> = self.members.iter().map(|(member, _)| member.serves).collect();
        if serves.iter().all(|serves| *serves) {
            return;
        }
        if let Some(places) = &mut self.places {
            let weights = places.weights(|at| serves[at]);
            places.retain(|at| serves[at]);
            for ((_, weight), left) in self.members.iter_mut().zip(weights) {
                *weight = left;
            }
        }
        self.members.retain(|(member, _)| member.serves);
    }

    /// Gives its members the weights that their reports make, where any of them reports.
    fn weigh(&mut self, rules: &LoadReports) {
        let now = Instant::now();
        let own = |member: &EndpointState| member.load.reported().and_then(|said| said.weight(rules, now));
        let own: Vec<Option<f64>> = self.members.iter().map(|(member, _)| own(member)).collect();
        let Some(weights) = reports::weights(&own) else { return };
        for ((_, weight), reported) in self.members.iter_mut().zip(weights) {
            *weight = reported;
        }
        // They hold whatever the places are.
        self.places = None;
    }
}

impl EndpointTable {
    /// Of an endpoint set; what lives of its endpoints is taken over from `before`.
    pub(super) fn new(set: &EndpointSet, before: &Self, cluster: &Cluster) -> Self {
        let known: HashMap<SocketAddr, &Arc<EndpointState>> =
            before.all.iter().map(|endpoint| (endpoint.address, endpoint)).collect();
        let (mut all, mut priorities) = (Vec::with_capacity(set.len()), Vec::with_capacity(set.len()));
        let mut members: BTreeMap<u32, Vec<(Arc<EndpointState>, u64)>> = BTreeMap::new();
        let mut totals: BTreeMap<u32, u32> = BTreeMap::new();
        let mut places: BTreeMap<u32, Places> = BTreeMap::new();
        for locality in &set.localities {
            let bearing = Bearing::of(locality);
            *totals.entry(locality.priority).or_default() += bearing.total;
            let places = places.entry(locality.priority).or_default();
            places.add(locality.weight, bearing.total);
            for config in &locality.endpoints {
                let endpoint = Arc::new(EndpointState::new(config, known.get(&config.address).copied()));
                all.push(endpoint.clone());
                let leaves = config.health == Reported::Draining && bearing.lets_go();
                priorities.push((!leaves).then_some(locality.priority));
                if config.health != Reported::Healthy {
                    continue;
                }
                let part = bearing.part(config.weight);
                places.add_member(config.weight);
                members.entry(locality.priority).or_default().push((endpoint, part));
            }
        }
        let group = |(priority, members)| {
            let total = totals.get(&priority).copied().unwrap_or(0);
            let places = places.remove(&priority).filter(Places::share).map(Box::new);
            Group { priority, total, members: scaled(members), places }
        };
        let groups = members.into_iter().map(group).collect();
        let judged = before.is_judged();
        let table = Self { all, priorities, known: true, trouble: set.trouble.clone(), ..Self::default() };
        table.filled(groups, cluster, judged)
    }

    /// The same endpoints, for another configuration or after other verdicts.
    pub(super) fn again(&self, cluster: &Cluster) -> Self {
        let of_level = |level: &Level| Group {
            priority: level.priority,
            total: level.total,
            members: level.weighted().map(|(member, weight)| (member.clone(), weight)).collect(),
            places: level.places().cloned().map(Box::new),
        };
        let groups = match self.candidates.is_empty() {
            true => self.levels.iter().map(of_level).collect(),
            false => self.candidates.clone(),
        };
        let (all, known, trouble) = (self.all.clone(), self.known, self.trouble.clone());
        let table = Self { all, priorities: self.priorities.clone(), known, trouble, ..Self::default() };
        table.filled(groups, cluster, self.is_judged())
    }

    /// All that are to bear what comes to a priority, those that take no requests too.
    pub(super) fn of_priority(&self, priority: u32) -> impl Iterator<Item = &EndpointState> {
        let with = self.all.iter().zip(&self.priorities);
        with.filter(move |(_, own)| **own == Some(priority)).map(|(endpoint, _)| &**endpoint)
    }

    /// The priority of an endpoint, where that is to bear anything.
    pub(super) fn priority_of(&self, address: SocketAddr) -> Option<u32> {
        let at = self.all.iter().position(|endpoint| endpoint.address == address)?;
        self.priorities.get(at).copied().flatten()
    }

    /// Whether a check has said anything of anybody.
    fn is_judged(&self) -> bool {
        let judged = |verdict| matches!(verdict, Verdict::Healthy | Verdict::Unhealthy);
        self.all
            .iter()
            .filter_map(|endpoint| endpoint.load.checked())
            .any(|checked| judged(checked.verdict()))
    }

    /// `judged`: a check has said something of those who were here before.
    fn filled(mut self, mut groups: Vec<Group>, cluster: &Cluster, judged: bool) -> Self {
        match cluster.health_check.is_some() {
            true => {
                let first = if judged { Verdict::Waiting } else { Verdict::Presumed };
                let passing = passing(&groups, first);
                self.turn(&mut groups, |endpoint| passing.contains(&verdict(endpoint, first)));
                self.candidates.clone_from(&groups);
                groups.iter_mut().for_each(Group::keep_serving);
            }
            // Of those that checks had kept away.
            false => self.turn(&mut groups, |_| true),
        }
        if cluster.balance == Balance::Reported {
            if self.candidates.is_empty() {
                self.candidates.clone_from(&groups);
            }
            let default = LoadReports::default();
            let rules = cluster.load_reports.as_deref().unwrap_or(&default);
            groups.iter_mut().for_each(|group| group.weigh(rules));
        }
        let level = |group: Group| {
            let level = Level::new(group.priority, group.members, cluster.balance);
            level.warming(cluster.warmup).among(group.total).in_places(group.places)
        };
        self.levels = groups.into_iter().filter(|group| !group.members.is_empty()).map(level).collect();
        // The members of a level are those that are healthy.
        let bearing = self.levels.iter().map(|level| (level.members.len() as u32, level.total));
        let capacity = cluster.capacity.filter(|_| self.levels.len() > 1);
        self.spread = shares(bearing)
            .filter(|shares| shares[0] < 100 || capacity.is_some())
            .map(|shares| Spread { shares, capacity });
        self
    }

    /// Says of each who could take requests whether it does, here and in the groups.
    fn turn(&mut self, groups: &mut [Group], serves: impl Fn(&EndpointState) -> bool) {
        let mut turned: HashMap<SocketAddr, Arc<EndpointState>> = HashMap::new();
        for (member, _) in groups.iter_mut().flat_map(|group| &mut group.members) {
            let serves = serves(member);
            if member.serves != serves {
                *member = Arc::new(member.turned(serves));
                turned.insert(member.address, member.clone());
            }
        }
        if turned.is_empty() {
            return;
        }
        for endpoint in &mut self.all {
            if let Some(new) = turned.get(&endpoint.address) {
                *endpoint = new.clone();
            }
        }
    }

    /// Those that take no requests because their checks fail, with the reason of one.
    pub(super) fn failing(&self) -> Option<(usize, String)> {
        let failing = |endpoint: &&Arc<EndpointState>| {
            endpoint.reported == Reported::Healthy
                && endpoint.load.checked().is_some_and(|checked| checked.verdict() == Verdict::Unhealthy)
        };
        let count = self.all.iter().filter(failing).count();
        let one = self.all.iter().find(failing)?;
        let why = one.load.checked().and_then(|checked| checked.look().why).unwrap_or_default();
        Some((count, format!("{}: {why}", one.address)))
    }
}

fn verdict(endpoint: &EndpointState, first: Verdict) -> Verdict {
    endpoint.load.checked_from(first).verdict()
}

/// Of which verdicts those are that take requests: where nobody passes, those too that nothing is known of.
fn passing(groups: &[Group], first: Verdict) -> &'static [Verdict] {
    let passing = &[Verdict::Presumed, Verdict::Healthy];
    let mut members = groups.iter().flat_map(|group| &group.members);
    match members.any(|(member, _)| passing.contains(&verdict(member, first))) {
        true => passing,
        false => &[Verdict::Waiting],
    }
}

/// Weights as a level takes them, in the same proportion to each other.
fn scaled(members: Vec<(Arc<EndpointState>, u64)>) -> Vec<(Arc<EndpointState>, u32)> {
    let most = members.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
    members.into_iter().map(|(member, weight)| (member, fitted(weight, most))).collect()
}
