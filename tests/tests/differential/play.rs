//! Plays a case to one of the proxies, and writes down what came of it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::apps::{Apps, Attempt, COPIES, RUN, field, read_body, read_head};
use super::case::{Group, Step};
use super::sessions;

/// Names that are no part of the comparison; why, docs/differences.md says.
pub const LEFT_OUT: [&str; 11] = [
    "connection",
    "transfer-encoding",
    "server",
    "date",
    "x-request-id",
    "x-envoy-upstream-service-time",
    "x-outrigger-error",
    "traceparent",
    "tracestate",
    // The test's own.
    RUN,
    "x-answers",
];

/// And of copies.
pub const OF_COPIES: [&str; 2] = ["x-envoy-internal", "x-forwarded-for"];

const EXPECTED_TIME: &str = "x-envoy-expected-rq-timeout-ms";

/// One of the two.
#[derive(Clone)]
pub struct Side {
    pub name: &'static str,
    /// Of each listener.
    pub addresses: Vec<SocketAddr>,
}

/// What came of one request.
pub struct Outcome {
    answer: String,
    /// Without its body and what describes it.
    brief: String,
    /// The proxy itself made the answer, of a failure that it names.
    own: bool,
    /// The answer has a body.
    speaks: bool,
    /// What the applications got.
    attempts: String,
}

impl Outcome {
    fn only(answer: String) -> Self {
        let brief = answer.clone();
        Self { answer, brief, own: false, speaks: true, attempts: String::new() }
    }

    /// What two have to be compared by: an Envoy that answers without a word says no less than we who name the failure.
    pub fn comparable(ours: &Self, theirs: &Self) -> [String; 2] {
        let brief = ours.own && !theirs.speaks;
        [ours, theirs].map(|one| {
            let answer = if brief { &one.brief } else { &one.answer };
            format!("{answer}{}", one.attempts)
        })
    }
}

/// What came of each step of a case.
pub async fn play(side: &Side, apps: &Apps, group: &Group, at: usize) -> Vec<Outcome> {
    let case = &group.cases[at];
    let mut answers: Vec<(String, Waited)> = Vec::new();
    for (i, step) in case.steps.iter().enumerate() {
        let run = format!("{}/{}/{at}/{i}", side.name, group.name);
        let (Step::Ask(request) | Step::Hold(request)) = step;
        let request = sessions::carrying(request, apps);
        let (to, host, known) = (side.addresses[group.listener], group.name.clone(), run.clone());
        let asked = async move { ask(to, &host, &request, &known).await };
        let waited = if let Step::Hold(_) = step {
            let task = tokio::spawn(asked);
            apps.until(&run, 1).await;
            Waited::Held(task)
        } else {
            Waited::Answered(asked.await)
        };
        answers.push((run, waited));
    }
    answers.iter().for_each(|(run, _)| apps.release(run));
    let (mut outcomes, mut met) = (Vec::new(), Vec::new());
    for (run, waited) in answers {
        let mut outcome = match waited {
            Waited::Answered(outcome) => outcome,
            Waited::Held(task) => task.await.expect("it does not panic"),
        };
        if let Some(count) = case.copies {
            apps.until(&run, count).await;
        }
        let attempts = apps.attempts(&run);
        let mut seen: Vec<String> =
            attempts.iter().map(|attempt| describe(attempt, &mut met, case.by_chance)).collect();
        if case.copies.is_some() {
            seen.sort();
        }
        outcome.attempts = seen.concat();
        outcomes.push(outcome);
    }
    outcomes
}

enum Waited {
    Answered(Outcome),
    Held(tokio::task::JoinHandle<Outcome>),
}

/// An endpoint has its own name, or that of its turn where chance decides.
fn describe(attempt: &Attempt, met: &mut Vec<&'static str>, by_chance: bool) -> String {
    let name = if by_chance {
        let at = met.iter().position(|name| *name == attempt.endpoint).unwrap_or_else(|| {
            met.push(attempt.endpoint);
            met.len() - 1
        });
        format!("endpoint {at}")
    } else {
        attempt.endpoint.to_owned()
    };
    let (line, mut fields) = split(&attempt.head);
    let is_of =
        |field: &String, names: &[&str]| names.iter().any(|name| field.starts_with(&format!("{name}:")));
    if COPIES.contains(&attempt.endpoint) {
        fields.retain(|field| !is_of(field, &OF_COPIES));
    }
    // Which endpoint is tried first, and so which attempt succeeds.
    if by_chance {
        fields.retain(|field| !is_of(field, &["x-envoy-attempt-count"]));
    }
    format!("\n  {name} got {line} [{}] {:?}", fields.join(", "), attempt.body)
}

/// The first line, and the fields that count, in the order of their names.
fn split(head: &str) -> (String, Vec<String>) {
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let fields = lines.filter_map(|line| line.split_once(':'));
    let mut fields: Vec<String> = fields
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()))
        .filter(|(name, value)| name != "content-length" || value != "0")
        .map(|(name, value)| match name.as_str() {
            EXPECTED_TIME => format!("{name}: {}", in_steps(&value)),
            // Its token says when it ends, to the second.
            "set-cookie" if value.contains("Max-Age") => {
                format!("{name}: …{}", value.split_once(';').map_or("", |(_, rest)| rest))
            }
            _ => format!("{name}: {value}"),
        })
        .collect();
    fields.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
    (first, fields)
}

/// What is left of a time, to the next half second, and of ten seconds or more to the next five: how long attempts and waits between
/// them took is chance.
fn in_steps(value: &str) -> String {
    let step = |millis: u64| if millis > 10_000 { 5000 } else { 500 };
    let next = |millis: u64| (millis.div_ceil(step(millis)) * step(millis)).to_string();
    value.parse().map_or_else(|_| value.to_owned(), next)
}

/// Sends a request, of host `NAME.test` where it names none; the answer as text.
async fn ask(to: SocketAddr, name: &str, request: &str, run: &str) -> Outcome {
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let mut text = format!("{first} HTTP/1.1\r\n");
    if !head.to_ascii_lowercase().contains("\nhost:") {
        text += &format!("Host: {name}.test\r\n");
    }
    lines.for_each(|line| text += &format!("{line}\r\n"));
    if !body.is_empty() {
        text += &format!("content-length: {}\r\n", body.len());
    }
    text += &format!("{RUN}: {run}\r\n\r\n{body}");
    let answer =
        tokio::time::timeout(Duration::from_secs(10), exchange(to, &text, first.starts_with("HEAD ")));
    match answer.await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Outcome::only(format!("failed: {error}")),
        Err(_) => Outcome::only("no answer".to_owned()),
    }
}

async fn exchange(to: SocketAddr, text: &str, is_head: bool) -> std::io::Result<Outcome> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(text.as_bytes()).await?;
    let Some((head, rest)) = read_head(&mut stream).await? else {
        return Ok(Outcome::only("closed".to_owned()));
    };
    let (first, fields) = split(&head);
    let status = first.split(' ').nth(1).unwrap_or_default();
    let body = match status {
        "204" | "304" => Vec::new(),
        _ if is_head => Vec::new(),
        _ => read_body(&mut stream, &head, rest, true).await?,
    };
    let describes =
        |field: &&String| field.starts_with("content-length:") || field.starts_with("content-type:");
    let brief: Vec<&str> = fields.iter().filter(|field| !describes(field)).map(String::as_str).collect();
    Ok(Outcome {
        answer: format!("{status} [{}] {:?}", fields.join(", "), String::from_utf8_lossy(&body)),
        brief: format!("{status} [{}]", brief.join(", ")),
        own: head.to_ascii_lowercase().contains("\nx-outrigger-error:"),
        speaks: field(&head, "content-length").map_or(!body.is_empty(), |length| length != "0"),
        attempts: String::new(),
    })
}
