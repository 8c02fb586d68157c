//! `apply`, `get`, `delete`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use outrigger_control::api::types::{ApplyBody, ApplyQuery, FileText, InForce, RuleBody, RulesQuery};
use outrigger_control::client::ClientError;
use outrigger_rules::Finding;
use serde::Serialize;

use super::{Server, author};
use crate::print::{Output, show, table, yaml};

/// Apply rules.
#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    /// Files or directories of YAML or JSON, applied as one set; - is standard input
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Read subdirectories, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Return when every affected proxy has the rules in force
    #[arg(long)]
    wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
    /// Only check
    #[arg(long)]
    dry_run: bool,
    /// Namespace of objects that name none
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    server: Server,
}

impl Apply {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client()?;
        let query = ApplyQuery {
            dry_run: self.dry_run,
            wait: self.wait,
            timeout: Some(self.timeout),
            author: author(),
            namespace: self.namespace,
            ..ApplyQuery::default()
        };
        applied(client.apply_files(&read_all(&self.files, self.recursive)?, &query).await)
    }
}

/// Applies what a command has made of its flags.
pub(super) async fn send(server: &Server, text: &str, mut query: ApplyQuery) -> anyhow::Result<ExitCode> {
    query.author = author();
    applied(server.client()?.apply(text, &query).await)
}

fn applied(answer: Result<ApplyBody, ClientError>) -> anyhow::Result<ExitCode> {
    match answer {
        Ok(body) => {
            print_findings(&body.findings);
            print_applied(&body);
            Ok(code(body.in_force.as_ref()))
        }
        Err(error) => refused(&error, "nothing was applied"),
    }
}

/// What is waited for and does not come, or comes and does not hold, is a failure.
fn code(in_force: Option<&InForce>) -> ExitCode {
    let fine = in_force.is_none_or(|in_force| in_force.complete && in_force.unenforced.is_empty());
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_applied(body: &ApplyBody) {
    for object in &body.objects {
        let dry = if body.dry_run { " (dry run)" } else { "" };
        println!(
            "{} {}/{} version {} {:?}{dry}",
            object.kind, object.namespace, object.name, object.version, object.action
        );
    }
    if let Some(in_force) = &body.in_force {
        eprintln!("{}", in_force_text(in_force, body.in_force_millis));
    }
}

fn in_force_text(in_force: &InForce, millis: Option<f64>) -> String {
    let InForce { proxies, of, waiting, refused, unenforced, .. } = in_force;
    let mut text = format!("in force on {proxies}/{of} proxies after {:.0} ms", millis.unwrap_or_default());
    // Nobody waits for who refuses.
    let refuses = |name: &&String| refused.iter().any(|refusal| refusal.starts_with(&format!("{name}: ")));
    let waiting: Vec<&str> = waiting.iter().filter(|name| !refuses(name)).map(String::as_str).collect();
    if !waiting.is_empty() {
        text.push_str(&format!("; waiting for {}", waiting.join(", ")));
    }
    for refusal in refused {
        text.push_str(&format!("\nrefused by {refusal}"));
    }
    for lack in unenforced {
        text.push_str(&format!("\n{lack}"));
    }
    text
}

pub(super) fn print_findings(findings: &[Finding]) {
    for finding in findings {
        eprintln!("{finding}");
    }
}

fn refused(error: &ClientError, consequence: &str) -> anyhow::Result<ExitCode> {
    if error.findings().is_empty() {
        anyhow::bail!("{error}");
    }
    print_findings(error.findings());
    eprintln!("{consequence}");
    Ok(ExitCode::from(65))
}

/// Directories may be nested so deep; a link in a circle ends here.
const DEEPEST: usize = 32;

/// The texts of files. Directories stand for the rule files in them, by name.
pub(super) fn read_all(paths: &[PathBuf], recursive: bool) -> anyhow::Result<Vec<FileText>> {
    let mut files = Vec::new();
    for path in paths {
        let before = files.len();
        if path.is_dir() {
            collect(path, if recursive { DEEPEST } else { 0 }, &mut files)?;
        } else {
            files.push(path.clone());
        }
        if files.len() == before {
            let hint = if recursive { "" } else { "; -R reads its subdirectories, too" };
            anyhow::bail!("{}: no file that ends in .yaml, .yml or .json{hint}", path.display());
        }
    }
    files.iter().map(|file| Ok(FileText { file: file.display().to_string(), text: read(file)? })).collect()
}

fn collect(directory: &Path, deeper: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let name = || directory.display().to_string();
    let mut inside = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(name)? {
        inside.push(entry.with_context(name)?.path());
    }
    inside.sort();
    for path in inside {
        if path.is_dir() {
            if let Some(deeper) = deeper.checked_sub(1) {
                collect(&path, deeper, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            files.push(path);
        }
    }
    Ok(())
}

pub(super) fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

/// Show rules.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// Kind, such as VirtualService; all kinds without it
    kind: Option<String>,
    /// Name, with its namespace by -n
    name: Option<String>,
    /// Namespace; all without it
    #[arg(short, long)]
    namespace: Option<String>,
    /// A table, JSON, YAML that `apply` takes back, or names alone
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
    #[command(flatten)]
    server: Server,
}

/// How rules are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// A table; of a single rule, its source.
    #[default]
    Table,
    /// JSON.
    Json,
    /// What was applied, one document per rule, each with its namespace.
    Yaml,
    /// `Kind namespace/name`, a line per rule.
    Name,
}

impl Form {
    fn print<T: Serialize>(
        self,
        data: &T,
        rules: &[RuleBody],
        text: fn(&[RuleBody]) -> String,
    ) -> anyhow::Result<()> {
        match self {
            Self::Table => show(Output::Table, data, || text(rules)),
            Self::Json => show(Output::Json, data, String::new),
            Self::Yaml => show(Output::Table, data, || sources(rules)),
            Self::Name => show(Output::Table, data, || names(rules)),
        }
    }
}

fn sources(rules: &[RuleBody]) -> String {
    let documents: Vec<String> = rules.iter().map(document).collect();
    documents.join("---\n")
}

/// A rule that was applied with `-n` and names no namespace is printed from its object, with the namespace: applied
/// again as it was written, it would come to stand in another.
///
/// What the control plane has to say of it stands behind it, as `status`, which `apply` does not read.
fn document(rule: &RuleBody) -> String {
    let mut object = rule.object.clone();
    let metadata = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut);
    let nameless = metadata.filter(|metadata| !metadata.contains_key("namespace"));
    let elsewhere = nameless.is_some();
    if let Some(metadata) = nameless {
        metadata.insert("namespace".to_owned(), rule.namespace.clone().into());
    }
    let flow = rule.source.trim_start().starts_with('{');
    match &rule.status {
        // A text in braces, or one with a status of its own, cannot be added to.
        Some(status) if elsewhere || flow || object.get("status").is_some() => {
            object["status"] = status.clone();
            format!("{object:#}\n")
        }
        Some(status) => rule.source.trim_end().to_owned() + "\n" + &yaml::field("status", status),
        None if elsewhere => format!("{object:#}\n"),
        None => rule.source.trim_end().to_owned() + "\n",
    }
}

fn written(rules: &[RuleBody]) -> String {
    rules.iter().map(|rule| rule.source.as_str()).collect()
}

fn names(rules: &[RuleBody]) -> String {
    rules.iter().map(|rule| format!("{} {}/{}\n", rule.kind, rule.namespace, rule.name)).collect()
}

fn overview(rules: &[RuleBody]) -> String {
    let row = |r: &RuleBody| {
        [
            r.kind.clone(),
            r.namespace.clone(),
            r.name.clone(),
            r.version.to_string(),
            r.author.clone(),
            r.at.to_string(),
        ]
    };
    table(["KIND", "NAMESPACE", "NAME", "VERSION", "AUTHOR", "APPLIED"], rules.iter().map(row))
}

impl Get {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client()?;
        if let (Some(kind), Some(name)) = (&self.kind, &self.name) {
            let namespace = self.namespace.as_deref().unwrap_or("default");
            let rule = client.rule(kind, namespace, name).await?;
            self.output.print(&rule, std::slice::from_ref(&rule), written)?;
            return Ok(ExitCode::SUCCESS);
        }
        let query = RulesQuery { kind: self.kind, namespace: self.namespace };
        let rules = client.rules(&query).await?;
        self.output.print(&rules, &rules, overview)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Delete a rule.
#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    /// Kind, such as VirtualService, in any spelling that `get` takes
    kind: String,
    /// Name
    name: String,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Return when every affected proxy has forgotten it
    #[arg(long)]
    wait: bool,
    /// Delete it although other rules need it
    #[arg(long)]
    force: bool,
    /// Only check
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: Server,
}

impl Delete {
    /// Of a command that knows the kind.
    pub(super) fn new(kind: &str, name: String, namespace: String, server: Server) -> Self {
        let (wait, force, dry_run) = (false, false, false);
        Self { kind: kind.to_owned(), name, namespace, wait, force, dry_run, server }
    }

    pub(super) fn waiting(self, wait: bool) -> Self {
        Self { wait, ..self }
    }

    pub(super) fn forced(self, force: bool) -> Self {
        Self { force, ..self }
    }

    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client()?;
        let Self { wait, force, dry_run, .. } = self;
        let query = ApplyQuery { wait, force, dry_run, author: author(), ..ApplyQuery::default() };
        match client.delete(&self.kind, &self.namespace, &self.name, &query).await {
            Ok(body) => {
                print_findings(&body.findings);
                let dry = if body.dry_run { " (dry run)" } else { "" };
                println!("{} {}/{} deleted{dry}", self.kind, self.namespace, self.name);
                if let Some(in_force) = &body.in_force {
                    eprintln!("{}", in_force_text(in_force, body.in_force_millis));
                }
                Ok(code(body.in_force.as_ref()))
            }
            Err(error) => {
                refused(&error, "nothing was deleted: others need it; --force deletes it all the same")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_by_name_and_deeper_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub/deeper");
        std::fs::create_dir_all(&sub).unwrap();
        for (file, text) in [("b.yaml", "b"), ("a.json", "a"), ("c.txt", "c"), ("sub/deeper/d.yml", "d")] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let read = |recursive| {
            let files = read_all(&[dir.path().to_owned()], recursive).unwrap();
            files.into_iter().map(|file| file.text).collect::<Vec<_>>()
        };
        assert_eq!(read(false), ["a", "b"]);
        assert_eq!(read(true), ["a", "b", "d"]);
        let error = read_all(&[dir.path().join("sub")], false).unwrap_err().to_string();
        assert!(error.contains("-R"), "{error}");
    }
}
