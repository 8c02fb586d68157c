//! The control plane under change: a mesh of any size, many subscribed streams, and endpoints that come and go.
//!
//! A real control plane on one CPU; on the others our own xDS client, so that what is timed is when a sidecar has the news,
//! decoded. Streams are without TLS and share connections: handshakes are not what this measures.
//!
//! ```text
//! registry files ─> control plane ─> ready ─> N streams subscribed ─> single changes ─> a row of changes ─> a steady rate
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use outrigger_control::client::Client;
use outrigger_control::instance::{Instance, State};
use outrigger_tests::mesh::free_net;
use serde::Serialize;
use serde_json::json;

use crate::Programs;
use crate::process::{Memory, Process, cpu_seconds, memory};

mod mesh;
mod streams;

use streams::Streams;

/// Where the control plane runs.
const CPU: usize = 1;
/// For the mesh to be loaded, and for all streams to have what they ask for.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is measured.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    programs: Programs,
    /// Services in registry files.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Subscribed streams.
    #[arg(long, default_value_t = 1_000)]
    streams: usize,
    /// Streams that share a connection; the control plane allows 16.
    #[arg(long, default_value_t = 10)]
    streams_per_connection: usize,
    /// Services that each stream subscribes to; one of them is the same for all.
    #[arg(long, default_value_t = 10)]
    names: u32,
    /// Single changes, each waited for.
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// Changes in a row, the last waited for.
    #[arg(long, default_value_t = 50)]
    row: u32,
    /// Changes per second of the last part.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds of the last part; 0 leaves it out.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Instances in one registry file.
    #[arg(long, default_value_t = 5_000)]
    per_file: u32,
}

/// Milliseconds.
#[derive(Serialize, Default)]
pub(crate) struct Times {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Serialize)]
struct Report {
    instances: u32,
    streams: usize,
    start_to_ready_s: f64,
    streams_to_subscribed_s: f64,
    memory_after_start: Memory,
    memory_subscribed: Memory,
    single: Single,
    row: Row,
    steady: Option<Steady>,
    memory_at_end: Memory,
}

/// Single changes.
#[derive(Serialize)]
struct Single {
    changes: usize,
    /// Of the management API.
    reply_ms: Times,
    /// Until each stream has the change: over all streams and changes.
    stream_ms: Times,
    /// Until all streams have it: over the changes.
    all_ms: Times,
    cpu_ms_per_change: f64,
}

/// Changes as fast as they are taken.
#[derive(Serialize)]
struct Row {
    changes: u32,
    /// From the first call to the last change on the last stream.
    seconds: f64,
    memory: Memory,
}

/// Changes at a fixed rate.
#[derive(Serialize)]
struct Steady {
    rate: u32,
    seconds: u32,
    /// Changes that could be made in that time; fewer than asked for when the API was too slow.
    changes: u32,
    core_percent: f64,
    /// From a call to when a stream that watches has this change or a later one.
    behind_ms: Times,
}

/// Measures and prints JSON.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

struct Plane {
    process: Process,
    client: Client,
    xds: SocketAddr,
}

async fn measure(args: &Args) -> Result<Report> {
    if args.names == 0 || args.names > args.services || args.streams == 0 || args.streams_per_connection == 0
    {
        bail!("--names must be between 1 and --services, --streams and --streams-per-connection at least 1");
    }
    let directory = tempfile::tempdir()?;
    let began = Instant::now();
    mesh::write(&directory.path().join("registry"), args.services, args.endpoints, args.per_file)?;
    progress("registry files written", began);
    let began = Instant::now();
    let mut plane = start(&args.programs.bin, directory.path()).await?;
    let start_to_ready_s = began.elapsed().as_secs_f64();
    progress("the control plane is ready", began);
    let live: Vec<Instance> = mesh::live_services(args.services).into_iter().map(mesh::live).collect();
    for instance in &live {
        plane.client.register(instance).await?;
    }
    progress("endpoints that will change are registered", began);
    let memory_after_start = memory(plane.process.pid())?;
    let began = Instant::now();
    let mut streams =
        Streams::start(plane.xds, args.streams, args.streams_per_connection, args.names, args.services);
    streams.subscribed(PATIENCE).await?;
    let streams_to_subscribed_s = began.elapsed().as_secs_f64();
    progress("all streams have what they asked for", began);
    let memory_subscribed = memory(plane.process.pid())?;
    let single = single(args, &plane, &mut streams, &live[0]).await?;
    progress("single changes", began);
    let row = row(args, &plane, &mut streams, &live[0]).await?;
    progress("changes in a row", began);
    let steady = match args.seconds {
        0 => None,
        _ => Some(steady(args, &plane, &mut streams, &live[1..]).await?),
    };
    if !plane.process.alive() {
        bail!("the control plane ended: {}", plane.process.log());
    }
    Ok(Report {
        instances: args.services * args.endpoints + live.len() as u32,
        streams: args.streams,
        start_to_ready_s,
        streams_to_subscribed_s,
        memory_after_start,
        memory_subscribed,
        single,
        row,
        steady,
        memory_at_end: memory(plane.process.pid())?,
    })
}

pub(crate) fn progress(what: &str, since: Instant) {
    eprintln!("{what} ({:.1} s)", since.elapsed().as_secs_f64());
}

async fn start(bin: &Path, directory: &Path) -> Result<Plane> {
    let [second, third] = free_net();
    let at = |port: u16| SocketAddr::from(([127, second, third, 1], port));
    let xds = at(15010);
    let settings = json!({
        "dataDir": directory.join("control"),
        "xdsAddress": at(15012),
        "plaintextXds": { "address": xds, "identity": "spiffe://cluster.local/ns/shop/sa/client" },
        "metricsAddress": at(15014),
        "otlpAddress": at(4317),
        "queryAddress": at(16686),
        "registryFiles": [directory.join("registry")],
        "parentPipe": true,
    });
    let file = directory.join("control.json");
    std::fs::write(&file, settings.to_string())?;
    let program = bin.join("outrigger");
    if !program.is_file() {
        bail!("no {}: `cargo xtask bench --control` builds it", program.display());
    }
    let text = |path: PathBuf| path.display().to_string();
    let argv = [text(program), "control-plane".into(), "--config".into(), text(file)];
    let mut process = Process::start("control-plane", CPU, &argv, directory)?;
    let client = Client::socket(directory.join("control/outrigger.sock"));
    let deadline = Instant::now() + PATIENCE;
    while client.status().await.is_err() {
        if !process.alive() || Instant::now() > deadline {
            bail!("the control plane does not become ready: {}", process.log());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Plane { process, client, xds })
}

/// Changes of the endpoint that all streams watch.
async fn single(args: &Args, plane: &Plane, streams: &mut Streams, live: &Instance) -> Result<Single> {
    let (mut reply, mut each, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let pids = [plane.process.pid()];
    let before = cpu_seconds(&pids)?;
    for change in 0..args.changes {
        let state = if change % 2 == 0 { State::Maintenance } else { State::Running };
        let healthy = args.endpoints as usize + usize::from(state == State::Running);
        let began = Instant::now();
        plane.client.set_state(&live.id, state).await?;
        reply.push(began.elapsed());
        let times = streams.all(PATIENCE, began, |seen| seen.healthy == healthy).await?;
        all.extend(times.iter().max());
        each.extend(times);
    }
    let cpu = cpu_seconds(&pids)? - before;
    Ok(Single {
        changes: args.changes,
        reply_ms: times(reply),
        stream_ms: times(each),
        all_ms: times(all),
        cpu_ms_per_change: cpu * 1e3 / args.changes.max(1) as f64,
    })
}

/// The same, one call after the other.
async fn row(args: &Args, plane: &Plane, streams: &mut Streams, live: &Instance) -> Result<Row> {
    let began = Instant::now();
    for change in 1..=args.row {
        plane.client.register(&stamped(live, change)).await?;
    }
    streams.all(PATIENCE, began, |seen| seen.stamp >= args.row).await?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Row { changes: args.row, seconds, memory: memory(plane.process.pid())? })
}

/// Changes of the other endpoints in turn, each of which a few streams watch.
async fn steady(args: &Args, plane: &Plane, streams: &mut Streams, live: &[Instance]) -> Result<Steady> {
    let pids = [plane.process.pid()];
    let before = cpu_seconds(&pids)?;
    let (began, length) = (Instant::now(), Duration::from_secs(args.seconds.into()));
    let mut changes = 0;
    for instance in live.iter().cycle() {
        if began.elapsed() >= length {
            break;
        }
        changes += 1;
        streams.asked(&instance.service, changes);
        plane.client.register(&stamped(instance, changes)).await?;
        tokio::time::sleep_until((began + Duration::from_secs(1) / args.rate.max(1) * changes).into()).await;
    }
    let took = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds(&pids)? - before;
    let behind = streams.behind(PATIENCE).await?;
    Ok(Steady {
        rate: args.rate,
        seconds: args.seconds,
        changes,
        core_percent: cpu / took * 100.0,
        behind_ms: times(behind),
    })
}

/// An endpoint with a weight that says which change this is.
fn stamped(live: &Instance, stamp: u32) -> Instance {
    Instance { weight: mesh::WEIGHT + stamp, ..live.clone() }
}

pub(crate) fn times(mut all: Vec<Duration>) -> Times {
    all.sort_unstable();
    let at = |share: f64| {
        let index = (all.len() as f64 * share).ceil() as usize;
        all.get(index.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    Times { p50: at(0.5), p99: at(0.99), max: at(1.0) }
}
