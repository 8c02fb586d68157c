//! `analyze`: rules against themselves, without a control plane.

use std::path::PathBuf;
use std::process::ExitCode;

use super::rules::{expand, read};
use crate::print::Output;

/// Check rules without a control plane.
#[derive(Debug, clap::Args)]
pub(crate) struct Analyze {
    /// Files or directories; - is standard input
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Text or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Analyze {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut objects = Vec::new();
        let mut findings = Vec::new();
        for file in expand(&self.files)? {
            let parsed = outrigger_rules::parse(&file.display().to_string(), &read(&file)?);
            objects.extend(parsed.objects);
            findings.extend(parsed.findings);
        }
        let unreadable = findings.iter().any(|finding| finding.is_error());
        findings.extend(outrigger_rules::analyze(&objects, None));
        match self.output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
            Output::Table => findings.iter().for_each(|finding| println!("{finding}")),
        }
        if findings.is_empty() {
            eprintln!("✔ no findings in {} objects", objects.len());
        }
        Ok(ExitCode::from(if unreadable {
            65
        } else if findings.is_empty() {
            0
        } else {
            79
        }))
    }
}
