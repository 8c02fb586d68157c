//! The comparison: all peers up at once, short samples in shuffled order, ratios within a round.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use outrigger_tests::mesh::Mesh;
use serde::Serialize;
use serde_json::json;

use crate::crowd::{self, Crowd};
use crate::load::Outcome;
use crate::peers::{self, LOAD_CPU, Peer, SIDECAR_CPU, Site};
use crate::process::{Memory, Process, memory, memory_latency, stolen_seconds};
use crate::startup::{self, Startup};
use crate::{Kind, Programs, plot, report};

/// What to compare.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    programs: Programs,
    /// Rounds; medians are over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a sample.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these peers.
    #[arg(long, value_delimiter = ',', default_values_t = peers::ALL.map(str::to_owned))]
    pub peers: Vec<String>,
    /// Only these kinds of traffic.
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Sizes 0, 1 KiB, 16 KiB, 1 MiB and 1 to 512 connections, not only the core cells.
    #[arg(long)]
    full: bool,
    /// Idle connections for the memory figures; 0 leaves them out.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Starts for the start-up figures; 0 leaves them out, and the memory in a large mesh too.
    #[arg(long, default_value_t = 7)]
    starts: usize,
    /// Folder for `bench.json` and `bench.md`.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Kind of traffic.
    pub kind: Kind,
    /// Body size, bytes.
    pub size: usize,
    /// Connections.
    pub connections: usize,
    /// Requests at once on each (HTTP/2).
    pub streams: usize,
    /// Arrivals per second; none: closed loop.
    pub rate: Option<u32>,
}

/// One sample.
#[derive(Serialize)]
pub struct Sample {
    /// Round.
    pub round: usize,
    /// Index of the cell.
    pub cell: usize,
    /// Whose.
    pub peer: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Memory of a fresh pair.
#[derive(Serialize)]
pub struct Idle {
    /// Whose.
    pub peer: String,
    /// What the connections were.
    pub kind: Kind,
    /// How many.
    pub connections: usize,
    /// Each sidecar before the first connection.
    pub before: Vec<Memory>,
    /// Each sidecar with all of them idle.
    pub with: Vec<Memory>,
}

/// A reading of the machine.
#[derive(Serialize)]
pub struct Noise {
    /// Share of a CPU that the hypervisor took in the round.
    pub stolen: f64,
    /// Nanoseconds per dependent load, before the round.
    pub memory_latency: f64,
}

/// Everything that was measured.
#[derive(Serialize)]
pub struct Results {
    /// The loads.
    pub cells: Vec<Cell>,
    /// All samples, in the order in which they were taken.
    pub samples: Vec<Sample>,
    /// Memory.
    pub idle: Vec<Idle>,
    /// From start to the first proxied request.
    pub startups: Vec<Startup>,
    /// Memory in a large mesh.
    pub crowds: Vec<Crowd>,
    /// Bytes of each peer's program.
    pub programs: Vec<(String, u64)>,
    /// The machine, per round.
    pub noise: Vec<Noise>,
    /// Peers that were there.
    pub peers: Vec<String>,
}

impl Args {
    /// The folder of our programs.
    pub fn bin(&self) -> &Path {
        &self.programs.bin
    }
}

/// The loads that every run has; `full` adds the grid.
fn cells(args: &Args) -> Vec<Cell> {
    let cell = |kind, size, connections, streams, rate| Cell { kind, size, connections, streams, rate };
    let mut cells = vec![
        cell(Kind::H1, 1024, 32, 1, None),
        cell(Kind::H1, 1024, 64, 1, Some(1000)),
        cell(Kind::H1, 1024, 64, 1, Some(3000)),
        cell(Kind::H2, 1024, 4, 8, None),
        cell(Kind::Grpc, 1024, 4, 8, None),
        cell(Kind::Tcp, 1024, 32, 1, None),
        cell(Kind::Bulk, 0, 1, 1, None),
        cell(Kind::Connect, 1024, 16, 1, None),
    ];
    if args.full {
        let one = |kind, size, at_once: usize| match kind {
            Kind::H2 | Kind::Grpc => cell(kind, size, at_once.div_ceil(8), at_once.min(8), None),
            _ => cell(kind, size, at_once, 1, None),
        };
        for kind in [Kind::H1, Kind::H2, Kind::Grpc, Kind::Tcp] {
            // Nothing is no message of TCP.
            let sizes = [0, 16 << 10, 1 << 20].into_iter().filter(|size| kind != Kind::Tcp || *size > 0);
            cells.extend(sizes.map(|size| one(kind, size, 32)));
            cells.extend([1, 16, 64, 512].map(|at_once| one(kind, 1024, at_once)));
        }
    }
    cells.retain(|cell| args.kinds.is_empty() || args.kinds.contains(&cell.kind));
    cells
}

/// Compares, prints the tables, writes the files.
pub fn run(args: &Args) -> Result<()> {
    let mut here = rustix::thread::CpuSet::new();
    here.set(LOAD_CPU);
    // Before any thread is made: control planes and all else inherit it.
    rustix::thread::sched_setaffinity(None, &here).context("this needs two CPUs")?;
    ensure!(Path::new(&format!("/sys/devices/system/cpu/cpu{SIDECAR_CPU}")).exists(), "one CPU only");
    std::fs::create_dir_all(&args.out)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let results = runtime.block_on(measure(args))?;
    let text = report::markdown(&results);
    std::fs::write(args.out.join("bench.json"), serde_json::to_vec_pretty(&results)?)?;
    std::fs::write(args.out.join("bench.md"), &text)?;
    std::fs::write(args.out.join("bench.svg"), plot::svg(&results))?;
    println!("{text}");
    Ok(())
}

async fn measure(args: &Args) -> Result<Results> {
    let binary = args.programs.bin.join("outrigger");
    let mesh = Mesh::start_with(&binary.display().to_string(), json!({ "sampling": 0.0 })).await;
    let (site, _app) = Site::open(&mesh, &args.programs.bin)?;
    site.write_pki().await?;

    let mut results = Results {
        cells: cells(args),
        samples: Vec::new(),
        idle: Vec::new(),
        startups: Vec::new(),
        crowds: Vec::new(),
        programs: programs(args)?,
        noise: Vec::new(),
        peers: args.peers.clone(),
    };
    if args.idle > 0 {
        for name in args.peers.iter().filter(|name| *name != "direct") {
            for kind in [Kind::H1, Kind::Tcp] {
                results.idle.push(idle(name, kind, args.idle, &site).await?);
            }
        }
    }
    if args.starts > 0 {
        for name in args.peers.iter().filter(|name| !["direct", "floor"].contains(&name.as_str())) {
            results.startups.push(startup::measure(name, args.starts, &site).await?);
        }
        results.crowds = crowd::measure(args).await?;
    }
    let mut up = Vec::new();
    for name in &args.peers {
        up.push(peers::start(name, &site).await?);
    }
    if let Some(slowest) = slowest(&up, args, &site)? {
        // Where no peer queues: what is seen then is the way through, not the wait.
        for share in [4, 2] {
            let rate = Some(slowest / share);
            results.cells.push(Cell { kind: Kind::H1, size: 1024, connections: 64, streams: 1, rate });
        }
    }
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        let (stolen, since) = (stolen_seconds(), std::time::Instant::now());
        let memory_latency = memory_latency();
        let mut order: Vec<(usize, usize)> =
            (0..results.cells.len()).flat_map(|cell| (0..up.len()).map(move |peer| (cell, peer))).collect();
        fastrand::shuffle(&mut order);
        // All peers of a cell one after the other, in another order each time: the machine is then most alike.
        order.sort_by_key(|(cell, _)| *cell);
        for (cell, peer) in order {
            let outcome = sample(&results.cells[cell], &up[peer], round, args, &site)?;
            results.samples.push(Sample { round, cell, peer: up[peer].name.to_owned(), outcome });
        }
        let stolen = (stolen_seconds() - stolen) / since.elapsed().as_secs_f64();
        results.noise.push(Noise { stolen, memory_latency });
    }
    Ok(results)
}

/// The sizes of the programs, ours as it was built: `dist` is what ships.
fn programs(args: &Args) -> Result<Vec<(String, u64)>> {
    let mut found =
        vec![("outrigger-proxy".to_owned(), args.bin().join("outrigger-proxy").metadata()?.len())];
    for name in ["envoy", "haproxy"] {
        if let Some(path) = outrigger_tests::require::tool(name) {
            found.push((name.to_owned(), path.metadata()?.len()));
        }
    }
    Ok(found)
}

/// The peak of the slowest pair of sidecars, HTTP/1.1 requests per second.
fn slowest(up: &[Peer], args: &Args, site: &Site<'_>) -> Result<Option<u32>> {
    if !args.kinds.is_empty() && !args.kinds.contains(&Kind::H1) {
        return Ok(None);
    }
    let peak = Cell { kind: Kind::H1, size: 1024, connections: 32, streams: 1, rate: None };
    let mut slowest = None;
    for peer in up.iter().filter(|peer| peer.name != "direct") {
        let outcome = sample(&peak, peer, 0, args, site)?;
        let rate = (outcome.completed as f64 / outcome.seconds) as u32;
        slowest = Some(slowest.map_or(rate, |least: u32| least.min(rate)));
    }
    Ok(slowest)
}

fn sample(cell: &Cell, peer: &Peer, round: usize, args: &Args, site: &Site<'_>) -> Result<Outcome> {
    let mut words = load(cell.kind, peer, cell.connections)?;
    let mut more = |name: &str, value: String| words.extend([name.to_owned(), value]);
    more("--size", cell.size.to_string());
    more("--streams", cell.streams.to_string());
    more("--seconds", args.seconds.to_string());
    more("--seed", (round + 1).to_string());
    if let Some(rate) = cell.rate {
        more("--rate", rate.to_string());
    }
    let pids = peer.pids();
    if !pids.is_empty() {
        more("--pids", pids.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    }
    Process::start("load", LOAD_CPU, &words, &site.directory)?.answer()
}

/// The command line of the load generator.
pub fn load(kind: Kind, peer: &Peer, connections: usize) -> Result<Vec<String>> {
    let kind_name = format!("{kind:?}").to_lowercase();
    let (exe, target) = (std::env::current_exe()?.display().to_string(), peer.front.of(kind).to_string());
    let connections = connections.to_string();
    let words = [&exe, "load", "--kind", &kind_name, "--target", &target, "--connections", &connections];
    Ok(words.map(str::to_owned).to_vec())
}

async fn idle(name: &str, kind: Kind, connections: usize, site: &Site<'_>) -> Result<Idle> {
    let peer = peers::start(name, site).await?;
    let held = |peer: &Peer| peer.pids().into_iter().map(memory).collect::<Result<Vec<_>>>();
    let before = held(&peer)?;
    let mut words = load(kind, &peer, connections)?;
    words.push("--hold".into());
    let mut load = Process::start("hold", LOAD_CPU, &words, &site.directory)?;
    let outcome: Outcome = load.answer()?;
    ensure!(outcome.failed == 0, "{name}: {} of {connections} connections failed", outcome.failed);
    Ok(Idle { peer: name.to_owned(), kind, connections, before, with: held(&peer)? })
}
