//! How a worker finds the cells of a series: by a small key, without formatting any label, and first of all where it found the
//! last ones.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_model::endpoint::Workload;
use outrigger_model::listener::Direction;
use outrigger_telemetry::metrics::Labels;
use tokio::time::Instant;

use super::guests::Guests;
use super::published::{Cells, Published};
use super::{FastMap, Local, MAX_KEYS, MAX_SERIES, SWEEP, SeriesOf, labels};
use crate::flags::Flags;
use crate::protocol::Protocol;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SeriesKey {
    peer_hash: u64,
    /// Address of the `Arc<Workload>`, which the cached entry keeps alive so that it cannot be used twice.
    workload: usize,
    cluster_id: u32,
    flags: Flags,
    code: u16,
    grpc_status: u16,
    direction: Direction,
    protocol: Protocol,
    is_grpc: bool,
    mtls: bool,
}

impl SeriesOf<'_> {
    fn key(&self) -> SeriesKey {
        SeriesKey {
            peer_hash: self.peer_hash,
            workload: self.workload.map_or(0, |w| Arc::as_ptr(w) as usize),
            cluster_id: self.cluster.map_or(u32::MAX, |_| self.cluster_id),
            flags: self.flags,
            code: self.code,
            grpc_status: self.grpc_status.map_or(u16::MAX, |s| labels::known_status(s) as u16),
            direction: self.direction,
            protocol: self.protocol,
            is_grpc: self.is_grpc,
            mtls: self.mtls,
        }
    }
}

/// The cells of a key.
struct Found<C> {
    key: SeriesKey,
    cells: Arc<C>,
    /// Whose address is in the key.
    _workload: Option<Arc<Workload>>,
}

/// One worker's finder of cells of one kind.
pub(super) struct Finder<C> {
    by_key: FastMap<SeriesKey, usize>,
    found: Vec<Found<C>>,
    /// Which was asked for last, and probably is next.
    last: usize,
    by_labels: HashMap<Labels, Arc<C>>,
    guests: Guests,
    /// When series were last looked for that nobody needs.
    swept: Option<Instant>,
}

impl<C: Cells> Finder<C> {
    pub(super) fn new() -> Self {
        let (by_key, found, by_labels) = (FastMap::default(), Vec::new(), HashMap::new());
        Self { by_key, found, last: 0, by_labels, guests: Guests::default(), swept: None }
    }

    /// Calls `update` with the cells of a series.
    #[inline]
    pub(super) fn with(
        &mut self,
        series: &SeriesOf<'_>,
        (local, published): (&Local, &Published<C>),
        update: impl FnOnce(&C),
    ) {
        let key = series.key();
        if self.found.get(self.last).is_none_or(|found| found.key != key) {
            self.look_for(key, series, local, published);
        }
        if let Some(found) = self.found.get(self.last) {
            update(&found.cells);
        }
    }

    #[inline(never)]
    fn look_for(&mut self, key: SeriesKey, series: &SeriesOf<'_>, local: &Local, published: &Published<C>) {
        self.last = match self.by_key.get(&key) {
            Some(at) => *at,
            None => self.add(key, series, local, published),
        };
    }

    #[cold]
    fn add(
        &mut self,
        key: SeriesKey,
        series: &SeriesOf<'_>,
        local: &Local,
        published: &Published<C>,
    ) -> usize {
        if self.by_key.len() >= MAX_KEYS {
            self.forget_keys();
        }
        if self.by_labels.len() >= MAX_SERIES {
            self.sweep(published);
        }
        let mut labels = labels::of(&self.guests.believed(series), local);
        if self.by_labels.len() >= MAX_SERIES && !self.by_labels.contains_key(&labels) {
            labels = labels::other(series.direction);
        }
        let cells = self.by_labels.entry(labels).or_insert_with_key(|labels| {
            let cells = Arc::new(C::default());
            published.add(labels.clone(), cells.clone());
            cells
        });
        let found = Found { key, cells: cells.clone(), _workload: series.workload.cloned() };
        self.found.push(found);
        self.by_key.insert(key, self.found.len() - 1);
        self.found.len() - 1
    }

    fn forget_keys(&mut self) {
        self.by_key.clear();
        self.found.clear();
    }

    /// Forgets series in which nothing has happened for long.
    #[cold]
    fn sweep(&mut self, published: &Published<C>) {
        let now = Instant::now();
        if self.swept.is_some_and(|swept| now.duration_since(swept) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        for labels in published.forget(now) {
            self.by_labels.remove(&labels);
        }
        self.forget_keys();
    }
}
