//! What the commands in values of headers stand for, as far as it is known when headers are written. Reading them is the model's.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::SocketAddr;

use outrigger_model::identity::SpiffeId;
use outrigger_model::route::edits::{Write, Writes};
use outrigger_model::route::table::CompiledRoute;
use outrigger_model::route::text::{Command, Facts, Of, of_request};

use super::context::RequestCtx;
use super::head::ResponseHead;
use crate::failure::Failure;
use crate::flags::Flags;
use crate::record::began::began;
use crate::record::details_of;

/// A request whose headers are edited, or those of its answer.
pub struct About<'a, 'c> {
    pub ctx: &'a RequestCtx<'c>,
    pub route: &'a CompiledRoute,
    pub details: &'a str,
    pub flags: Flags,
    /// Of an answer whose head is not there yet.
    pub status: Option<u16>,
}

impl<'a, 'c> About<'a, 'c> {
    /// A request, or an answer that did not fail.
    pub fn request(ctx: &'a RequestCtx<'c>, route: &'a CompiledRoute) -> Self {
        Self { ctx, route, details: "", flags: ctx.record.flags, status: None }
    }

    /// The answer that is made of a failure.
    pub fn failure(ctx: &'a RequestCtx<'c>, route: &'a CompiledRoute, failure: &'a Failure) -> Self {
        let mut flags = ctx.record.flags;
        flags.add(failure.kind.flag());
        let details = details_of(&failure.kind);
        // Calls of gRPC's have theirs elsewhere.
        let status = if ctx.record.is_grpc { 200 } else { failure.kind.status() };
        Self { ctx, route, details, flags, status: Some(status) }
    }

    /// With the head of the answer as it is now.
    pub fn with<'k>(&'k self, answer: Option<&'k ResponseHead>) -> Known<'k, 'c> {
        Known { about: self, answer }
    }
}

/// What is known.
pub struct Known<'k, 'c> {
    about: &'k About<'k, 'c>,
    answer: Option<&'k ResponseHead>,
}

/// What is written, with what stands for the commands: as it is before any of it is.
#[cold]
pub fn said<'e, F: Facts>(writes: Writes<'e>, known: &F) -> Vec<(Write<'e>, Cow<'e, [u8]>)> {
    writes.filter_map(|write| Some((write, write.pair().1.value(known)?))).collect()
}

impl Facts for Known<'_, '_> {
    fn say(&self, command: &Command, out: &mut Vec<u8>) {
        let About { ctx, route, details, flags, status } = self.about;
        let (record, info) = (&ctx.record, &ctx.conn.info);
        match command {
            Command::Request(name, other) => {
                let found = of_request(&ctx.head, name).or_else(|| of_request(&ctx.head, other.as_deref()?));
                out.extend_from_slice(found.unwrap_or_default());
            }
            Command::Response(name, other) => {
                if !self.answered(name, out)
                    && let Some(other) = other
                {
                    self.answered(other, out);
                }
            }
            Command::Protocol => out.extend_from_slice(record.spoken().unwrap_or_default().as_bytes()),
            Command::StartTime(form) => start_time(ctx, form, out),
            Command::DownstreamRemote(of) => address(Some(info.source), *of, out),
            Command::DownstreamLocal(of) => address(Some(info.destination), *of, out),
            Command::ServerName => {
                out.extend_from_slice(info.server_name.as_deref().unwrap_or_default().as_bytes());
            }
            Command::PeerIdentity => {
                out.extend_from_slice(info.peer.as_ref().map_or("", SpiffeId::as_str).as_bytes());
            }
            Command::Route => out.extend_from_slice(route.config.name.as_bytes()),
            Command::Cluster => {
                out.extend_from_slice(record.cluster.as_ref().map_or("", |cluster| &cluster.name).as_bytes());
            }
            Command::UpstreamRemote(of) => {
                address(record.endpoint.as_ref().map(|endpoint| endpoint.address), *of, out);
            }
            Command::UpstreamLocal(of) => address(record.upstream_local, *of, out),
            Command::Attempts => number(record.attempts, out),
            Command::Status => {
                let status = self.answer.map(ResponseHead::status).or(*status);
                number(status.unwrap_or_default().into(), out);
            }
            Command::Details => out.extend_from_slice(details.as_bytes()),
            // Writing to a vector cannot fail.
            Command::Flags => drop(write!(out, "{flags}")),
        }
    }
}

impl Known<'_, '_> {
    /// Whether the answer has a header.
    fn answered(&self, name: &str, out: &mut Vec<u8>) -> bool {
        let Some(answer) = self.answer else { return false };
        if name == ":status" {
            number(answer.status().into(), out);
            return true;
        }
        let found = answer.first(name);
        out.extend_from_slice(found.unwrap_or_default());
        found.is_some()
    }
}

/// Nothing where there is none yet.
fn number(number: u32, out: &mut Vec<u8>) {
    if number > 0 {
        let _ = write!(out, "{number}");
    }
}

fn address(address: Option<SocketAddr>, of: Of, out: &mut Vec<u8>) {
    let Some(address) = address else { return };
    let _ = match of {
        Of::Address => write!(out, "{address}"),
        Of::Host => write!(out, "{}", address.ip()),
        Of::Port => write!(out, "{}", address.port()),
    };
}

fn start_time(ctx: &RequestCtx<'_>, form: &str, out: &mut Vec<u8>) {
    let timestamp = began(ctx.record.started);
    // Half of a time that cannot be said is no time.
    let begin = out.len();
    if write!(out, "{}", timestamp.strftime(form)).is_err() {
        out.truncate(begin);
    }
}
