#![forbid(unsafe_code)]
//! The sidecar as a binary of its own, slim: this is what ships beside a workload.

use clap::Parser;

/// Outrigger's sidecar proxy.
#[derive(Parser)]
#[command(name = "outrigger-proxy", version)]
struct Command {
    #[command(flatten)]
    args: outrigger_proxy::app::ProxyArgs,
}

fn main() -> anyhow::Result<()> {
    outrigger_proxy::app::run(&Command::parse().args)
}
