//! Values that edits of headers write: texts, and texts with Envoy's commands, `%REQ(x-user)%` or `%PROTOCOL%`, in whose place stands
//! what is known of the request and its response.
//!
//! They are read once, where they come from; a request only puts the parts together. What a command means is [`Facts`]'s.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::request::RequestView;

/// Longest format, in bytes, and most commands of one.
const LONGEST: usize = 4096;
const MOST: usize = 32;

/// Bytes of what comes of one, beyond which it is of no use: no head is as long.
const LONGEST_VALUE: usize = 64 * 1024;

/// What an edit writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderText {
    /// This.
    Plain(String),
    /// What its commands say. Where that is nothing at all, nothing is written.
    Format(Box<Format>),
}

impl Default for HeaderText {
    fn default() -> Self {
        Self::Plain(String::new())
    }
}

impl From<&str> for HeaderText {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

impl From<String> for HeaderText {
    fn from(text: String) -> Self {
        Self::Plain(text)
    }
}

/// As people read it.
impl fmt::Display for HeaderText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => f.write_str(text),
            Self::Format(format) => f.write_str(&format.text),
        }
    }
}

/// What is edited: not everything is known of a request that is of its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edited {
    /// A request.
    Request,
    /// A response.
    Response,
}

impl HeaderText {
    /// Reads a value in Envoy's syntax: `%%` is a percent sign, and `%` without another begins a command.
    ///
    /// # Errors
    /// Which command is none, or none here, and why.
    pub fn read(text: &str, edited: Edited) -> Result<Self, String> {
        if !text.contains('%') {
            return Ok(Self::Plain(text.to_owned()));
        }
        let parts = parse(text, edited)?;
        Ok(match parts.as_slice() {
            [] => Self::default(),
            [Part::Text(plain)] => Self::Plain(plain.clone()),
            _ => Self::Format(Box::new(Format { text: text.to_owned(), parts })),
        })
    }

    /// The value in Envoy's syntax.
    pub fn written(&self) -> String {
        match self {
            Self::Plain(text) => text.replace('%', "%%"),
            Self::Format(format) => format.text.clone(),
        }
    }

    /// What is to be written; `None`: nothing, because its commands say nothing.
    pub fn value<F: Facts>(&self, facts: &F) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Plain(text) => Some(text.as_bytes().into()),
            Self::Format(format) => {
                // Blanks around a value are no part of it (RFC 9110, section 5.5).
                let value = format.value(facts);
                let value = value.trim_ascii();
                (!value.is_empty()).then(|| Cow::Owned(value.to_owned()))
            }
        }
    }

    /// The text, where it is nothing else.
    #[inline]
    pub fn plain(&self) -> Option<&str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Format(_) => None,
        }
    }
}

/// A plain text is one; a format says so.
impl Serialize for HeaderText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(text) => serializer.serialize_str(text),
            Self::Format(format) => Written::Format { format: format.text.clone() }.serialize(serializer),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Plain(String),
    Format { format: String },
}

impl<'de> Deserialize<'de> for HeaderText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Plain(text) => Ok(Self::Plain(text)),
            // Of a response more is known, and whose it is was looked at when it was read first.
            Written::Format { format } => {
                Self::read(&format, Edited::Response).map_err(serde::de::Error::custom)
            }
        }
    }
}

/// A text with commands.
#[derive(Debug, Clone)]
pub struct Format {
    /// As it was written.
    text: String,
    parts: Vec<Part>,
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Format {}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Command(Command, Option<usize>),
}

/// What stands for a part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `REQ(X?Y)`: the first value of a header of the request, or else of another, by their lower-case names.
    Request(String, Option<String>),
    /// `RESP(X?Y)`: the same of the response.
    Response(String, Option<String>),
    /// `PROTOCOL`.
    Protocol,
    /// `START_TIME`, as `strftime` would write it in UTC.
    StartTime(String),
    /// `DOWNSTREAM_REMOTE_ADDRESS` and its like.
    DownstreamRemote(Of),
    /// `DOWNSTREAM_LOCAL_ADDRESS` and its like.
    DownstreamLocal(Of),
    /// `REQUESTED_SERVER_NAME`.
    ServerName,
    /// `DOWNSTREAM_PEER_URI_SAN`.
    PeerIdentity,
    /// `ROUTE_NAME`.
    Route,
    /// `UPSTREAM_CLUSTER`.
    Cluster,
    /// `UPSTREAM_HOST`, `UPSTREAM_REMOTE_ADDRESS` and its like.
    UpstreamRemote(Of),
    /// `UPSTREAM_LOCAL_ADDRESS` and its like.
    UpstreamLocal(Of),
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`.
    Attempts,
    /// `RESPONSE_CODE`.
    Status,
    /// `RESPONSE_CODE_DETAILS`.
    Details,
    /// `RESPONSE_FLAGS`.
    Flags,
}

/// Which part of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Both.
    Address,
    /// The host (`…_WITHOUT_PORT`).
    Host,
    /// The port (`…_PORT`).
    Port,
}

/// What is known of a request.
pub trait Facts {
    /// Writes what stands for a command, or nothing.
    fn say(&self, command: &Command, out: &mut Vec<u8>);
}

/// The first value of a header of a request; parts of its first line have names with a colon.
pub fn of_request<'r, R: RequestView>(request: &'r R, name: &'r str) -> Option<&'r [u8]> {
    let text = match name {
        ":method" => request.method(),
        ":path" => request.path(),
        ":authority" | "host" => request.authority(),
        ":scheme" => request.scheme(),
        name => return request.header(name).next(),
    };
    Some(text.as_bytes()).filter(|text| !text.is_empty())
}

impl Format {
    /// The value; empty where nothing is to be written. What is longer than any head may be is cut off, and refused by that.
    pub fn value<F: Facts>(&self, facts: &F) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        for part in &self.parts {
            if out.len() > LONGEST_VALUE {
                break;
            }
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Command(command, most) => {
                    let begin = out.len();
                    facts.say(command, &mut out);
                    if let Some(most) = most {
                        out.truncate(begin.saturating_add(*most).min(out.len()));
                    }
                }
            }
        }
        out
    }
}

fn parse(text: &str, edited: Edited) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    let mut plain = String::new();
    let (mut rest, mut commands) = (text, 0);
    while let Some(at) = rest.find('%') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(more) = rest.strip_prefix('%') {
            plain.push('%');
            rest = more;
            continue;
        }
        let (command, most, more) = command(rest, edited)?;
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        parts.push(Part::Command(command, most));
        commands += 1;
        if text.len() > LONGEST {
            return Err(format!(
                "it has {} bytes, at most {LONGEST} are allowed beside commands",
                text.len()
            ));
        }
        if commands > MOST {
            return Err(format!("it has more than {MOST} commands"));
        }
        rest = more;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

/// A command at the begin of a text behind its percent sign: `NAME`, `(argument)`, `:length`, `%`.
fn command(text: &str, edited: Edited) -> Result<(Command, Option<usize>, &str), String> {
    let end = text.find(|c: char| !(c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()));
    let (name, rest) = text.split_at(end.unwrap_or(text.len()));
    if name.is_empty() {
        return Err("a percent sign begins a command, such as %REQ(x-user)%; one by itself is %%".to_owned());
    }
    let whole = |rest: &str| format!("%{}%", &text[..text.len() - rest.len()]);
    let (argument, rest) = match rest.strip_prefix('(') {
        Some(inner) => {
            let (argument, rest) = inner.split_once(')').ok_or(format!("%{name}( has no end"))?;
            (Some(argument), rest)
        }
        None => (None, rest),
    };
    let (most, rest) = match rest.strip_prefix(':') {
        Some(counted) => {
            let end = counted.find(|c: char| !c.is_ascii_digit()).unwrap_or(counted.len());
            let most = counted[..end].parse::<usize>().ok().filter(|most| *most > 0);
            let most = most.ok_or(format!("the length of %{name} must be a number above 0"))?;
            (Some(most), &counted[end..])
        }
        None => (None, rest),
    };
    let after = rest.strip_prefix('%').ok_or(format!("the command {} has no % at its end", whole(rest)))?;
    Ok((known(name, argument, edited)?, most, after))
}

fn known(name: &str, argument: Option<&str>, edited: Edited) -> Result<Command, String> {
    let command = match (name, argument) {
        ("REQ", Some(names)) => {
            let (name, other) = headers(names)?;
            Command::Request(name, other)
        }
        ("RESP", Some(names)) => {
            let (name, other) = headers(names)?;
            Command::Response(name, other)
        }
        ("REQ" | "RESP", None) => return Err(format!("%{name}% needs a header: %{name}(x-user)%")),
        ("START_TIME", None | Some("")) => Command::StartTime("%Y-%m-%dT%H:%M:%S.%3fZ".to_owned()),
        ("START_TIME", Some(form)) => Command::StartTime(time(form)?),
        (_, Some(argument)) if simple(name).is_some() => {
            return Err(format!("%{name}% takes no argument, and not ({argument})"));
        }
        _ => match simple(name) {
            Some(command) => command,
            None => return Err(unknown(name)),
        },
    };
    let early = edited == Edited::Request
        && matches!(
            command,
            Command::Response(..)
                | Command::UpstreamRemote(_)
                | Command::UpstreamLocal(_)
                | Command::Attempts
                | Command::Status
                | Command::Details
                | Command::Flags
        );
    if early {
        return Err(format!(
            "%{name}% is for headers of responses: of a request it is not known yet when its headers are written"
        ));
    }
    Ok(command)
}

fn simple(name: &str) -> Option<Command> {
    let parts = [("_ADDRESS", Of::Address), ("_ADDRESS_WITHOUT_PORT", Of::Host), ("_PORT", Of::Port)];
    let address = |prefix: &str| {
        let rest = name.strip_prefix(prefix)?;
        parts.iter().find(|(suffix, _)| *suffix == rest).map(|(_, of)| *of)
    };
    if let Some(of) = address("DOWNSTREAM_REMOTE").or_else(|| address("DOWNSTREAM_DIRECT_REMOTE")) {
        return Some(Command::DownstreamRemote(of));
    }
    if let Some(of) = address("DOWNSTREAM_LOCAL") {
        return Some(Command::DownstreamLocal(of));
    }
    if let Some(of) = address("UPSTREAM_REMOTE") {
        return Some(Command::UpstreamRemote(of));
    }
    if let Some(of) = address("UPSTREAM_LOCAL") {
        return Some(Command::UpstreamLocal(of));
    }
    Some(match name {
        "PROTOCOL" => Command::Protocol,
        "REQUESTED_SERVER_NAME" => Command::ServerName,
        "DOWNSTREAM_PEER_URI_SAN" => Command::PeerIdentity,
        "ROUTE_NAME" => Command::Route,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Command::Cluster,
        "UPSTREAM_HOST" => Command::UpstreamRemote(Of::Address),
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Command::Attempts,
        "RESPONSE_CODE" => Command::Status,
        "RESPONSE_CODE_DETAILS" => Command::Details,
        "RESPONSE_FLAGS" => Command::Flags,
        _ => return None,
    })
}

/// Envoy's commands that headers of ours do not have, and what nobody has.
fn unknown(name: &str) -> String {
    let late = [
        "DURATION",
        "REQUEST_DURATION",
        "RESPONSE_DURATION",
        "RESPONSE_TX_DURATION",
        "COMMON_DURATION",
        "BYTES_RECEIVED",
        "BYTES_SENT",
        "TRAILER",
        "GRPC_STATUS",
        "GRPC_STATUS_NUMBER",
        "CONNECTION_TERMINATION_DETAILS",
    ];
    if late.contains(&name) {
        return format!("%{name}% is known only when a request is over, and not when headers are written");
    }
    format!(
        "%{name}% is no command that headers have here; there are REQ(name), RESP(name), PROTOCOL, START_TIME, ROUTE_NAME, UPSTREAM_CLUSTER, \
         REQUESTED_SERVER_NAME, DOWNSTREAM_PEER_URI_SAN, DOWNSTREAM_REMOTE_ADDRESS, DOWNSTREAM_LOCAL_ADDRESS, and of responses RESPONSE_CODE, \
         RESPONSE_CODE_DETAILS, RESPONSE_FLAGS, UPSTREAM_HOST, UPSTREAM_LOCAL_ADDRESS, UPSTREAM_REQUEST_ATTEMPT_COUNT (addresses also with \
         _WITHOUT_PORT, or _PORT in place of _ADDRESS)"
    )
}

/// `X`, or `X?Y`.
fn headers(names: &str) -> Result<(String, Option<String>), String> {
    let one = |name: &str| {
        let token = name.strip_prefix(':').unwrap_or(name);
        let char = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        match !token.is_empty() && token.len() <= 256 && token.bytes().all(char) {
            true => Ok(name.to_ascii_lowercase()),
            false => Err(format!("\"{}\" is not the name of a header", name.escape_debug())),
        }
    };
    match names.split_once('?') {
        Some((name, other)) => Ok((one(name)?, Some(one(other)?))),
        None => Ok((one(names)?, None)),
    }
}

/// What `strftime` can say of a time in UTC; `%3f` are its milliseconds, and `%s` its seconds since 1970.
fn time(form: &str) -> Result<String, String> {
    let mut rest = form;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| ('1'..='9').contains(&c)).len();
        let (width, after) = rest.split_at(digits);
        let letter = after.chars().next();
        let good = match letter {
            Some('f') => width.len() <= 1,
            Some(letter) => width.is_empty() && "YmdeHIMSTFsjybBaAp%".contains(letter),
            None => false,
        };
        if !good {
            return Err(format!(
                "START_TIME({form}): %{width}{} is no part of a time",
                letter.unwrap_or(' ')
            ));
        }
        rest = &after[1..];
    }
    Ok(form.to_owned())
}

#[cfg(test)]
mod tests;
