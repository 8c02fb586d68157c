//! `describe`: the effective rules of a service, and where each comes from.

use std::process::ExitCode;

use outrigger_control::explain::body::RouteBody;
use outrigger_control::explain::describe::{ClusterBody, DescribeQuery, Description, PortBody};

use super::Server;
use super::explain::{by, of_level, of_lost};
use crate::print::{Form, Tree, show_as};

/// Show what holds, and which object says so.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Describe {
    /// The effective rules of a service: routes, subsets, policies, mTLS
    Service(Service),
}

/// Show the effective rules of a service, and the rules that lose.
#[derive(Debug, clap::Args)]
pub(crate) struct Service {
    /// As reviews, reviews.shop, shop/reviews, or a whole host
    service: String,
    /// As a sidecar of this instance or service has it [default: any client of the service's namespace]
    #[arg(long, value_name = "WORKLOAD")]
    from: Option<String>,
    /// Tree, JSON or YAML
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
    #[command(flatten)]
    server: Server,
}

impl Describe {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Service(Service { service, from, output, server }) = self;
        let answer = server.client()?.describe(&DescribeQuery { service, from }).await?;
        show_as(output, &answer, || text(&answer))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn text(answer: &Description) -> String {
    let mut tree = Tree::new(format!("{}, as seen by {}", answer.host, answer.seen_by));
    tree.add(format!("{} registered", instances(answer.instances)));
    tree.group("described by", answer.described_by.iter().cloned());
    tree.group("addresses", answer.addresses.iter().cloned());
    answer.ports.iter().for_each(|port| tree.push(of_port(port)));
    let policies = answer.policies.iter().map(|policy| {
        let (of, at) = (policy.rules, instances(policy.instances));
        format!("{} ({}): {of} rules, at {at}", policy.action, policy.origin)
    });
    tree.group("policies for what comes in", policies);
    tree.group("limits of what comes in", answer.limits.iter().cloned());
    tree.group("rules that lost", answer.lost.iter().map(of_lost));
    tree.group("findings", answer.findings.iter().map(ToString::to_string));
    tree.text()
}

fn instances(count: usize) -> String {
    if count == 1 { "1 instance".to_owned() } else { format!("{count} instances") }
}

fn of_port(port: &PortBody) -> Tree {
    let mut tree = Tree::new(format!("port {} ({})", port.port, port.protocol));
    let mut routes = Tree::new("routes, the first that matches wins");
    port.routes.iter().for_each(|route| routes.push(of_route(route)));
    if port.routes_count > port.routes.len() {
        routes.add(format!("and {} more", port.routes_count - port.routes.len()));
    }
    tree.push(routes);
    port.clusters.iter().for_each(|cluster| tree.push(of_cluster(cluster)));
    let modes = port.mtls.iter().map(|mode| {
        let mode_by =
            mode.origin.as_deref().map_or_else(|| " (default)".to_owned(), |origin| by(Some(origin)));
        format!("{}{mode_by} at {}", mode.mode, instances(mode.instances))
    });
    tree.group("mTLS", modes);
    tree
}

fn of_route(route: &RouteBody) -> Tree {
    let mut tree = Tree::new(format!("{}{}: {}", route.name, by(route.origin.as_deref()), route.matches));
    tree.add(&route.action);
    if let Some(timeout) = &route.timeout {
        tree.add(format!("timeout: {timeout}"));
    }
    if let Some(retry) = &route.retry {
        tree.add(format!("retries: {retry}"));
    }
    for line in route.edits.iter().chain(&route.more) {
        tree.add(line);
    }
    tree
}

fn of_cluster(cluster: &ClusterBody) -> Tree {
    let labels: Vec<_> = cluster.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let name = match cluster.subset.as_str() {
        "" => "all instances".to_owned(),
        subset => format!("subset {subset} [{}]", labels.join(", ")),
    };
    let endpoints = match (cluster.healthy, cluster.endpoints) {
        (Some(healthy), Some(all)) => format!("{healthy} of {all} endpoints take requests"),
        _ => "its endpoints are found by the proxies".to_owned(),
    };
    let mut tree = Tree::new(format!("{name}{}: {endpoints}", by(cluster.origin.as_deref())));
    for line in &cluster.policy {
        tree.add(line);
    }
    cluster.levels.iter().for_each(|level| tree.push(of_level(level)));
    tree
}

#[cfg(test)]
mod tests {
    use outrigger_control::explain::body::Lost;
    use outrigger_control::explain::describe::{ModeBody, PolicyBody};

    use super::*;

    #[test]
    fn a_service_reads_from_its_ports_down_to_its_rules() {
        let origin = Some("VirtualService shop/reviews".to_owned());
        let route = RouteBody {
            name: "reviews[0]".into(),
            origin: origin.clone(),
            matches: "every request".into(),
            action: "forwards to v2".into(),
            ..RouteBody::default()
        };
        let subset = ClusterBody {
            subset: "v2".into(),
            labels: [("version".to_owned(), "v2".to_owned())].into(),
            healthy: Some(1),
            endpoints: Some(2),
            ..ClusterBody::default()
        };
        let port = PortBody {
            port: 80,
            protocol: "http".into(),
            routes: vec![route],
            routes_count: 1,
            clusters: vec![subset],
            mtls: vec![ModeBody { mode: "PERMISSIVE".into(), origin: None, instances: 2 }],
        };
        let policy = PolicyBody {
            origin: "AuthorizationPolicy shop/a".into(),
            action: "DENY".into(),
            rules: 3,
            instances: 1,
        };
        let answer = Description {
            host: "reviews.shop".into(),
            seen_by: "web-1".into(),
            instances: 2,
            ports: vec![port],
            policies: vec![policy],
            lost: vec![Lost { rule: String::new(), origin, why: "hidden".into() }],
            ..Description::default()
        };
        let text = text(&answer);
        for line in [
            "reviews.shop, as seen by web-1\n├─ 2 instances registered\n",
            "│  │  └─ reviews[0] (VirtualService shop/reviews): every request\n│  │     └─ forwards to v2\n",
            "│  ├─ subset v2 [version=v2]: 1 of 2 endpoints take requests\n",
            "│     └─ PERMISSIVE (default) at 2 instances\n",
            "│  └─ DENY (AuthorizationPolicy shop/a): 3 rules, at 1 instance\n",
            "   └─ VirtualService shop/reviews: hidden\n",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }
}
