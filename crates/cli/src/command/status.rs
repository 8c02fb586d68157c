//! `status`: what is in force, per proxy and per rule.

use std::process::ExitCode;

use outrigger_control::api::types::{RuleStatusBody, StatusBody};
use serde_json::json;

use super::Server;
use crate::print::{Output, show, table};

/// Show what is in force.
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
        Ok(ExitCode::SUCCESS)
    }
}

fn text(status: &StatusBody, rules: &[RuleStatusBody]) -> String {
    let proxies = status.proxies.iter().map(|proxy| {
        let state = match (proxy.refused.is_empty(), proxy.synced) {
            (false, _) => "REFUSED",
            (true, true) => "SYNCED",
            (true, false) => "STALE",
        };
        let name = proxy.instance.clone().unwrap_or_else(|| proxy.node.clone());
        let types: Vec<String> =
            proxy.types.iter().map(|(kind, t)| format!("{kind} {}/{}", t.acked, t.sent)).collect();
        [
            name,
            proxy.client.clone(),
            proxy.version.clone(),
            state.to_owned(),
            proxy.generation.to_string(),
            types.join(", "),
        ]
    });
    let mut text = format!("control plane {}, generation {}\n\n", status.version, status.generation);
    text += &table(["PROXY", "CLIENT", "VERSION", "STATE", "GENERATION", "ACKED/SENT"], proxies);
    for proxy in &status.proxies {
        for refusal in &proxy.refused {
            text += &format!("  {} refused {refusal:?}\n", proxy.node);
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
    text += "\n";
    text += &table(["RULE", "VERSION", "STATE", "PROXIES", "REASONS"], rows);
    text
}
