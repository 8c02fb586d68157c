#![forbid(unsafe_code)]
//! The `outrigger` command: control plane and sidecar in one binary, the operator's verbs, and the demo.
//!
//! Data goes to standard output, messages to standard error. Exit codes are istioctl's: 0 fine, 1 failed, 64 usage,
//! 65 rules with errors, 79 rules with warnings.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use outrigger_control::ControlArgs;
use outrigger_proxy::app::ProxyArgs;

mod command;
mod demo;
mod print;
mod shop;
mod waterfall;

/// A service mesh: control plane, sidecars, rules, traces
#[derive(Parser)]
#[command(name = "outrigger", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // parsed once
enum Command {
    /// Run the control plane
    ControlPlane(ControlArgs),
    /// Run a sidecar
    Proxy(ProxyArgs),
    /// Bring a workload's connections to its sidecar: rules of the kernel
    #[command(subcommand)]
    Intercept(outrigger_proxy::intercept::Command),
    /// Install the CNI plugin on this node of a cluster, and answer it
    Cni(outrigger_control::cni::CniArgs),
    /// Wait until the sidecar beside is ready
    Wait(outrigger_proxy::wait::WaitArgs),
    /// Apply rules from files (- is standard input)
    Apply(command::rules::Apply),
    /// Show rules
    Get(command::rules::Get),
    /// Delete a rule
    Delete(command::rules::Delete),
    /// Check rules without a control plane
    Analyze(command::analyze::Analyze),
    /// Show the effective rules of a service
    #[command(subcommand)]
    Describe(command::describe::Describe),
    /// Say what becomes of a request of a workload, and why
    Explain(command::explain::Explain),
    /// Show what is in force: per proxy and per rule
    Status(command::status::Status),
    /// Register instances, keep them alive, take them out
    Instance(command::instance::Registrations),
    /// Show services, describe those that nobody registers
    Service(command::service::Services),
    /// Put sidecars into what makes Pods on Kubernetes
    Inject(command::inject::Inject),
    /// Take sidecars out again
    Uninject(command::inject::Uninject),
    /// Print what is installed into a cluster of Kubernetes
    #[command(visible_alias = "install")]
    Manifest(command::install::Manifest),
    /// Print what is to be deleted from a cluster again
    Uninstall(command::install::Uninstall),
    /// Make join tokens for sidecars
    Token(command::identity::Token),
    /// Issue certificates, revoke identities, rotate the root
    Identity(command::identity::Identity),
    /// Show traces as waterfalls
    Traces(command::traces::Traces),
    /// Run a shop in a mesh and push rules to it while it is under load
    Demo(demo::Demo),
    /// One application of the demo's shop
    #[command(hide = true)]
    DemoApp(shop::ShopArgs),
    /// Throws a switch of an application of the demo's shop
    #[command(hide = true)]
    DemoSwitch(demo::Switch),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = !error.use_stderr();
            let _ = error.print();
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(64) };
        }
    };
    let done = match cli.command {
        Command::ControlPlane(args) => outrigger_control::run(args).map(|()| ExitCode::SUCCESS),
        Command::Proxy(args) => outrigger_proxy::app::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Intercept(command) => outrigger_proxy::intercept::apply::run(&command)
            .map(|done| if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Command::Cni(args) => outrigger_control::cni::run(args).map(|()| ExitCode::SUCCESS),
        Command::Wait(args) => outrigger_proxy::wait::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Analyze(args) => wait(args.run()),
        Command::Apply(args) => wait(args.run()),
        Command::Get(args) => wait(args.run()),
        Command::Delete(args) => wait(args.run()),
        Command::Describe(args) => wait(args.run()),
        Command::Explain(args) => wait(args.run()),
        Command::Status(args) => wait(args.run()),
        Command::Instance(args) => wait(args.run()),
        Command::Service(args) => wait(args.run()),
        Command::Inject(args) => wait(args.run()),
        Command::Uninject(args) => wait(args.run()),
        Command::Manifest(args) => args.run(),
        Command::Uninstall(args) => args.run(),
        Command::Token(args) => wait(args.run()),
        Command::Identity(args) => wait(args.run()),
        Command::Traces(args) => wait(args.run()),
        Command::Demo(args) => wait(args.run()),
        Command::DemoApp(args) => wait(args.run()),
        Command::DemoSwitch(args) => wait(args.run()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn wait(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}
