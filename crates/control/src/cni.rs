//! The agent of a node: what the CNI plugin asks, and what keeps the plugin in its place.
//!
//! ```text
//! runtime ─▶ plugin (crates/cni) ─▶ serve ─▶ pod (whether, which options) ─▶ netns ─▶ `intercept apply`
//!                 place (binary, configuration, watched)      repair (Pods that came before)
//! ```
//!
//! It needs no configuration of the mesh: whether a Pod is to have rules, and which, stands in the Pod as it was injected.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use outrigger_cni::ask::{Answer, SOCKET, Wanted};
use outrigger_cni::conflist;
use outrigger_telemetry::admin::{AdminServer, Table, rows};
use outrigger_telemetry::drain::{Drain, on_signals};
use outrigger_telemetry::ready::Readiness;
use outrigger_telemetry::{Registry, logging};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::registry::kubernetes::KubernetesSettings;

mod netns;
mod place;
mod pod;
mod repair;
mod serve;

/// Of [`Agent::programs`].
const PROGRAMS: usize = 4;
/// Between two tries to have an address that is taken.
const TAKEN: Duration = Duration::from_secs(5);
/// For the API server, when this ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// `outrigger cni`: installs the CNI plugin on the node that this runs on, and answers it
#[derive(Debug, Clone, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct CniArgs {
    /// The node's name
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Network configurations of the node, as they are seen here
    #[arg(long, value_name = "DIR", default_value = "/host/etc/cni/net.d")]
    pub configurations: PathBuf,
    /// Plugins of the node, as they are seen here
    #[arg(long, value_name = "DIR", default_value = "/host/opt/cni/bin")]
    pub plugins: PathBuf,
    /// The plugin's binary [default: outrigger-cni beside this program]
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Where the plugin asks; the same path on the node and here
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// Namespaces whose Pods never wait for this agent; those with its check have their rules by repair
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "kube-system")]
    pub exclude_namespaces: Vec<String>,
    /// Make the rules of Pods that started without them
    #[arg(long)]
    pub repair_rules: bool,
    /// Evict Pods that started without their rules, where that is not mended otherwise and a controller makes them anew
    #[arg(long)]
    pub repair_evict: bool,
    /// Label Pods that started without their rules: outrigger.io/interception=missing
    #[arg(long)]
    pub repair_label: bool,
    /// The node's processes, as they are seen here
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub processes: PathBuf,
    /// Whether the plugin stays in the network configuration when this ends
    #[arg(long, value_enum, default_value_t)]
    pub on_exit: OnExit,
    /// For `--on-exit auto`: the DaemonSet that this is of, NAMESPACE/NAME
    #[arg(long, value_name = "NAME", default_value = "kube-system/outrigger-cni")]
    pub daemon_set: String,
    /// Readiness and metrics
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15024))]
    pub metrics_address: SocketAddr,
    /// A kubeconfig file [default: the service account of the Pod that this runs in]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Log filter, such as info,outrigger_control=debug
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// What becomes of the configuration in the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// It stays while the DaemonSet is there, as in an upgrade: no Pod starts without its rules meanwhile
    #[default]
    Auto,
    /// It stays
    Keep,
    /// The plugin is taken out
    Remove,
}

/// What all parts of the agent share.
struct Agent {
    client: Client,
    node: String,
    /// What makes rules: this program.
    program: PathBuf,
    processes: PathBuf,
    ways: repair::Ways,
    /// Programs in Pods at a time: a crowd of Pods must not take the agent's memory, nor its node.
    programs: Arc<Semaphore>,
    /// Uids of Pods whose rules are known to be there.
    made: Mutex<HashSet<String>>,
    counts: Counts,
}

/// What there was to do.
#[derive(Default)]
struct Counts {
    intercepted: AtomicU64,
    left_alone: AtomicU64,
    failed: AtomicU64,
    repaired: AtomicU64,
    broken: AtomicU64,
}

impl Counts {
    fn add(&self, wanted: Wanted, answer: &Answer) {
        let count = match answer {
            Answer::Intercepted => &self.intercepted,
            Answer::LeftAlone(_) => &self.left_alone,
            Answer::Failed { .. } => &self.failed,
            Answer::Ready => return,
        };
        if wanted == Wanted::Add {
            count.fetch_add(1, Relaxed);
        }
    }

    fn repaired(&self, done: bool) {
        if done { &self.repaired } else { &self.broken }.fetch_add(1, Relaxed);
    }
}

/// Runs the agent until a signal.
///
/// # Errors
/// When it cannot start.
pub fn run(args: CniArgs) -> anyhow::Result<()> {
    logging::init("text".parse()?, args.log.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(work(args))
}

async fn work(args: CniArgs) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("this program cannot be found")?;
    let binary = args.binary.clone().unwrap_or_else(|| program.with_file_name(outrigger_cni::NAME));
    let cluster = KubernetesSettings { kubeconfig: args.kubeconfig.clone(), ..KubernetesSettings::default() };
    let client = cluster.client().await.map_err(|error| anyhow!("the cluster: {error}"))?;
    let agent = Arc::new(Agent {
        client,
        node: args.node.clone(),
        program,
        processes: args.processes.clone(),
        programs: Arc::new(Semaphore::new(PROGRAMS)),
        made: Mutex::default(),
        ways: repair::Ways { rules: args.repair_rules, evict: args.repair_evict, label: args.repair_label },
        counts: Counts::default(),
    });
    let place = place::Place {
        configurations: args.configurations.clone(),
        plugins: args.plugins.clone(),
        binary,
        entry: conflist::entry(&args.socket, &args.exclude_namespaces),
    };
    let readiness = Readiness::new();
    let condition = readiness.register("network configuration");
    let registry = Registry::with_process("cni", env!("CARGO_PKG_VERSION"));
    measure(&registry, &agent);
    let pages = pages(args.metrics_address, readiness, registry);
    // Before the configuration names it.
    let listener = serve::bind(&args.socket).await?;
    let drain = Drain::new();
    tracing::info!(node = args.node, socket = %args.socket.display(), "the agent of the CNI plugin serves");
    let watched = place.clone().keep(condition);
    let mended = async {
        match agent.ways == repair::Ways::default() {
            true => std::future::pending().await,
            false => repair::keep(agent.clone()).await,
        }
    };
    tokio::select! {
        ended = on_signals(drain.clone()) => ended.context("signals cannot be watched")?,
        () = drain.draining() => {}
        () = serve::serve(agent.clone(), listener) => {}
        () = pages => {}
        () = watched => {}
        () = mended => {}
    }
    if leaves(&args, &agent.client).await {
        place
            .take_out()
            .map_err(|error| anyhow!("the plugin stays in the network configuration: {error}"))?;
    }
    // The socket's name stays: it may be the next agent's by now, and one that nobody serves says the same as none.
    Ok(())
}

/// Readiness and metrics, for ever. Without them nobody calls it ready, but Pods have their rules.
async fn pages(address: SocketAddr, readiness: Readiness, registry: Registry) {
    let mut complained = false;
    loop {
        let table = Table::new("Outrigger CNI")
            .with(rows::ready("/ready", readiness.clone()))
            .with(rows::metrics("/metrics", registry.clone()));
        match AdminServer::bind(address, table) {
            Ok(admin) => return admin.serve(std::future::pending()).await,
            Err(error) if !std::mem::replace(&mut complained, true) => {
                tracing::warn!(%error, "neither readiness nor metrics are served until the address is free; all else is");
            }
            Err(_) => {}
        }
        tokio::time::sleep(TAKEN).await;
    }
}

/// Whether the plugin is to be taken out with the agent. Left in, Pods wait for the next agent.
async fn leaves(args: &CniArgs, client: &Client) -> bool {
    match args.on_exit {
        OnExit::Keep => return false,
        OnExit::Remove => return true,
        OnExit::Auto => {}
    }
    let (namespace, name) = args.daemon_set.split_once('/').unwrap_or(("kube-system", &args.daemon_set));
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    match tokio::time::timeout(FAREWELL, api.get(name)).await {
        Ok(Ok(found)) => found.metadata.deletion_timestamp.is_some(),
        // Gone, or what let us ask is gone with it: nobody comes after us.
        Ok(Err(kube::Error::Api(status))) => matches!(status.code, 401 | 403 | 404),
        Ok(Err(error)) => {
            tracing::warn!(%error, "whether the DaemonSet is still there cannot be asked: the plugin stays in the network configuration");
            false
        }
        Err(_) => false,
    }
}

fn measure(registry: &Registry, agent: &Arc<Agent>) {
    let agent = agent.clone();
    registry.register_fn(move |page| {
        let Counts { intercepted, left_alone, failed, repaired, broken } = &agent.counts;
        let mut all = page
            .counter("outrigger_cni_additions_total", "Pods that the CNI plugin was called for, by outcome.");
        for (outcome, count) in [("intercepted", intercepted), ("left_alone", left_alone), ("failed", failed)]
        {
            all.sample([("outcome", outcome)], count.load(Relaxed));
        }
        let mut all =
            page.counter("outrigger_cni_repairs_total", "Pods found without their rules, by outcome.");
        for (outcome, count) in [("repaired", repaired), ("failed", broken)] {
            all.sample([("outcome", outcome)], count.load(Relaxed));
        }
    });
}
