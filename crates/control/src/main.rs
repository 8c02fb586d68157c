#![forbid(unsafe_code)]
//! Binary.

use clap::Parser;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The control plane of an Outrigger mesh
#[derive(Parser)]
#[command(name = "outrigger-control", version)]
struct Command {
    #[command(flatten)]
    args: outrigger_control::ControlArgs,
}

fn main() -> anyhow::Result<()> {
    outrigger_control::run(Command::parse().args)
}
