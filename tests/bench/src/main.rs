//! Sidecars side by side in one run: ours, a real Envoy, HAProxy, and a bare mTLS relay as the floor.
//!
//! The machine's speed moves, so times are only compared within a round and reported as ratios; user instructions
//! (callgrind) do not move and are what the gate holds. `docs/performance.md` says how to read the figures.
#![forbid(unsafe_code)]

mod app;
mod compare;
mod control;
mod crowd;
mod floor;
mod instructions;
mod kubernetes;
mod load;
mod peers;
mod plot;
mod process;
mod report;
mod startup;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sidecars side by side.
#[derive(Parser)]
#[command(name = "outrigger-bench")]
struct Command {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Times, CPU and memory of all peers, interleaved in one run.
    Compare(compare::Args),
    /// User instructions, system calls and allocations per request of our pair, under callgrind.
    Instructions(instructions::Args),
    /// The control plane under change: convergence, CPU and memory.
    Control(control::Args),
    /// The control plane of a large cluster: start, memory, and Pods that change.
    Kubernetes(kubernetes::Args),
    /// The application behind the sidecars (the other tasks start it).
    App {
        /// Address to listen on; the ports are free ones, printed as JSON.
        #[arg(long)]
        ip: std::net::IpAddr,
    },
    /// Load (the other tasks start it).
    Load(load::Plan),
    /// One end of the bare relay (the other tasks start it).
    Floor(floor::Args),
}

/// What every sidecar pair is asked to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// HTTP/1.1 requests.
    H1,
    /// HTTP/1.1, each request on a connection of its own.
    Connect,
    /// HTTP/2 requests.
    H2,
    /// gRPC unary calls.
    Grpc,
    /// Messages there and back over opaque TCP.
    Tcp,
    /// One way over opaque TCP, as fast as it goes.
    Bulk,
}

/// Where the programs are.
#[derive(clap::Args, Clone)]
pub struct Programs {
    /// The folder with `outrigger` and `outrigger-proxy`.
    #[arg(long, default_value = "target/release")]
    bin: PathBuf,
}

/// An address for each kind of traffic.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Ports {
    h1: SocketAddr,
    h2: SocketAddr,
    grpc: SocketAddr,
    tcp: SocketAddr,
    bulk: SocketAddr,
}

impl Ports {
    fn of(&self, kind: Kind) -> SocketAddr {
        match kind {
            Kind::H1 | Kind::Connect => self.h1,
            Kind::H2 => self.h2,
            Kind::Grpc => self.grpc,
            Kind::Tcp => self.tcp,
            Kind::Bulk => self.bulk,
        }
    }

    /// The same ports in the order that all peers use, with their kinds.
    fn all(&self) -> [(Kind, SocketAddr); 5] {
        [Kind::H1, Kind::H2, Kind::Grpc, Kind::Tcp, Kind::Bulk].map(|kind| (kind, self.of(kind)))
    }
}

fn main() -> Result<()> {
    match Command::parse().task {
        Task::Compare(args) => compare::run(&args),
        Task::Instructions(args) => instructions::run(&args),
        Task::Control(args) => control::run(&args),
        Task::Kubernetes(args) => kubernetes::run(&args),
        Task::App { ip } => local(app::run(ip)),
        Task::Load(plan) => local(load::run(plan)),
        Task::Floor(args) => local(floor::run(args)),
    }
}

/// Runs on one thread.
fn local<T>(task: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, task)
}
