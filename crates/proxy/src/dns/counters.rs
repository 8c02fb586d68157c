//! How queries were answered, by type.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hickory_proto::rr::RecordType;
use outrigger_telemetry::metrics::{Labels, Page};

/// Where an answer came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// The name is in the mesh.
    Mesh,
    /// It is passed on.
    Forward,
    /// The mesh says that there is nothing.
    Negative,
    /// Not answered, or with an error.
    Failed,
}

const SOURCES: [&str; 4] = ["mesh", "forward", "negative", "failed"];

/// The types that are counted apart: what resolvers of applications ask for.
const TYPES: [(RecordType, &str); 12] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::ANY, "ANY"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::MX, "MX"),
    (RecordType::NS, "NS"),
    (RecordType::PTR, "PTR"),
    (RecordType::SOA, "SOA"),
    (RecordType::SRV, "SRV"),
    (RecordType::SVCB, "SVCB"),
    (RecordType::TXT, "TXT"),
];

/// The counts.
#[derive(Debug, Default)]
pub struct Counters([[AtomicU64; TYPES.len() + 1]; SOURCES.len()]);

impl Counters {
    /// `kind`: of the question, as far as there was one.
    pub(super) fn count(&self, source: Source, kind: Option<RecordType>) {
        let column = TYPES.iter().position(|(known, _)| Some(*known) == kind).unwrap_or(TYPES.len());
        self.0[source as usize][column].fetch_add(1, Relaxed);
    }

    /// Shows them.
    pub fn write(&self, page: &mut Page) {
        for (source, row) in SOURCES.iter().zip(&self.0) {
            let names = TYPES.iter().map(|(_, name)| *name).chain(["other"]);
            for (kind, count) in names.zip(row).map(|(kind, count)| (kind, count.load(Relaxed))) {
                if count > 0 {
                    let labels = Labels::new().with("source", source).with("type", kind);
                    page.counter(
                        "outrigger_dns_requests_total",
                        "DNS queries of the workload, by who answered.",
                    )
                    .sample(&labels, count);
                }
            }
        }
    }
}
