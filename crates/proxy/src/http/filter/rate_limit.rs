//! How many requests pass: a filter of ours, `outrigger.rate_limit`. The counts live beside the configuration (`runtime/rate.rs`).

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_model::rate_limit::{By, RateLimit};
use outrigger_model::request::RequestView;
use outrigger_model::resource::{Flaw, Under};
use outrigger_model::route::table::CompiledMatch;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::act::add;
use super::{Act, Build, Input, Place, Tallies, Verdict};
use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::rate::{CountKey, Counts, Refused, part};

/// The limits of a listener.
#[derive(Debug)]
pub struct Limits(Vec<(CompiledMatch, Arc<Counts>)>);

impl Build for Limits {
    type Config = [RateLimit];

    /// Their counts go on where they are known.
    fn build(limits: &[RateLimit], place: &Place<'_>) -> Result<Self, Flaw> {
        let limits = limits.iter().enumerate().map(|(i, limit)| {
            let matches = CompiledMatch::compile(&limit.matches).under(format_args!("limits[{i}].match"))?;
            Ok((matches, place.rates.of(limit)))
        });
        limits.collect::<Result<_, _>>().map(Self)
    }
}

impl Act for Limits {
    fn on_request(&self, input: &Input<'_>) -> Verdict {
        let now = Instant::now();
        let mut taken: SmallVec<[(&Counts, CountKey); 4]> = SmallVec::new();
        for (matches, counts) in &self.0 {
            if matches.mismatch(input.request).is_some() {
                continue;
            }
            let by = &counts.limit.by;
            let key = counts.key(|hasher| by.iter().for_each(|by| tell_apart(by, input, hasher)));
            if let Err(refused) = counts.take(now, key) {
                // Who is over a limit of one's own takes nothing from what all share.
                taken.iter().for_each(|(counts, key)| counts.give(*key));
                return Verdict::Fail(failure(counts, &refused));
            }
            taken.push((&**counts, key));
        }
        Verdict::Continue
    }

    fn tally<'t>(&'t self, all: &mut Tallies<'t>) {
        self.0.iter().for_each(|(_, counts)| add(&mut all.counts, counts));
    }
}

fn tell_apart(by: &By, input: &Input<'_>, hasher: &mut dyn Hasher) {
    let address = |hasher: &mut dyn Hasher| match input.connection.source.ip().to_canonical() {
        IpAddr::V4(ip) => part(hasher, &ip.octets()),
        // A host has all of its network's addresses.
        IpAddr::V6(ip) => part(hasher, &ip.octets()[..8]),
    };
    match by {
        By::Caller => match input.connection.peer {
            Some(peer) => part(hasher, peer.as_str().as_bytes()),
            None => address(hasher),
        },
        By::Address => address(hasher),
        By::Path => {
            let path = RequestView::path(input.request);
            part(hasher, path.split_once('?').map_or(path, |(path, _)| path).as_bytes());
        }
        By::Header(name) => {
            let mut values = 0;
            for value in input.request.header(name) {
                part(hasher, value);
                values += 1;
            }
            hasher.write_usize(values);
        }
    }
}

#[cold]
fn failure(counts: &Counts, refused: &Refused) -> Failure {
    let limit = &counts.limit;
    let seconds = u32::try_from(refused.wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    let kind = FailureKind::RateLimited { limit: limit.requests, seconds: seconds.max(1), global: false };
    let detail = format!("limit \"{}\": {} requests in {:?}", limit.name, limit.requests, limit.per);
    Failure::local(Stage::Authorize, kind, detail).because_of(counts.origin.clone())
}
