//! Asks a service how many requests pass: a filter of ours, `outrigger.global_limit`. Here is what is asked and what an answer means; that
//! the request waits meanwhile is `chain`'s.

use std::net::IpAddr;
use std::sync::Arc;

use outrigger_model::global_limit::{self as model, EntryValue};
use outrigger_model::rate_limit::By;
use outrigger_model::request::RequestView;
use outrigger_model::resource::{Flaw, Under};
use outrigger_model::route::table::CompiledMatch;
use outrigger_xds::limits::{self, Descriptor};

use super::{Input, Verdict};
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::call::message::{Answer, Call};
use crate::http::grpc;
use crate::http::h1::Framing;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::Reach;
use crate::runtime::rate::Rates;
use crate::runtime::rate::tally::{Came, Refusals, Tally};

const SHOULD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Of an answer.
const MOST_ANSWER: usize = 64 * 1024;

/// A compiled filter.
#[derive(Debug)]
pub struct GlobalLimits {
    pub config: model::GlobalLimits,
    limits: Vec<(CompiledMatch, Arc<Refusals>)>,
    pub tally: Arc<Tally>,
}

/// A question: the limits that it is about, and what each tells.
pub struct Question<'q> {
    about: Vec<&'q Arc<Refusals>>,
    descriptors: Vec<Descriptor<'q>>,
}

/// What follows.
pub enum Judgement {
    /// With headers for the request, and for its response.
    Passes(limits::Answer),
    /// With headers for the response.
    Refused(Failure, Vec<(String, Vec<u8>)>),
    Failed(Failure),
}

impl GlobalLimits {
    /// Compiles it.
    ///
    /// # Errors
    /// A match that is none.
    pub fn build(config: &model::GlobalLimits, rates: &Rates) -> Result<Self, Flaw> {
        let limits = config.limits.iter().enumerate().map(|(i, limit)| {
            let matches = CompiledMatch::compile(&limit.matches).under(format_args!("limits[{i}].match"))?;
            Ok((matches, rates.of_global(limit)))
        });
        let limits = limits.collect::<Result<Vec<_>, Flaw>>()?;
        Ok(Self { config: config.clone(), limits, tally: rates.of_service(&config.cluster) })
    }

    /// For metrics.
    pub fn refusals(&self) -> impl Iterator<Item = &Arc<Refusals>> {
        self.limits.iter().map(|(_, refusals)| refusals)
    }

    pub fn on_request(&self, input: &Input<'_>) -> Verdict {
        let asked = self.limits.iter().any(|(matches, _)| matches.mismatch(input.request).is_none());
        if asked { Verdict::Ask } else { Verdict::Continue }
    }

    /// What is asked of a request, if anything: as in Envoy there is no question where an entry has no value.
    pub fn question(&self, input: &Input<'_>) -> Option<Question<'_>> {
        let mut question = Question { about: Vec::new(), descriptors: Vec::new() };
        for (matches, refusals) in &self.limits {
            if matches.mismatch(input.request).is_some() {
                continue;
            }
            let entry = |entry: &'_ model::Entry| value(&entry.value, input);
            let entries = &refusals.limit.descriptor;
            let values: Option<Vec<String>> = entries.iter().map(entry).collect();
            if let Some(values) = values {
                question.about.push(refusals);
                question
                    .descriptors
                    .push(entries.iter().map(|entry| entry.key.as_str()).zip(values).collect());
            }
        }
        (!question.about.is_empty()).then_some(question)
    }

    /// The call that asks it.
    ///
    /// # Errors
    /// It cannot be put.
    pub fn ask(
        &self,
        question: &Question<'_>,
        input: &Input<'_>,
        cluster: &Arc<ClusterHandle>,
    ) -> Result<Call, Failure> {
        let (cluster, timeout) = (cluster.clone(), self.config.timeout);
        let head = grpc::unary(SHOULD, &self.config.authority, Some(timeout)).map_err(|error| {
            Failure::local(Stage::Authorize, FailureKind::LimiterUnavailable(500), error.to_string())
        })?;
        let body = grpc::framed(&limits::encode(&self.config.domain, &question.descriptors));
        let framing = Framing::Length(body.len() as u64);
        let original = (input.connection.destination, Reach::Network);
        let (trailers, hash, again) = (None, None, true);
        Ok(Call { cluster, head, framing, body, trailers, original, hash, timeout, again, most: MOST_ANSWER })
    }

    /// What an answer means.
    pub fn judge(&self, came: Result<Answer, Failure>, question: &Question<'_>) -> Judgement {
        let read = |answer: Answer| limits::decode(answer.message()?);
        match came.map_err(|failure| failure.to_string()).and_then(read) {
            Ok(limits::Answer { over: Some(over), response, .. }) => {
                self.tally.note(Came::OverLimit);
                let Some(refusals) = question.about.get(over.which).or(question.about.first()) else {
                    return self.failed("the answer is about nothing that was asked");
                };
                refusals.note();
                Judgement::Refused(refused(&self.config, refusals, &over), response)
            }
            Ok(answer) => {
                self.tally.note(Came::Ok);
                Judgement::Passes(answer)
            }
            Err(why) => self.failed(&why),
        }
    }

    fn failed(&self, why: &str) -> Judgement {
        self.tally.note(Came::Error);
        if self.config.status_on_error.is_none() {
            self.tally.note(Came::Allowed);
        }
        let kind = FailureKind::LimiterUnavailable(self.config.status_on_error.unwrap_or(500));
        let detail = format!("{} could not be asked: {why}", self.config.cluster);
        Judgement::Failed(Failure::local(Stage::Authorize, kind, detail))
    }
}

#[cold]
fn refused(config: &model::GlobalLimits, refusals: &Refusals, over: &limits::Over) -> Failure {
    let seconds =
        over.wait.map_or(0, |wait| u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1));
    let kind = FailureKind::RateLimited { limit: over.requests, seconds, global: true };
    let detail = format!("limit \"{}\": {} says that there is no room", refusals.limit.name, config.cluster);
    Failure::local(Stage::Authorize, kind, detail).because_of(refusals.limit.origin.clone().map(Arc::new))
}

fn value(value: &EntryValue, input: &Input<'_>) -> Option<String> {
    let address = || match input.connection.source.ip().to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        // A host has all of its network's addresses.
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{}/64", std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    };
    Some(match value {
        EntryValue::Text(text) => text.clone(),
        EntryValue::Of(By::Caller) => input.connection.peer.map_or_else(address, ToString::to_string),
        EntryValue::Of(By::Address) => address(),
        EntryValue::Of(By::Path) => {
            let path = RequestView::path(input.request);
            path.split_once('?').map_or(path, |(path, _)| path).to_owned()
        }
        EntryValue::Of(By::Header(name)) => {
            let values = input.request.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
            let all = values.reduce(|all, value| all + "," + &value)?;
            // What is empty is no value: services refuse the whole question.
            Some(all).filter(|all| !all.is_empty())?
        }
    })
}
