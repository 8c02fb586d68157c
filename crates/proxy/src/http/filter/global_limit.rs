//! Asks a service how many requests pass: a filter of ours, `outrigger.global_limit`.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_model::ext_authz::How;
use outrigger_model::global_limit::{self as model, EntryValue};
use outrigger_model::names::is_of_the_proxy;
use outrigger_model::rate_limit::By;
use outrigger_model::request::RequestView;
use outrigger_model::resource::{Flaw, Under};
use outrigger_model::route::table::CompiledMatch;
use outrigger_xds::limits::{self, Descriptor};

use super::act::add;
use super::{Act, After, Build, Input, Place, ResponseEdit, Stop, Tallies, Verdict, Visit};
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::call::message::Answer;
use crate::http::grpc;
use crate::http::head::RequestHead;
use crate::runtime::rate::tally::{Came, Refusals, Tally};

const SHOULD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// A compiled filter.
#[derive(Debug)]
pub struct GlobalLimits {
    config: model::GlobalLimits,
    limits: Vec<(CompiledMatch, Arc<Refusals>)>,
    tally: Arc<Tally>,
}

/// A question: the limits that it is about, and what each tells.
struct Question<'q> {
    about: Vec<&'q Arc<Refusals>>,
    descriptors: Vec<Descriptor<'q>>,
}

/// What follows.
enum Judgement {
    /// With headers for the request, and for its response.
    Passes(limits::Answer),
    /// With headers for the response.
    Refused(Failure, Vec<(String, Vec<u8>)>),
    Failed(Failure),
}

impl Build for GlobalLimits {
    type Config = model::GlobalLimits;

    fn build(config: &model::GlobalLimits, place: &Place<'_>) -> Result<Self, Flaw> {
        let rates = place.rates;
        let limits = config.limits.iter().enumerate().map(|(i, limit)| {
            let matches = CompiledMatch::compile(&limit.matches).under(format_args!("limits[{i}].match"))?;
            Ok((matches, rates.of_global(limit)))
        });
        let limits = limits.collect::<Result<Vec<_>, Flaw>>()?;
        Ok(Self { config: config.clone(), limits, tally: rates.of_service(&config.cluster) })
    }
}

impl Act for GlobalLimits {
    fn on_request(&self, input: &Input<'_>) -> Verdict {
        let asked = self.limits.iter().any(|(matches, _)| matches.mismatch(input.request).is_none());
        if asked { Verdict::Wait } else { Verdict::Continue }
    }

    /// Asks, and does what the answer says.
    async fn settle<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        let Some(question) = self.question(&visit.input()) else { return Ok(After::Same) };
        let (head, body) = self.ask(&question)?;
        let came = visit.call(&self.config.cluster, head, body, self.config.timeout).await?;
        match self.judge(came, &question) {
            Judgement::Passes(answer) => {
                for (name, value) in answer.request.into_iter().filter(|(name, _)| !is_of_the_proxy(name)) {
                    // What does not fit is lost.
                    let _ = visit.head_mut().append(&name, value);
                }
                visit.respond(edits(answer.response, How::Append));
            }
            Judgement::Refused(failure, response) => {
                visit.respond(edits(response, How::Set));
                return Err(failure.into());
            }
            Judgement::Failed(failure) if self.config.status_on_error.is_none() => {
                tracing::debug!(%failure, "a request passes without its rate limit");
            }
            Judgement::Failed(failure) => return Err(failure.into()),
        }
        Ok(After::Same)
    }

    fn tally<'t>(&'t self, all: &mut Tallies<'t>) {
        self.limits.iter().for_each(|(_, refusals)| add(&mut all.refusals, refusals));
        add(&mut all.services, &self.tally);
    }
}

impl GlobalLimits {
    /// What is asked of a request, if anything: as in Envoy there is no question where an entry has no value.
    fn question(&self, input: &Input<'_>) -> Option<Question<'_>> {
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

    /// The request that asks it.
    fn ask(&self, question: &Question<'_>) -> Result<(RequestHead, Bytes), Failure> {
        let head =
            grpc::unary(SHOULD, &self.config.authority, Some(self.config.timeout)).map_err(|error| {
                Failure::local(Stage::Authorize, FailureKind::LimiterUnavailable(500), error.to_string())
            })?;
        Ok((head, grpc::framed(&limits::encode(&self.config.domain, &question.descriptors))))
    }

    /// What an answer means.
    fn judge(&self, came: Result<Answer, Failure>, question: &Question<'_>) -> Judgement {
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

/// What the service says in the response, but for what is not its own to say.
fn edits(headers: Vec<(String, Vec<u8>)>, how: How) -> impl Iterator<Item = ResponseEdit> {
    let headers = headers.into_iter().filter(|(name, _)| !is_of_the_proxy(name));
    headers.map(move |(name, value)| ResponseEdit { name: name.into(), value, how })
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
