#![forbid(unsafe_code)]
//! The sidecar as a binary of its own, slim: this is what ships beside a workload.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use outrigger_proxy::{app, intercept, wait};

/// Outrigger's sidecar proxy.
#[derive(Parser)]
#[command(name = "outrigger-proxy", version, args_conflicts_with_subcommands = true)]
struct Line {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: app::ProxyArgs,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // parsed once
enum Command {
    /// Rules of the kernel that bring connections to the sidecar
    #[command(subcommand)]
    Intercept(intercept::Command),
    /// Wait until the sidecar beside is ready
    Wait(wait::WaitArgs),
}

fn main() -> ExitCode {
    let line = Line::parse();
    let done = match line.command {
        Some(Command::Intercept(command)) => intercept::apply::run(&command),
        Some(Command::Wait(args)) => wait::run(&args).map(|()| true),
        None => app::run(&line.args).map(|()| true),
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
