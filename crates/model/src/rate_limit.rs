//! How many requests a workload takes: a filter of ours (`proto/outrigger/v1/rate_limit.proto`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::filter::FilterConfig;
use crate::local_limit::Bucket;
use crate::origin::Origin;
use crate::route::RouteMatch;

/// Most requests of one limit, and most at once.
pub const MOST_REQUESTS: u32 = 1_000_000;
/// Most limits of one listener: each request goes through them all.
pub const MOST_LIMITS: usize = 32;
/// Most parts that tell counts of a limit apart.
pub const MOST_PARTS: usize = 8;
/// Shortest and longest time that requests are counted in.
pub const TIMES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(24 * 3600));

/// One limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateLimit {
    /// The user's name for it.
    pub name: String,
    /// The requests that count.
    pub matches: RouteMatch,
    /// Each value of these has a count of its own. Empty: one count for all.
    pub by: Vec<By>,
    /// So many requests, 1 to [`MOST_REQUESTS`].
    pub requests: u32,
    /// In this time, of whole milliseconds within [`TIMES`].
    pub per: Duration,
    /// How they are counted.
    pub algorithm: Algorithm,
    /// The user object that says so.
    pub origin: Option<Origin>,
}

impl FilterConfig for RateLimit {
    fn origins(&self) -> Vec<&Origin> {
        self.origin.iter().collect()
    }
}

/// How requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Tokens come evenly, so many in the limit's time.
    TokenBucket {
        /// At most so many wait: as many requests may come at once. 1 to [`MOST_REQUESTS`].
        burst: u32,
    },
    /// Never more than the limit in any stretch of its time; a request counts up to a tenth of it longer.
    SlidingWindow,
}

/// What tells counts apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// The identity that the caller has proved, or else its address.
    Caller,
    /// The caller's address.
    Address,
    /// The path, in the form in which it is judged, without the query.
    Path,
    /// The values of this header, in lower case. Requests without it share a count.
    Header(String),
}

impl From<&Bucket> for RateLimit {
    /// Of all requests, as one count.
    fn from(bucket: &Bucket) -> Self {
        Self {
            name: bucket.name.clone(),
            matches: RouteMatch::any(),
            by: Vec::new(),
            requests: bucket.tokens,
            per: bucket.per,
            algorithm: Algorithm::TokenBucket { burst: bucket.most },
            origin: None,
        }
    }
}

impl RateLimit {
    /// What is wrong with it, by the field.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let count = |count: u32| (1..=MOST_REQUESTS).contains(&count);
        if !count(self.requests) {
            return Err(("requests", "must be from 1 to 1,000,000"));
        }
        if !(TIMES.0..=TIMES.1).contains(&self.per) {
            return Err(("per", "must be from 10ms to 24h"));
        }
        if self.by.len() > MOST_PARTS {
            return Err(("by", "must have at most 8 parts"));
        }
        match self.algorithm {
            Algorithm::TokenBucket { burst } if !count(burst) => {
                Err(("burst", "must be from 1 to 1,000,000"))
            }
            _ => Ok(()),
        }
    }
}
