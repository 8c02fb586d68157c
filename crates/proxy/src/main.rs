#![forbid(unsafe_code)]
//! The sidecar as a binary of its own, slim: this is what ships beside a workload.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use outrigger_proxy::{app, intercept};

/// Outrigger's sidecar proxy.
#[derive(Parser)]
#[command(
    name = "outrigger-proxy",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Line {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Option<app::ProxyArgs>,
}

#[derive(Subcommand)]
enum Command {
    /// Rules of the kernel that bring connections to the sidecar
    #[command(subcommand)]
    Intercept(intercept::Command),
}

fn main() -> ExitCode {
    let line = Line::parse();
    let done = match (line.command, line.args) {
        (Some(Command::Intercept(command)), _) => intercept::apply::run(&command),
        (None, Some(args)) => app::run(&args).map(|()| true),
        (None, None) => Err(anyhow::anyhow!("--bootstrap is missing")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
