//! What a cluster's policy wants to know of answers, beyond whether requests failed. Most want nothing.

use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::{Balance, Cluster};

use crate::runtime::reports::{Counts, Reports};

/// What is wanted.
#[derive(Debug)]
pub enum Measures {
    /// How long they took; what was is forgotten after so long, and nobody known answers in `initial`.
    Latency { decay: Duration, initial: Duration },
    /// What load they report.
    Reports(Arc<Reports>),
}

impl Measures {
    /// Of a cluster.
    pub fn of(config: &Cluster, counts: &Arc<Counts>) -> Option<Self> {
        match config.balance {
            Balance::PeakEwma { decay, initial } => Some(Self::Latency { decay, initial }),
            Balance::Reported => {
                let rules = config.load_reports.as_deref().cloned().unwrap_or_default();
                Some(Self::Reports(Arc::new(Reports::new(rules, counts.clone()))))
            }
            _ => None,
        }
    }
}
