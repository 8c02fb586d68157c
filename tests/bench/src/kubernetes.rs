//! A cluster under change: a real API server with thousands of Services and tens of thousands of Pods, made by hand, and a control plane that
//! follows them. What is timed is when a sidecar has it that a Pod is ready no longer, decoded, from the moment when that is written.
//!
//! ```text
//! etcd, API server ─> Services, Pods ─> control plane ─> ready ─> N streams subscribed ─> Pods change at a steady rate
//! ```
//!
//! All of it is in a network namespace; the control plane has a CPU of its own, the rest what is left.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use outrigger_control::api::types::StatusBody;
use outrigger_control::client::Client;
use outrigger_tests::cluster::{Cluster, Programs};
use outrigger_tests::mesh::Process;
use outrigger_tests::netns::{Host, Net};
use outrigger_tests::require;
use serde::Serialize;
use serde_json::json;

use crate::Programs as Built;
use crate::control::{Times, progress, times};
use crate::process::{Memory, cpu_seconds, memory};

mod objects;
mod streams;

use objects::{Objects, Pod};
use streams::Streams;

/// Where the control plane runs.
const CPU: &str = "1";
/// For everything to be known, and for all streams to have what they ask for.
const PATIENCE: Duration = Duration::from_secs(300);
const XDS: u16 = 15010;

/// What is measured.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    programs: Built,
    /// Services, in namespaces of 100.
    #[arg(long, default_value_t = 5_000)]
    services: u32,
    /// Pods of all of them.
    #[arg(long, default_value_t = 20_000)]
    pods: u32,
    /// Subscribed streams.
    #[arg(long, default_value_t = 200)]
    streams: u32,
    /// Services that each stream subscribes to.
    #[arg(long, default_value_t = 10)]
    names: u32,
    /// Changes of Pods per second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// For so many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

#[derive(Serialize)]
struct Report {
    services: u32,
    pods: u32,
    streams: u32,
    /// Making all that in the API server, which is not what is measured.
    made_s: f64,
    /// From the start of the control plane until it serves, and knows every Pod.
    start_to_serving_s: f64,
    cpu_to_serving_s: f64,
    streams_to_subscribed_s: f64,
    memory_of_an_empty_cluster: Memory,
    memory_serving: Memory,
    memory_subscribed: Memory,
    memory_at_end: Memory,
    /// Resident and beyond that of an empty cluster.
    bytes_per_pod: u64,
    rate: u32,
    changes: u32,
    /// Of those fewer than asked for, where the API server was too slow.
    changes_per_second: f64,
    core_percent: f64,
    core_percent_idle: f64,
    /// From the writing of a change until a stream that watches has it.
    behind_ms: Times,
    /// Of it the API server's own answer.
    written_ms: Times,
}

/// Measures and prints JSON.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        args.services > 0 && args.names > 0 && args.streams > 0,
        "there must be services, names and streams"
    );
    ensure!(args.names <= args.services, "--names must not be more than --services");
    ensure!(args.services <= args.pods, "--services must not be more than --pods: each has one that changes");
    let programs = match require::netns() {
        true => Programs::find(),
        false => None,
    };
    let Some(programs) = programs else {
        bail!("root and the programs of Kubernetes are needed (`bash .ci/run tools`)")
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(measure(args, programs))?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

/// A control plane that runs.
struct Plane {
    process: Process,
    client: Client,
    began: Instant,
}

impl Plane {
    /// Starts it in its own directory.
    fn start(bin: &Path, host: &Host, cluster: &Cluster, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let program = bin.join("outrigger");
        ensure!(program.is_file(), "no {}: `cargo xtask bench --kubernetes` builds it", program.display());
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let settings = json!({
            "dataDir": directory, "xdsAddress": at(15012), "metricsAddress": at(15014), "otlpAddress": at(4317),
            "queryAddress": at(16686), "parentPipe": true,
            "plaintextXds": {"address": at(XDS), "identity": "spiffe://cluster.local/ns/n0/sa/client"},
            "registries": [{"name": "cluster", "kubernetes": {"kubeconfig": cluster.path("admin.kubeconfig"), "readOnly": true}}],
        });
        let file = directory.join("control.json");
        std::fs::write(&file, settings.to_string())?;
        let mut command = host.command_with(&["taskset", "-c", CPU], &[], &program);
        command.args(["control-plane", "--config"]).arg(&file);
        let began = Instant::now();
        let process = Process::spawn(command, directory.join("log"));
        let client = Client::socket(directory.join("outrigger.sock"));
        Ok(Self { process, client, began })
    }

    /// Waits until it serves and has so many Pods.
    async fn serves(&mut self, pods: usize) -> Result<f64> {
        let whole = |status: &StatusBody| status.registries.iter().any(|row| row.instances == pods);
        while !self.client.status().await.as_ref().is_ok_and(whole) {
            if self.process.ended().is_some() || self.began.elapsed() > PATIENCE {
                bail!("the control plane does not become ready: {}", self.process.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(self.began.elapsed().as_secs_f64())
    }

    fn memory(&self) -> Result<Memory> {
        memory(self.process.id())
    }

    fn cpu(&self) -> Result<f64> {
        cpu_seconds(&[self.process.id()])
    }
}

async fn measure(args: &Args, programs: Programs) -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let (began, net) = (Instant::now(), Net::new());
    let host = net.host("bench");
    let cluster = Cluster::start_alone(programs, &host).await;
    progress("the API server is ready", began);
    let mut empty = Plane::start(&args.programs.bin, &host, &cluster, &directory.path().join("empty"))?;
    empty.serves(0).await?;
    let memory_of_an_empty_cluster = empty.memory()?;
    empty.process.kill();

    let began = Instant::now();
    let objects = Arc::new(Objects::new(&cluster).await?);
    let (services, pods, made) = (args.services, args.pods, objects.clone());
    host.run(async move { made.make(services, pods).await }).await?;
    let made_s = began.elapsed().as_secs_f64();
    progress("Services and Pods are made", began);

    let mut plane = Plane::start(&args.programs.bin, &host, &cluster, &directory.path().join("control"))?;
    let start_to_serving_s = plane.serves(args.pods as usize).await?;
    let (cpu_to_serving_s, memory_serving) = (plane.cpu()?, plane.memory()?);
    progress("the control plane serves", plane.began);

    let began = Instant::now();
    let watched: Vec<BTreeSet<u32>> = (0..args.streams).map(|stream| watched(args, stream)).collect();
    let of_all: BTreeSet<u32> = watched.iter().flatten().copied().collect();
    let xds = SocketAddr::from(([127, 0, 0, 1], XDS));
    let names =
        watched.iter().map(|services| services.iter().copied().map(objects::cluster_of).collect()).collect();
    let streams = host.run(async move { Streams::start(xds, names) }).await;
    streams.subscribed(PATIENCE).await?;
    let streams_to_subscribed_s = began.elapsed().as_secs_f64();
    progress("all streams have what they asked for", began);
    let memory_subscribed = plane.memory()?;

    let (before, since) = (plane.cpu()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let core_percent_idle = (plane.cpu()? - before) / since.elapsed().as_secs_f64() * 100.0;
    // One Pod of each service that is watched, so that each change is somebody's.
    let pods: Vec<Pod> = of_all.iter().map(|service| Pod::of(*service, args.services, args.pods)).collect();
    let before = plane.cpu()?;
    let steady = steady(args, &host, &objects, &streams, pods).await?;
    let core_percent = (plane.cpu()? - before) / steady.took * 100.0;
    let behind = streams.behind().await?;
    if plane.process.ended().is_some() {
        bail!("the control plane ended: {}", plane.process.log());
    }
    let beyond = memory_serving.resident.saturating_sub(memory_of_an_empty_cluster.resident);
    Ok(Report {
        services: args.services,
        pods: args.pods,
        streams: args.streams,
        made_s,
        start_to_serving_s,
        cpu_to_serving_s,
        streams_to_subscribed_s,
        memory_of_an_empty_cluster,
        memory_serving,
        memory_subscribed,
        memory_at_end: plane.memory()?,
        bytes_per_pod: beyond * 1024 / u64::from(args.pods.max(1)),
        rate: args.rate,
        changes: steady.changes,
        changes_per_second: f64::from(steady.changes) / steady.took,
        core_percent,
        core_percent_idle,
        behind_ms: times(behind),
        written_ms: times(steady.written),
    })
}

/// The services of a stream: spread over all, the same in every run.
fn watched(args: &Args, stream: u32) -> BTreeSet<u32> {
    let spread = |i: u32| (u64::from(stream) * 31 + u64::from(i) * 7919) % u64::from(args.services);
    (0..args.names).filter_map(|i| u32::try_from(spread(i)).ok()).collect()
}

struct Steady {
    changes: u32,
    took: f64,
    written: Vec<Duration>,
}

/// Pods in turn, each ready no longer, and in the next round ready again.
async fn steady(
    args: &Args,
    host: &Host,
    objects: &Arc<Objects>,
    streams: &Streams,
    pods: Vec<Pod>,
) -> Result<Steady> {
    let (began, length) = (Instant::now(), Duration::from_secs(args.seconds.into()));
    let mut tasks = tokio::task::JoinSet::new();
    let (mut changes, mut written) = (0, Vec::new());
    'all: for ready in [false, true].into_iter().cycle() {
        for pod in &pods {
            if began.elapsed() >= length {
                break 'all;
            }
            changes += 1;
            streams.asked(&pod.cluster, pod.siblings - usize::from(!ready));
            let (host, objects, pod) = (host.clone(), objects.clone(), pod.clone());
            tasks.spawn(async move {
                let since = Instant::now();
                let said = host.run(async move { objects.ready(&pod, ready).await }).await;
                said.map(|()| since.elapsed())
            });
            while let Some(done) = tasks.try_join_next() {
                written.push(done.map_err(|error| anyhow!(error))??);
            }
            tokio::time::sleep_until((began + Duration::from_secs(1) / args.rate.max(1) * changes).into())
                .await;
        }
    }
    while let Some(done) = tasks.join_next().await {
        written.push(done??);
    }
    // Until the API server has taken the last of them: what was asked of it says nothing of what it did.
    let took = began.elapsed().as_secs_f64();
    Ok(Steady { changes, took, written })
}
