//! `status`: what is in force, per proxy and per rule; what should be there and is not; and who was turned away.
//!
//! Exit code 2 when the control plane answered and something is not as it should be.

use std::process::ExitCode;

use outrigger_control::api::types::{
    Condition, ProxyStatus, RegistryBody, ReplicaBody, RuleState, RuleStatusBody, StatusBody, TypeStatus,
};
use serde_json::json;

use super::Server;
use crate::print::{Output, clean, show, table};

/// The control plane answered, and something is wrong.
const TROUBLE: u8 = 2;
/// Seconds that somebody who was turned away counts as trouble.
const RECENT: u64 = 300;

/// Show what is in force, what is missing and who was turned away (exit code 2 when something is wrong).
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// Table or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

impl Status {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client()?;
        let (status, rules) = (client.status().await?, client.rules_status().await?);
        show(self.output, &json!({ "status": status, "rules": rules }), || text(&status, &rules))?;
        Ok(if is_well(&status, &rules) { ExitCode::SUCCESS } else { ExitCode::from(TROUBLE) })
    }
}

/// Everybody who should be here is here and has everything in force. What is only on its way counts as well.
fn is_well(status: &StatusBody, rules: &[RuleStatusBody]) -> bool {
    // What any stranger can cause is shown, and makes nothing trouble.
    let recent =
        status.rejections.iter().any(|rejection| rejection.age_seconds < RECENT && !rejection.stranger);
    let refused = status.proxies.iter().any(|proxy| !proxy.refused.is_empty())
        || rules.iter().any(|rule| {
            matches!(rule.state, RuleState::Refused | RuleState::NotEnforced | RuleState::NotUnderstood)
        });
    let odd = !(status.missing.is_empty() && status.problems.is_empty() && status.held.is_empty());
    let sources = |registry: &RegistryBody| {
        registry.state == Condition::Connected && registry.shadowed_count + registry.contested_count == 0
    };
    let odd = odd || !status.registries.iter().all(sources);
    !(recent || refused || odd) && status.notices.is_empty()
}

fn text(status: &StatusBody, rules: &[RuleStatusBody]) -> String {
    let replica = |proxy: &ProxyStatus| proxy.replica.clone().unwrap_or_else(|| "-".to_owned());
    let proxies = status.proxies.iter().map(|proxy| {
        let state = match (proxy.refused.is_empty(), proxy.synced) {
            (false, _) => "REFUSED",
            (true, true) => "SYNCED",
            (true, false) => "STALE",
        };
        let name = proxy.instance.clone().unwrap_or_else(|| proxy.node.clone());
        let types: Vec<String> = proxy.types.iter().map(|(kind, of)| of_type(kind, of)).collect();
        [
            name,
            proxy.client.clone(),
            proxy.version.clone(),
            state.to_owned(),
            proxy.generation.to_string(),
            types.join(", "),
        ]
    });
    let missing = status.missing.iter().map(|missing| {
        let since = age(missing.since_seconds);
        let state = if missing.seen {
            format!("AWAY since {since}")
        } else {
            format!("AWAY, never seen for {since}")
        };
        [missing.instance.clone(), "-".into(), "-".into(), state, "-".into(), missing.service.clone()]
    });
    let mut text = format!("control plane {}, generation {}\n", status.version, status.generation);
    for notice in &status.notices {
        text += &format!("\nATTENTION: {notice}\n");
    }
    text += "\n";
    if !status.replicas.is_empty() {
        let header = ["REPLICA", "VERSION", "STATE", "GENERATION", "PROXIES"];
        text += &table(header, status.replicas.iter().map(replica_row));
        text += "\n";
    }
    if status.proxies.is_empty() && status.missing.is_empty() {
        text += "No sidecar is connected, and no instance is registered.\n";
    } else {
        let header = ["PROXY", "CLIENT", "VERSION", "STATE", "GENERATION", "ACKED/SENT"];
        let rows = proxies.chain(missing);
        if status.replicas.is_empty() {
            text += &table(header, rows);
        } else {
            let [name, client, version, state, generation, acked] = header;
            let replicas = status.proxies.iter().map(replica).chain(std::iter::repeat("-".to_owned()));
            let rows = rows.zip(replicas).map(|([a, b, c, d, e, f], replica)| [a, b, c, d, e, replica, f]);
            text += &table([name, client, version, state, generation, "REPLICA", acked], rows);
        }
    }
    for proxy in &status.proxies {
        for refusal in &proxy.refused {
            text += &format!("  {} refused {refusal:?}\n", clean(&proxy.node));
        }
        if let Some(sidecar) = &proxy.sidecar {
            let name = proxy.instance.as_ref().unwrap_or(&proxy.node);
            text += &format!("  {} has what {sidecar} says\n", clean(name));
        }
    }
    let rows = rules.iter().map(|rule| {
        let state = serde_json::to_value(rule.state).ok().and_then(|s| s.as_str().map(str::to_owned));
        [
            format!("{} {}/{}", rule.kind, rule.namespace, rule.name),
            rule.version.to_string(),
            state.unwrap_or_default(),
            format!("{}/{}", rule.proxies, rule.of),
            rule.reasons.join("; "),
        ]
    });
    text += &troubles(status);
    text += "\n";
    text += &table(["RULE", "VERSION", "STATE", "PROXIES", "REASONS"], rows);
    text
}

/// Answers and responses of a type, and for how long the last response waits for its answer.
fn of_type(kind: &str, of: &TypeStatus) -> String {
    let waits = of.stale_seconds.filter(|seconds| *seconds > 0);
    let waits = waits.map(|seconds| format!(" (stale for {})", age(seconds))).unwrap_or_default();
    format!("{kind} {}/{}{waits}", of.acked, of.sent)
}

/// Of one that does not answer nothing is claimed.
fn replica_row(replica: &ReplicaBody) -> [String; 5] {
    let ReplicaBody { name, version, generation, proxies, leads, error } = replica;
    let state = if *leads { "LEADS" } else { "SERVES" };
    match error {
        Some(_) => [name.clone(), "-".into(), "SILENT".into(), "-".into(), "-".into()],
        None => {
            [name.clone(), version.clone(), state.to_owned(), generation.to_string(), proxies.to_string()]
        }
    }
}

/// Files, leases and callers, where there is something to say.
fn troubles(status: &StatusBody) -> String {
    let mut text = String::new();
    if !status.registries.is_empty() {
        text += "\n";
        text += &table(
            ["REGISTRY", "KIND", "STATE", "HEARD", "INSTANCES", "RULES"],
            status.registries.iter().map(registry),
        );
    }
    for registry in &status.registries {
        text += &registry_trouble(registry);
    }
    for problem in &status.problems {
        text += &format!("\nREGISTRY {}: {problem}; what it said before stays in force\n", problem.registry);
    }
    for held in &status.held {
        text += &format!(
            "\nHELD {}: no heartbeats of {}; so many at once stay registered, deregister them if they are gone\n",
            held.service,
            held.instances.join(", ")
        );
    }
    if !status.rejections.is_empty() {
        let rows = status.rejections.iter().map(|rejection| {
            let last = format!("{} ago", age(rejection.age_seconds));
            let times = rejection.count.to_string();
            let stranger = if rejection.stranger { " (no registered instance is there)" } else { "" };
            let reason = rejection.reason.clone() + stranger;
            [rejection.what.clone(), rejection.from.clone(), times, last, reason]
        });
        text += "\n";
        text += &table(["TURNED AWAY", "FROM", "TIMES", "LAST", "WHY"], rows);
    }
    text
}

fn registry(registry: &RegistryBody) -> [String; 6] {
    let state = match registry.state {
        Condition::Connected => "CONNECTED",
        Condition::Degraded => "DEGRADED",
        Condition::Away => "AWAY",
    };
    let heard =
        registry.heard_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{} ago", age(seconds)));
    let (instances, rules) = (registry.instances.to_string(), registry.rules.to_string());
    [registry.name.clone(), registry.kind.clone(), state.to_owned(), heard, instances, rules]
}

/// Why it is away, and what it has in vain.
fn registry_trouble(registry: &RegistryBody) -> String {
    let mut text = String::new();
    if registry.state == Condition::Away {
        let why = registry.last_error.as_deref().unwrap_or("it has said nothing yet");
        let since = registry.last_error_seconds.map(|seconds| format!(", {} ago", age(seconds)));
        text += &format!(
            "\nREGISTRY {}: {why}{}; what it said before stays in force\n",
            registry.name,
            since.unwrap_or_default()
        );
    }
    for shadowed in &registry.shadowed {
        let part = if shadowed.part.is_empty() { String::new() } else { format!(" ({})", shadowed.part) };
        text += &format!(
            "\nREGISTRY {}: {}{part} is not in force: {} goes before it\n",
            registry.name, shadowed.what, shadowed.by
        );
    }
    let more = registry.shadowed_count - registry.shadowed.len().min(registry.shadowed_count);
    if more > 0 {
        text += &format!("\nREGISTRY {}: {more} more are not in force\n", registry.name);
    }
    for contested in &registry.contested {
        let part = if contested.part.is_empty() { String::new() } else { format!(" ({})", contested.part) };
        text += &format!(
            "\nREGISTRY {}: {}{part} claims {}, which {} has; calls to the address go there\n",
            registry.name, contested.instance, contested.address, contested.by
        );
    }
    let more = registry.contested_count - registry.contested.len().min(registry.contested_count);
    if more > 0 {
        text += &format!("\nREGISTRY {}: {more} more claim addresses of others\n", registry.name);
    }
    text
}

/// The two largest units: `3d4h`, `5m12s`, `40s`.
fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_control::api::types::{ContestedAddress, Missing, Refusal, Rejection, Shadowed};

    use super::*;

    fn empty() -> StatusBody {
        StatusBody {
            version: "1".into(),
            generation: 7,
            rules: 0,
            instances: 0,
            proxies: Vec::new(),
            held: Vec::new(),
            problems: Vec::new(),
            registries: Vec::new(),
            missing: Vec::new(),
            rejections: Vec::new(),
            notices: Vec::new(),
            replicas: Vec::new(),
        }
    }

    #[test]
    fn a_type_says_for_how_long_it_waits_for_an_answer() {
        let mut of = TypeStatus { sent: 5, acked: 4, ..TypeStatus::default() };
        assert_eq!(of_type("Endpoints", &of), "Endpoints 4/5");
        of.stale_seconds = Some(72);
        assert_eq!(of_type("Endpoints", &of), "Endpoints 4/5 (stale for 1m12s)");
        of.stale_seconds = Some(0);
        assert_eq!(of_type("Endpoints", &of), "Endpoints 4/5", "it has only just been sent");
    }

    #[test]
    fn replicas_have_a_table_and_each_sidecar_its_replica() {
        let replica = |name: &str, leads, error: Option<&str>| ReplicaBody {
            name: name.into(),
            version: "1".into(),
            generation: 7,
            proxies: 1,
            leads,
            error: error.map(str::to_owned),
        };
        let proxy = ProxyStatus {
            node: "web-1".into(),
            instance: None,
            identity: None,
            client: "outrigger".into(),
            version: "1".into(),
            connected_seconds: 1,
            generation: 7,
            synced: true,
            replica: Some("control-0".into()),
            sidecar: None,
            types: Default::default(),
            refused: Vec::new(),
        };
        let replicas = vec![replica("control-0", true, None), replica("control-1", false, Some("no answer"))];
        let status = StatusBody { replicas, proxies: vec![proxy], ..empty() };
        let text = text(&status, &[]);
        let line = |word: &str| {
            let found = text.lines().find(|line| line.starts_with(word)).unwrap_or_else(|| panic!("{text}"));
            found.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line("control-0"), ["control-0", "1", "LEADS", "7", "1"]);
        assert_eq!(line("control-1"), ["control-1", "-", "SILENT", "-", "-"], "nothing is claimed of it");
        assert_eq!(
            line("PROXY"),
            ["PROXY", "CLIENT", "VERSION", "STATE", "GENERATION", "REPLICA", "ACKED/SENT"]
        );
        assert_eq!(line("web-1")[5], "control-0");
        let rule = |state| RuleStatusBody {
            kind: "AuthorizationPolicy".into(),
            namespace: "shop".into(),
            name: "deny".into(),
            version: 1,
            generation: 7,
            state,
            proxies: 0,
            of: 1,
            waiting: Vec::new(),
            reasons: Vec::new(),
        };
        assert!(is_well(&status, &[rule(RuleState::InForce)]) && is_well(&status, &[rule(RuleState::Stale)]));
        assert!(!is_well(&status, &[rule(RuleState::NotEnforced)]), "a policy that is none");
        let refusal = Refusal {
            kind: "Endpoints".into(),
            name: "x".into(),
            version: "1".into(),
            field: String::new(),
            reason: "no".into(),
            rules: Vec::new(),
            age_seconds: 1,
        };
        let mut refusing = status.clone();
        refusing.proxies[0].refused.push(refusal);
        refusing.proxies[0].node = "web\n-2\u{1b}[2J".into();
        assert!(!is_well(&refusing, &[]), "no rule is behind it");
        let shown = super::text(&refusing, &[]);
        assert!(shown.contains(r"web\n-2\u{1b}[2J refused"), "{shown}");
    }

    #[test]
    fn what_should_be_there_and_is_not_has_a_row_and_an_exit_code() {
        let missing = |id: &str, seen, since_seconds| Missing {
            instance: id.into(),
            service: "shop/web".into(),
            since_seconds,
            seen,
        };
        let status = StatusBody {
            missing: vec![missing("web-1", true, 3725), missing("web-2", false, 40)],
            ..empty()
        };
        assert!(is_well(&empty(), &[]) && !is_well(&status, &[]));
        let text = text(&status, &[]);
        assert!(text.contains("web-1") && text.contains("AWAY since 1h2m"), "{text}");
        assert!(text.contains("web-2") && text.contains("AWAY, never seen for 40s"), "{text}");
    }

    #[test]
    fn a_registry_that_is_away_or_claims_in_vain_is_told() {
        let away = RegistryBody {
            kept: None,
            name: "dc1".into(),
            kind: "consul".into(),
            state: Condition::Away,
            heard_seconds: Some(125),
            instances: 7,
            rules: 0,
            registered: None,
            failures: 3,
            last_error: Some("nobody answers at 10.0.0.1:8500".into()),
            last_error_seconds: Some(4),
            shadowed: vec![Shadowed {
                what: "c1".into(),
                part: "catalog".into(),
                by: "the management API".into(),
            }],
            shadowed_count: 3,
            contested: vec![ContestedAddress {
                instance: "c2".into(),
                part: "catalog".into(),
                address: "10.0.0.7:8080".into(),
                by: "instance \"b1\" (shop/bank) of the management API".into(),
            }],
            contested_count: 2,
        };
        let well = RegistryBody {
            state: Condition::Connected,
            shadowed: Vec::new(),
            shadowed_count: 0,
            contested: Vec::new(),
            contested_count: 0,
            ..away.clone()
        };
        let contested =
            RegistryBody { contested: away.contested.clone(), contested_count: 2, ..well.clone() };
        let status = |registry: &RegistryBody| StatusBody { registries: vec![registry.clone()], ..empty() };
        assert!(is_well(&status(&well), &[]) && !is_well(&status(&away), &[]));
        assert!(!is_well(&status(&contested), &[]), "who claims what another has is wrong, or a thief");
        assert!(text(&status(&well), &[]).contains("CONNECTED"));
        let shown = text(&status(&away), &[]);
        for said in [
            "AWAY",
            "2m5s ago",
            "dc1: nobody answers at 10.0.0.1:8500, 4s ago; what it said before stays in force",
            "dc1: c1 (catalog) is not in force: the management API goes before it",
            "dc1: 2 more are not in force",
            "dc1: c2 (catalog) claims 10.0.0.7:8080, which instance \"b1\" (shop/bank) of the management API has; calls",
            "dc1: 1 more claim addresses of others",
        ] {
            assert!(shown.contains(said), "{said}: {shown}");
        }
    }

    #[test]
    fn a_lost_authority_and_those_turned_away_are_told() {
        let rejection = Rejection {
            what: "certificate".into(),
            from: "10.0.0.1".into(),
            reason: "it refuses our certificate".into(),
            count: 14,
            age_seconds: 3,
            stranger: false,
        };
        let status = StatusBody { rejections: vec![rejection.clone()], ..empty() };
        assert!(!is_well(&status, &[]));
        let shown = text(&status, &[]);
        assert!(
            shown.contains("No sidecar is connected") && shown.contains("it refuses our certificate"),
            "{shown}"
        );
        let old = StatusBody { rejections: vec![Rejection { age_seconds: 900, ..rejection }], ..empty() };
        assert!(is_well(&old, &[]), "shown, but over");
        let scanner = Rejection { stranger: true, ..old.rejections[0].clone() };
        let scanner = StatusBody { rejections: vec![Rejection { age_seconds: 1, ..scanner }], ..empty() };
        assert!(is_well(&scanner, &[]), "anybody can cause it");
        assert!(text(&scanner, &[]).contains("it refuses our certificate (no registered instance is there)"));
        let lost = StatusBody { notices: vec!["the certificate authority is lost".into()], ..empty() };
        assert!(!is_well(&lost, &[]));
        assert!(text(&lost, &[]).contains("ATTENTION: the certificate authority is lost"));
    }
}
