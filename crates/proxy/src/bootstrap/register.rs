//! The section `register`: what the sidecar registers of its own workload, and the checks that decide its state.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::{duration, some_duration};
use crate::app_health::{Grpc, Http, Probe, Tcp};

/// Between two runs of a check, unless it says otherwise.
const INTERVAL: Duration = Duration::from_secs(10);
/// For one run.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More often than this a check is a load.
const LEAST: Duration = Duration::from_millis(100);
/// Longest of any time of a check.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Checks of one workload.
const MOST: usize = 32;

/// The section. Id, version, region and zone are `node`'s; namespace and service account the join token's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The service. Default: `node.app`, else the service account.
    #[serde(default)]
    pub service: Option<String>,
    /// What peers connect to. Default: `node.address`, else the addresses of `inbound[].bind`, else the one that the control plane
    /// is reached from.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The network that they belong to.
    #[serde(default)]
    pub network: String,
    /// The application's ports, as peers know them.
    pub ports: Vec<Port>,
    /// For subsets and selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Free text.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Free tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Share of traffic relative to its siblings. Default 100.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// How long the registration lives without this sidecar. Default 30 s.
    #[serde(default = "default_ttl", deserialize_with = "duration")]
    pub ttl: Duration,
    /// Ways to tell whether the application is well, by name. Without any it is, as long as the sidecar is there.
    #[serde(default)]
    pub checks: BTreeMap<String, Check>,
}

/// A port; what it may say is the control plane's to judge.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The number.
    pub number: u16,
    /// A name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `http`, `http2`, `grpc`, `tls`, `tcp` or `auto`, the default.
    #[serde(default = "default_protocol")]
    pub protocol: String,
    /// Protocols that requests may switch to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upgrades: Vec<String>,
}

/// A check: one kind, and when it counts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Check {
    /// A GET; a status of 200 to 399 passes.
    pub http: Option<Http>,
    /// A connection that is taken passes.
    pub tcp: Option<Tcp>,
    /// `grpc.health.v1.Health/Check`; SERVING passes.
    pub grpc: Option<Grpc>,
    /// A program; exit code 0 passes.
    pub script: Option<Script>,
    /// The application says itself that it is well, at `/checks/NAME/pass` of the admin port, at least so often.
    #[serde(deserialize_with = "some_duration")]
    pub ttl: Option<Duration>,
    /// From the beginning of one run to the next. Default 10 s.
    #[serde(deserialize_with = "some_duration")]
    pub interval: Option<Duration>,
    /// For one run. Default 5 s.
    #[serde(deserialize_with = "some_duration")]
    pub timeout: Option<Duration>,
    /// Passes in a row after which it passes. Default 1.
    pub healthy: Option<u32>,
    /// Failures in a row after which it fails. Default 3.
    pub unhealthy: Option<u32>,
    /// Before the first run.
    #[serde(deserialize_with = "some_duration")]
    pub initial_delay: Option<Duration>,
}

/// A program and its arguments; no shell reads them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its environment, beside PATH, HOME and LANG of the sidecar's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// What a check does.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Asks the application.
    Probe(Probe),
    /// Runs a program.
    Script(Script),
    /// Waits for the application's word.
    Ttl(Duration),
}

impl Check {
    /// Its kind.
    ///
    /// # Errors
    /// When it has none or several.
    pub fn kind(&self) -> Result<Kind, String> {
        let all = [
            self.http.clone().map(|http| Kind::Probe(Probe::Http(http))),
            self.tcp.clone().map(|tcp| Kind::Probe(Probe::Tcp(tcp))),
            self.grpc.clone().map(|grpc| Kind::Probe(Probe::Grpc(grpc))),
            self.script.clone().map(Kind::Script),
            self.ttl.map(Kind::Ttl),
        ];
        let mut all = all.into_iter().flatten();
        match (all.next(), all.next()) {
            (Some(kind), None) => Ok(kind),
            _ => Err("needs one of http, tcp, grpc, script and ttl".into()),
        }
    }

    /// From the beginning of one run to the next.
    pub fn interval(&self) -> Duration {
        self.interval.unwrap_or(INTERVAL)
    }

    /// For one run.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT)
    }

    fn check(&self) -> Result<(), String> {
        match self.kind()? {
            Kind::Script(script) if script.command.first().is_none_or(String::is_empty) => {
                return Err("script.command: needs a program".into());
            }
            Kind::Script(script) => {
                let wrong = |(name, value): &(&String, &String)| {
                    name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
                };
                if let Some((name, _)) = script.env.iter().find(wrong) {
                    return Err(format!(
                        "script.env: \"{}\" cannot be in an environment",
                        name.escape_debug()
                    ));
                }
            }
            Kind::Ttl(ttl) => {
                let timing = [
                    ("interval", self.interval.is_some()),
                    ("timeout", self.timeout.is_some()),
                    ("healthy", self.healthy.is_some()),
                    ("unhealthy", self.unhealthy.is_some()),
                    ("initial_delay", self.initial_delay.is_some()),
                ];
                if let Some((field, _)) = timing.into_iter().find(|(_, said)| *said) {
                    return Err(format!("{field}: a ttl has none: what the application says holds at once"));
                }
                if ttl < LEAST {
                    return Err(format!("ttl: must be at least {LEAST:?}"));
                }
            }
            _ => {}
        }
        let times = [
            ("interval", self.interval),
            ("timeout", self.timeout),
            ("initial_delay", self.initial_delay),
            ("ttl", self.ttl),
        ];
        if let Some((field, _)) = times.into_iter().find(|(_, time)| time.is_some_and(|time| time > LONGEST))
        {
            return Err(format!("{field}: must be at most 24h"));
        }
        if self.interval() < LEAST {
            return Err(format!("interval: must be at least {LEAST:?}"));
        }
        if self.timeout().is_zero() {
            return Err("timeout: must be more than nothing".into());
        }
        for (field, said) in [("healthy", self.healthy), ("unhealthy", self.unhealthy)] {
            if said == Some(0) {
                return Err(format!("{field}: must be at least 1"));
            }
        }
        Ok(())
    }
}

impl Section {
    /// How many checks are programs: each may keep a thread waiting.
    pub fn scripts(&self) -> usize {
        self.checks.values().filter(|check| check.script.is_some()).count()
    }

    /// What the control plane would refuse it judges itself; here is what only we can know.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.ports.is_empty() {
            return Err("register.ports: needs a port, such as {number: 8080, protocol: http}".into());
        }
        let seconds = self.ttl.as_secs();
        if self.ttl != Duration::from_secs(seconds) || !(1..=u64::from(u32::MAX)).contains(&seconds) {
            return Err("register.ttl: must be whole seconds, at least 1s".into());
        }
        if self.checks.len() > MOST {
            return Err(format!("register.checks: at most {MOST}"));
        }
        for (name, check) in &self.checks {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
                return Err(format!(
                    "register.checks: \"{name}\" must have 1 to 63 letters, digits, '-', '_' or '.'"
                ));
            }
            check.check().map_err(|reason| format!("register.checks.{name}: {reason}"))?;
        }
        Ok(())
    }
}

fn default_weight() -> u32 {
    100
}

fn default_ttl() -> Duration {
    Duration::from_secs(30)
}

fn default_protocol() -> String {
    "auto".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Section, String> {
        let section: Section = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
        section.check().map(|()| section)
    }

    #[test]
    fn a_small_section_has_the_defaults_and_every_kind_is_read() {
        let section = read(
            "ports: [{number: 8080}]\nchecks:\n  web: {http: {port: 8080, path: /ok}, interval: 500ms, unhealthy: 2}\n  \
             db: {tcp: {port: 5432}}\n  rpc: {grpc: {port: 9090, service: a.B}}\n  \
             disk: {script: {command: [/bin/df, \"-h\"]}, timeout: 2s, initial_delay: 1m}\n  beat: {ttl: 15s}\n",
        )
        .unwrap();
        assert_eq!((section.weight, section.ttl), (100, Duration::from_secs(30)));
        assert_eq!(section.ports[0].protocol, "auto");
        assert_eq!(section.checks["web"].interval(), Duration::from_millis(500));
        assert_eq!(section.checks["db"].timeout(), Duration::from_secs(5));
        assert!(matches!(section.checks["beat"].kind(), Ok(Kind::Ttl(ttl)) if ttl.as_secs() == 15));
    }

    #[test]
    fn what_cannot_be_taken_is_named() {
        for (yaml, words) in [
            ("ports: []", "register.ports"),
            ("ports: [{number: 1}]\nttl: 100ms", "register.ttl"),
            ("ports: [{number: 1}]\nchecks: {a: {}}", "register.checks.a: needs one of"),
            ("ports: [{number: 1}]\nchecks: {a: {tcp: {port: 1}, ttl: 5s}}", "needs one of"),
            (
                "ports: [{number: 1}]\nchecks: {a: {ttl: 5s, interval: 1s}}",
                "checks.a: interval: a ttl has none",
            ),
            ("ports: [{number: 1}]\nchecks: {a: {tcp: {port: 1}, interval: 1ms}}", "interval: must be"),
            ("ports: [{number: 1}]\nchecks: {a: {tcp: {port: 1}, healthy: 0}}", "healthy: must be"),
            ("ports: [{number: 1}]\nchecks: {a: {script: {command: []}}}", "script.command"),
            (
                "ports: [{number: 1}]\nchecks: {a: {script: {command: [x], env: {A=B: c}}}}",
                "script.env: \"A=B\"",
            ),
            ("ports: [{number: 1}]\nchecks: {a/b: {ttl: 5s}}", "a/b"),
            ("ports: [{number: 1}]\nchecks: {a: {ttl: soon}}", "soon"),
            ("ports: [{number: 1}]\nchecks: {a: {exec: ls}}", "exec"),
        ] {
            let error = read(yaml).unwrap_err();
            assert!(error.contains(words), "{yaml}: {error}");
        }
    }
}
