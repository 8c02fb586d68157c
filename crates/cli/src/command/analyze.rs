//! `analyze`: rules against themselves, or against a live mesh.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use outrigger_control::api::types::{ApplyQuery, FileText};
use outrigger_rules::suppress::Suppression;
use outrigger_rules::{Finding, ParseOptions, Severity};

use super::Server;
use super::rules::read_all;
use crate::print::{Output, show};

/// Some text cannot be read as objects, as istioctl says it.
const UNREADABLE: u8 = 65;
/// Something is as bad as `--failure-threshold`, as istioctl says it.
const FOUND: u8 = 79;

/// Check rules, without a control plane or against a live mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct Analyze {
    /// Files or directories; - is standard input. Against a live mesh: the rules that are there, without it
    #[arg(short, long = "file", required_unless_present_any = ["server", "more"], value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The same
    #[arg(value_name = "FILE")]
    more: Vec<PathBuf>,
    /// Read subdirectories, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace of objects that name none
    #[arg(short, long)]
    namespace: Option<String>,
    /// Together with the rules, services and workloads of a live mesh: its management socket
    #[arg(long, num_args = 0..=1, default_missing_value = "", value_name = "SERVER")]
    server: Option<String>,
    /// Leave out findings of a code about an object, such as "IST0101=VirtualService catalog.shop"; * in the name stands for
    /// anything. May be repeated
    #[arg(short = 'S', long, value_name = "CODE=OBJECT")]
    suppress: Vec<Suppression>,
    /// The exit code is 79 if a finding is as bad as this, or worse
    #[arg(long, value_enum, ignore_case = true, default_value = "error", value_name = "LEVEL")]
    failure_threshold: Level,
    /// Print findings that are as bad as this, or worse
    #[arg(long, value_enum, ignore_case = true, default_value = "info", value_name = "LEVEL")]
    output_threshold: Level,
    /// Text that cannot be read as objects does not make the exit code 65
    #[arg(long)]
    ignore_unknown: bool,
    /// Text, JSON or YAML
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Worth knowing.
    Info,
    /// Taken, and probably not what was meant.
    Warning,
    /// Refused.
    Error,
}

impl Level {
    fn reached(self, finding: &Finding) -> bool {
        let least = match self {
            Self::Info => Severity::Info,
            Self::Warning => Severity::Warning,
            Self::Error => Severity::Error,
        };
        finding.severity <= least
    }
}

impl Analyze {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        for unknown in self.suppress.iter().filter(|suppression| !suppression.is_known()) {
            eprintln!("warning: {} is no code of a finding, so that it suppresses nothing", unknown.code());
        }
        let paths: Vec<PathBuf> = self.files.iter().chain(&self.more).cloned().collect();
        let files = read_all(&paths, self.recursive)?;
        let (mut findings, what) = match &self.server {
            None => offline(&files, self.namespace.clone()),
            Some(server) => live(&Server::named(server.clone()), &files, self.namespace.clone()).await?,
        };
        findings.retain(|finding| !self.suppress.iter().any(|suppression| suppression.covers(finding)));
        let code = self.code(&findings);
        findings.retain(|finding| self.output_threshold.reached(finding));
        show(self.output, &findings, || findings.iter().map(|finding| format!("{finding}\n")).collect())?;
        if findings.is_empty() {
            eprintln!("✔ no findings in {what}");
        }
        Ok(ExitCode::from(code))
    }

    /// By all that is not suppressed, printed or not. What is of no object is text that is none.
    fn code(&self, findings: &[Finding]) -> u8 {
        let is_unreadable = |finding: &&Finding| finding.is_error() && finding.object.is_none();
        let mut others = findings.iter().filter(|finding| !is_unreadable(finding));
        if others.any(|finding| self.failure_threshold.reached(finding)) {
            FOUND
        } else if !self.ignore_unknown && findings.iter().any(|finding| is_unreadable(&finding)) {
            UNREADABLE
        } else {
            0
        }
    }
}

fn offline(files: &[FileText], namespace: Option<String>) -> (Vec<Finding>, String) {
    let mut options = ParseOptions::default();
    options.default_namespace = namespace.unwrap_or(options.default_namespace);
    let mut objects = Vec::new();
    let mut findings = Vec::new();
    for FileText { file, text } in files {
        let parsed = outrigger_rules::parse_with(file, text, &options);
        objects.extend(parsed.objects);
        findings.extend(parsed.findings);
    }
    findings.extend(outrigger_rules::analyze(&objects, None));
    (findings, format!("{} objects", objects.len()))
}

/// What `apply` would say of these files, or what is to be said of the rules that are there.
async fn live(
    server: &Server,
    files: &[FileText],
    namespace: Option<String>,
) -> anyhow::Result<(Vec<Finding>, String)> {
    let client = server.client()?;
    if files.is_empty() {
        return Ok((client.analysis().await?, "the rules of the mesh".to_owned()));
    }
    let query = ApplyQuery { dry_run: true, namespace, ..ApplyQuery::default() };
    match client.apply_files(files, &query).await {
        Ok(body) => Ok((body.findings, format!("{} objects", body.objects.len()))),
        Err(error) if !error.findings().is_empty() => Ok((error.findings().to_vec(), String::new())),
        Err(error) => Err(error.into()),
    }
}
