//! `analyze`: rules against themselves, or against a live mesh.

use std::path::PathBuf;
use std::process::ExitCode;

use outrigger_control::api::types::{ApplyQuery, FileText};
use outrigger_rules::Finding;

use super::Server;
use super::rules::read_all;
use crate::print::{Output, show};

/// Check rules, without a control plane or against a live mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct Analyze {
    /// Files or directories; - is standard input. Against a live mesh: the rules that are there, without it
    #[arg(short, long = "file", required_unless_present = "server", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Read subdirectories, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Together with the rules, services and workloads of a live mesh: its management socket
    #[arg(long, num_args = 0..=1, default_missing_value = "", value_name = "SERVER")]
    server: Option<String>,
    /// Text or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Analyze {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let files = read_all(&self.files, self.recursive)?;
        let (findings, what) = match self.server {
            None => offline(&files),
            Some(server) => live(&Server::named(server), &files).await?,
        };
        show(self.output, &findings, || findings.iter().map(|finding| format!("{finding}\n")).collect())?;
        if findings.is_empty() {
            eprintln!("✔ no findings in {what}");
        }
        Ok(ExitCode::from(if findings.iter().any(Finding::is_error) {
            65
        } else if findings.is_empty() {
            0
        } else {
            79
        }))
    }
}

fn offline(files: &[FileText]) -> (Vec<Finding>, String) {
    let mut objects = Vec::new();
    let mut findings = Vec::new();
    for FileText { file, text } in files {
        let parsed = outrigger_rules::parse(file, text);
        objects.extend(parsed.objects);
        findings.extend(parsed.findings);
    }
    findings.extend(outrigger_rules::analyze(&objects, None));
    (findings, format!("{} objects", objects.len()))
}

/// What `apply` would say of these files, or what is to be said of the rules that are there.
async fn live(server: &Server, files: &[FileText]) -> anyhow::Result<(Vec<Finding>, String)> {
    let client = server.client()?;
    if files.is_empty() {
        return Ok((client.analysis().await?, "the rules of the mesh".to_owned()));
    }
    let query = ApplyQuery { dry_run: true, ..ApplyQuery::default() };
    match client.apply_files(files, &query).await {
        Ok(body) => Ok((body.findings, format!("{} objects", body.objects.len()))),
        Err(error) if !error.findings().is_empty() => Ok((error.findings().to_vec(), String::new())),
        Err(error) => Err(error.into()),
    }
}
