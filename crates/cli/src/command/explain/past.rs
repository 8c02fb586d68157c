//! A request that was made: what its sidecars remember of it, and what would become of it now.

use anyhow::{Context, bail};
use outrigger_control::explain::body::{ExplainRequest, Explanation};
use outrigger_proxy::recent::{Ended, Page};
use serde::Serialize;

use super::{by, text};
use crate::command::{Server, traces};
use crate::print::Tree;

/// What is known of a request.
#[derive(Debug, Serialize)]
pub(super) struct Past {
    hops: Vec<Hop>,
}

/// What one sidecar knows.
#[derive(Debug, Serialize)]
struct Hop {
    sidecar: String,
    #[serde(flatten)]
    ended: Ended,
    /// What would become of it now.
    now: Option<Explanation>,
    /// Why that is not known, or in what it differs.
    note: Option<String>,
}

/// Asks sidecars for a request.
///
/// # Errors
/// One does not answer, or none has it.
pub(super) async fn ask(
    id: &str,
    sidecars: &[String],
    headers: &[String],
    server: &Server,
) -> anyhow::Result<Past> {
    let mut hops = Vec::new();
    let mut all = true;
    for sidecar in sidecars {
        let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
        let body = traces::get(sidecar, &format!("/requests?id={id}")).await?;
        let page: Page = serde_json::from_slice(&body).with_context(|| format!("{sidecar}/requests"))?;
        all &= page.all;
        for ended in page.requests {
            let (now, note) = match ended.outbound {
                true => replay(&page.node, &ended, headers, server).await,
                false => (None, None),
            };
            hops.push(Hop { sidecar: page.node.clone(), ended, now, note });
        }
    }
    if hops.is_empty() {
        let kept = if all {
            "the last 256"
        } else {
            "those that failed (POST /requests?keep=all keeps others, too)"
        };
        bail!(
            "{} knows no request {id}: it has not ended, was sent elsewhere (--sidecar), or is none of {kept}",
            sidecars.join(" or ")
        );
    }
    hops.sort_by(|a, b| a.ended.began.cmp(&b.ended.began));
    Ok(Past { hops })
}

async fn replay(
    node: &str,
    ended: &Ended,
    headers: &[String],
    server: &Server,
) -> (Option<Explanation>, Option<String>) {
    let asked = ExplainRequest {
        from: node.to_owned(),
        method: ended.method.clone(),
        url: format!("http://{}{}", ended.authority, ended.path),
        headers: headers.to_vec(),
    };
    let answer = async { anyhow::Ok(server.client()?.explain(&asked).await?) };
    match answer.await {
        Ok(now) => {
            let note = differs(ended, &now);
            (Some(now), note)
        }
        Err(error) => (None, Some(format!("what would become of it now is not known: {error:#}"))),
    }
}

/// Why another route takes it now, as far as that can be said.
fn differs(ended: &Ended, now: &Explanation) -> Option<String> {
    let route = now.route.as_ref().map(|route| route.name.as_str());
    if route == ended.route.as_deref() {
        return None;
    }
    let name = |route: Option<&str>| match route {
        None => "no route".to_owned(),
        Some("") => "a route without a name".to_owned(),
        Some(route) => format!("route {route}"),
    };
    Some(format!(
        "{} took it, and now {} would: the configuration has changed since, or its headers decided, which sidecars do not keep (-H says them)",
        name(ended.route.as_deref()),
        name(route)
    ))
}

impl Past {
    pub(super) fn text(&self) -> String {
        self.hops.iter().map(of_hop).collect()
    }
}

fn of_hop(hop: &Hop) -> String {
    let Ended { method, authority, path, millis, .. } = &hop.ended;
    let way = if hop.ended.outbound { "sent" } else { "received" };
    let mut tree = Tree::new(format!("{method} {authority}{path} {way} by {}", hop.sidecar));
    let ended = &hop.ended;
    let flags = if ended.flags.is_empty() { String::new() } else { format!(", flags {}", ended.flags) };
    let grpc = ended.grpc_status.map_or(String::new(), |status| format!(", gRPC status {status}"));
    tree.add(match ended.status {
        0 => format!("had no answer{flags}"),
        status => format!("was answered {status}{grpc}{flags} ({})", ended.details),
    });
    tree.add(format!(
        "began {}, took {millis:.1} ms, from {}{}",
        ended.began,
        ended.source,
        by(ended.peer.as_deref())
    ));
    if let Some(error) = &ended.error {
        tree.add(format!("{error}{}", by(ended.error_origin.as_deref())));
    }
    match ended.route.as_deref() {
        Some("") => tree.add(format!(
            "a route without a name of {}{}",
            ended.routes,
            by(ended.route_origin.as_deref())
        )),
        Some(route) => tree.add(format!("route {route}{}", by(ended.route_origin.as_deref()))),
        None => tree.add(format!("no route of {}", ended.routes)),
    };
    if let Some(cluster) = &ended.cluster {
        tree.add(format!("cluster {cluster}{}", by(ended.cluster_origin.as_deref())));
    }
    match (ended.attempts, &ended.endpoint) {
        (0, _) => tree.add("not sent on"),
        (1, Some(to)) => tree.add(format!("sent once, to {to}")),
        (times, Some(to)) => tree.add(format!("sent {times} times, last to {to}")),
        (times, None) => tree.add(format!("tried {times} times")),
    };
    tree.add(format!("configuration {} of the sidecar", ended.generation));
    if let Some(note) = &hop.note {
        tree.add(note);
    }
    let mut said = tree.text();
    if let Some(now) = &hop.now {
        said += "now: ";
        said += &text(now);
    }
    said
}
