//! Rate limits that a service keeps for all: a filter of ours (`proto/outrigger/v1/global_limit.proto`), which asks by Envoy's protocol
//! (`envoy.service.ratelimit.v3.RateLimitService`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::filter::FilterConfig;
use crate::origin::Origin;
use crate::rate_limit::By;
use crate::route::RouteMatch;

/// Most entries of one descriptor, and bytes of a key or a value that is written.
pub const MOST_ENTRIES: usize = 16;
/// Bytes of a key, or of a value that is written.
pub const LONGEST: usize = 256;

/// Whom to ask, and what about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlobalLimits {
    /// The name of a cluster.
    pub cluster: String,
    /// `:authority` of the calls.
    pub authority: String,
    /// Which of the service's limits are meant.
    pub domain: String,
    /// For the answer.
    pub timeout: Duration,
    /// What a request gets when nobody answers. Absent: it passes.
    pub status_on_error: Option<u16>,
    /// What is asked about; one question for all that a request falls under.
    pub limits: Vec<GlobalLimit>,
}

impl FilterConfig for GlobalLimits {
    fn cluster(&self) -> Option<&str> {
        Some(&self.cluster)
    }

    fn origins(&self) -> Vec<&Origin> {
        self.limits.iter().filter_map(|limit| limit.origin.as_ref()).collect()
    }
}

/// One descriptor, for some requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlobalLimit {
    /// The user's name for it.
    pub name: String,
    /// The requests that count.
    pub matches: RouteMatch,
    /// What the service is told, in order. Where an entry has no value there is no question.
    pub descriptor: Vec<Entry>,
    /// The user object that says so.
    pub origin: Option<Origin>,
}

/// A key and where its value is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// As the service's limits call it.
    pub key: String,
    /// Its value.
    pub value: EntryValue,
}

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryValue {
    /// Something of the request.
    Of(By),
    /// It is written down.
    Text(String),
}

impl GlobalLimit {
    /// What is wrong with it, by the field.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if !(1..=MOST_ENTRIES).contains(&self.descriptor.len()) {
            return Err(("descriptor", "must have 1 to 16 entries"));
        }
        let fits = |text: &str| (1..=LONGEST).contains(&text.len()) && !text.chars().any(char::is_control);
        let good = |entry: &Entry| match &entry.value {
            EntryValue::Text(text) => fits(&entry.key) && fits(text),
            EntryValue::Of(_) => fits(&entry.key),
        };
        match self.descriptor.iter().all(good) {
            true => Ok(()),
            false => {
                Err(("descriptor", "keys and values must have 1 to 256 bytes and no control characters"))
            }
        }
    }
}
