//! `explain`: what becomes of a request, and why.

use std::process::ExitCode;

use outrigger_control::explain::body::{
    ExplainRequest, Explanation, InboundBody, LevelBody, Lost, PlaceBody, TargetBody,
};

use super::Server;
use crate::print::{Form, Tree, show_as};

mod past;

/// Say what becomes of a request, and why: the rules that take it and those that lose. Nothing is sent. With `--request` what
/// became of one.
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// The method (GET if there is none) and the URL: GET <http://reviews.shop:8080/x>
    #[arg(required_unless_present = "id", num_args = 1..=2, value_name = "METHOD URL")]
    request: Vec<String>,
    /// Who sends it: an instance, or a service as web, web.shop or shop/web
    #[arg(long, value_name = "WORKLOAD", required_unless_present = "id")]
    from: Option<String>,
    /// A request that was made, by its x-request-id: what sidecars remember of it
    #[arg(long = "request", value_name = "ID", conflicts_with_all = ["request", "from"])]
    id: Option<String>,
    /// The admin address of a sidecar to ask, http://HOST:PORT; several, of a request's whole way
    #[arg(long = "sidecar", value_name = "URL", requires = "id", default_value = "http://127.0.0.1:15000")]
    sidecars: Vec<String>,
    /// A header, as 'name: value'
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Tree, JSON or YAML
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
    #[command(flatten)]
    server: Server,
}

impl Explain {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(id) = &self.id {
            let past = past::ask(id, &self.sidecars, &self.headers, &self.server).await?;
            show_as(self.output, &past, || past.text())?;
            return Ok(ExitCode::SUCCESS);
        }
        let client = self.server.client()?;
        let (method, url) = match self.request.as_slice() {
            [method, url] => (method.to_ascii_uppercase(), url.clone()),
            only => ("GET".to_owned(), only.concat()),
        };
        let asked =
            ExplainRequest { from: self.from.unwrap_or_default(), method, url, headers: self.headers };
        let answer = client.explain(&asked).await?;
        show_as(self.output, &answer, || text(&answer))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn text(answer: &Explanation) -> String {
    let request = &answer.request;
    let whole = format!("{} {}{}", request.method, request.authority, request.path);
    let mut tree = Tree::new(format!("{whole} from {} ({})", answer.source.instance, answer.source.service));
    tree.add(&answer.summary);
    if let Some(sidecar) = &answer.source.sidecar {
        tree.add(format!("{sidecar} says which services it knows"));
    }
    if let Some(written) = &request.written {
        tree.add(format!("the path was written {written}"));
    }
    if let Some(listener) = &answer.listener {
        tree.add(format!("listener {}, chain {} ({})", listener.name, listener.chain, listener.protocol));
    }
    if let Some(route) = &answer.route {
        let name = if route.name.is_empty() { "without a name" } else { &route.name };
        let mut below = Tree::new(format!("route {name}{}", by(route.origin.as_deref())));
        below.add(format!("takes: {}", route.matches));
        below.add(&route.action);
        below.add(format!("timeout: {}", route.timeout.as_deref().unwrap_or("none")));
        below.add(format!("retries: {}", route.retry.as_deref().unwrap_or("none")));
        for line in route.edits.iter().chain(&route.more) {
            below.add(line);
        }
        tree.push(below);
    }
    answer.targets.iter().for_each(|target| tree.push(of_target(target)));
    let mut lost: Vec<String> = answer.lost.iter().map(of_lost).collect();
    if answer.lost_count > lost.len() {
        lost.push(format!("and {} more", answer.lost_count - lost.len()));
    }
    tree.group("rules that lost, by precedence", lost);
    tree.group("notes", answer.notes.iter().cloned());
    match answer.in_force {
        Some(false) => tree.add(format!(
            "generation {}, which {} does not have yet",
            answer.generation, answer.source.instance
        )),
        _ => tree.add(format!("generation {}", answer.generation)),
    };
    tree.text()
}

fn of_target(target: &TargetBody) -> Tree {
    let to = format!("{}{}", target.cluster, by(target.origin.as_deref()));
    let mut tree = Tree::new(format!("{}% to {to}", short(target.percent)));
    if let Some(path) = &target.path {
        tree.add(format!("as {path}"));
    }
    for line in &target.policy {
        tree.add(line);
    }
    let mut endpoints =
        Tree::new(format!("{} of {} endpoints take requests", target.healthy, target.endpoints));
    target.inbound.iter().for_each(|inbound| endpoints.push(of_inbound(inbound)));
    tree.push(endpoints);
    target.levels.iter().for_each(|level| tree.push(of_level(level)));
    if !target.spare.is_empty() {
        let mut spare = Tree::new("only if nearer ones fail");
        target.spare.iter().for_each(|inbound| spare.push(of_inbound(inbound)));
        tree.push(spare);
    }
    tree
}

/// A priority, and its places.
pub(crate) fn of_level(level: &LevelBody) -> Tree {
    let takes = level.places.iter().any(|place| place.healthy > 0);
    let mut tree = Tree::new(match (level.percent, takes) {
        (0, false) => format!("priority {}: no endpoint takes requests", level.priority),
        (0, true) => format!("priority {}: only if nearer ones fail", level.priority),
        (percent, _) => format!("priority {}: {percent}%", level.priority),
    });
    for PlaceBody { place, percent, healthy, endpoints } in &level.places {
        let place = if place.is_empty() { "no region" } else { place };
        let share = if level.percent == 0 { String::new() } else { format!("{}%, ", short(*percent)) };
        tree.add(format!("{place}: {share}{healthy} of {endpoints} endpoints take requests"));
    }
    tree
}

/// With two digits behind the point, or fewer.
fn short(percent: f64) -> String {
    let text = format!("{percent:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn of_inbound(inbound: &InboundBody) -> Tree {
    let more = inbound.count.saturating_sub(inbound.instances.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let mut tree = Tree::new(format!("{}{more}", inbound.instances.join(", ")));
    tree.add(match &inbound.mtls {
        Some(mode) => format!("comes as {}; accepted is {mode}", inbound.transport),
        None => format!("comes as {}", inbound.transport),
    });
    let status = inbound.status.map_or(String::new(), |status| format!(" with {status}"));
    tree.add(format!("{}{status}{}: {}", inbound.decision, by(inbound.origin.as_deref()), inbound.why));
    tree.group("limits that count it", inbound.limits.iter().cloned());
    tree.group("policies that do not match", inbound.lost.iter().map(of_lost));
    tree
}

pub(crate) fn of_lost(lost: &Lost) -> String {
    match (lost.rule.as_str(), &lost.origin) {
        ("", Some(origin)) => format!("{origin}: {}", lost.why),
        (rule, origin) => format!("{rule}{}: {}", by(origin.as_deref()), lost.why),
    }
}

pub(crate) fn by(origin: Option<&str>) -> String {
    origin.map_or(String::new(), |origin| format!(" ({origin})"))
}

#[cfg(test)]
mod tests {
    use outrigger_control::explain::body::{RequestBody, RouteBody, SourceBody};

    use super::*;

    fn level(priority: u32, percent: u8, places: &[(&str, f64, usize)]) -> LevelBody {
        let place = |(place, percent, healthy): &(&str, f64, usize)| PlaceBody {
            place: (*place).to_owned(),
            percent: *percent,
            healthy: *healthy,
            endpoints: 3,
        };
        LevelBody { priority, percent, places: places.iter().map(place).collect() }
    }

    #[test]
    fn a_share_has_no_more_digits_than_it_needs() {
        for (percent, text) in [(100.0, "100"), (33.333_33, "33.33"), (0.5, "0.5"), (0.0, "0")] {
            assert_eq!(short(percent), text);
        }
    }

    #[test]
    fn an_answer_reads_from_the_request_down_to_the_policies() {
        let inbound = InboundBody {
            instances: vec!["reviews-v2".into()],
            count: 3,
            transport: "plain text".into(),
            decision: "denied".into(),
            status: Some(403),
            origin: Some("AuthorizationPolicy shop/deny".into()),
            why: "denied by policy deny".into(),
            ..InboundBody::default()
        };
        let target = TargetBody {
            cluster: "outbound|80|v2|reviews".into(),
            percent: 100.0,
            healthy: 3,
            endpoints: 4,
            levels: vec![
                level(0, 99, &[("eu/a", 66.0, 2), ("", 33.0, 1)]),
                level(1, 1, &[("eu/b", 1.0, 1)]),
                level(2, 0, &[("us", 0.0, 1)]),
                level(3, 0, &[("as", 0.0, 0)]),
            ],
            spare: vec![InboundBody { instances: vec!["reviews-us".into()], count: 1, ..inbound.clone() }],
            inbound: vec![inbound],
            ..TargetBody::default()
        };
        let lost = Lost {
            rule: "reviews[0]".into(),
            origin: Some("VirtualService shop/reviews".into()),
            why: "the path".into(),
        };
        let answer = Explanation {
            generation: 7,
            in_force: Some(false),
            summary: "is denied".into(),
            source: SourceBody {
                instance: "web-1".into(),
                service: "shop/web".into(),
                ..SourceBody::default()
            },
            request: RequestBody {
                method: "GET".into(),
                authority: "reviews".into(),
                path: "/x".into(),
                written: None,
            },
            route: Some(RouteBody {
                name: "reviews[1]".into(),
                action: "forwards".into(),
                ..RouteBody::default()
            }),
            targets: vec![target],
            lost: vec![lost],
            lost_count: 2,
            ..Explanation::default()
        };
        let text = text(&answer);
        for line in [
            "GET reviews/x from web-1 (shop/web)\n├─ is denied\n",
            "├─ route reviews[1]\n",
            "│  └─ retries: none\n",
            "├─ 100% to outbound|80|v2|reviews\n│  ├─ 3 of 4 endpoints take requests\n│  │  └─ reviews-v2 and 2 more\n",
            "│  ├─ priority 0: 99%\n│  │  ├─ eu/a: 66%, 2 of 3 endpoints take requests\n│  │  └─ no region: 33%, 1 of 3",
            "│  ├─ priority 2: only if nearer ones fail\n│  │  └─ us: 1 of 3 endpoints take requests\n",
            "│  ├─ priority 3: no endpoint takes requests\n",
            "│  └─ only if nearer ones fail\n│     └─ reviews-us\n",
            "└─ denied with 403 (AuthorizationPolicy shop/deny): denied by policy deny\n",
            "│  ├─ reviews[0] (VirtualService shop/reviews): the path\n│  └─ and 1 more\n",
            "└─ generation 7, which web-1 does not have yet\n",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }
}
