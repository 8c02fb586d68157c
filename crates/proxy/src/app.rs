//! The process: workers for traffic, one control runtime for everything else, and how both begin and end.
//!
//! ```text
//! bootstrap ─▶ identity ─▶ bind ─▶ workers (accept, pending) ─┐
//!                   └▶ control runtime: renew, feed, export, admin ├▶ SIGTERM: grace ─▶ drain ─▶ end
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use outrigger_model::endpoint::Workload;
use outrigger_telemetry::admin::AdminServer;
use outrigger_telemetry::logging::{self, LogFormat};
use outrigger_telemetry::trace::{ExportConfig, Exporter, SpanSender, exporter};
use outrigger_telemetry::{Drain, LogControl, Readiness, Registry, descriptors, drain};
use outrigger_xds::NodeInfo;
use outrigger_xds::client::{self, Client, Events, Options};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, LocalSet};

use crate::access_log;
use crate::admin::Pages;
use crate::app_metrics::{Application, Section};
use crate::bootstrap::{self, Bootstrap, Format, Mode, RecentRequests};
use crate::checks::Checks;
use crate::config_feed::state::{Bounds, FeedState, ResourceKey};
use crate::config_feed::{self, ConfigFeed, FeedStatus};
use crate::descriptors::Descriptors;
use crate::disk::SnapshotFile;
use crate::dns;
use crate::health;
use crate::intercept::probe::{self, Token};
use crate::intervals;
use crate::listen;
use crate::memory::Budget;
use crate::metrics;
use crate::process::{Demand, Process};
use crate::recent::Recent;
use crate::registration::{Own, Registrar};
use crate::resolve::{Board, Lookup, Resolver};
use crate::runtime::build::Zones;
use crate::runtime::snapshot::Snapshot;

mod identity;
mod publish;
mod workers;

use identity::Joined;
use publish::{Publisher, Reachable};

/// Command line of the sidecar.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ProxyArgs {
    /// The bootstrap file (YAML or JSON) [default: the text in the environment variable OUTRIGGER_BOOTSTRAP]
    #[arg(long, value_name = "FILE")]
    pub bootstrap: Option<PathBuf>,
    /// Log filter, such as `info,outrigger_proxy=debug`; overrides the bootstrap file.
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// Runs the sidecar until it has drained.
///
/// # Errors
/// What kept it from starting. After the start nothing ends it but signals, its parent, or `/quitquitquit`.
pub fn run(args: &ProxyArgs) -> anyhow::Result<()> {
    let variable = std::env::var(bootstrap::VARIABLE).ok();
    let bootstrap = Bootstrap::find(args.bootstrap.as_deref(), variable.as_deref())?;
    let format = match bootstrap.log.format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    let logs = logging::init(format, Some(args.log.as_ref().unwrap_or(&bootstrap.log.level)))?;
    // Before anything goes by it.
    descriptors::raise_limit();
    let joined = Joined::start(&bootstrap)?;
    let sockets = listen::bind(workers(&bootstrap), &bootstrap)?;
    let resolver = bootstrap.dns.as_ref().map(dns::bind).transpose()?;
    // On this thread: another, with its stack and its part of the heap, would have nothing to do most of the time.
    let control = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(4 + bootstrap.register.as_ref().map_or(0, |section| section.scripts()))
        .thread_name("control")
        .enable_all()
        .build()
        .context("the control runtime cannot be started")?;
    let (servers, search) = dns::resolvers(bootstrap.dns.as_ref(), resolver.as_ref());
    let lookup = Lookup::new(servers, search, PathBuf::from("/etc/hosts"));
    let (sidecar, feed, tracing) = assemble(&bootstrap, &joined, logs, lookup, control.handle())?;
    if let (Some(sockets), Some(section)) = (resolver, &bootstrap.dns) {
        let (_inside, pages) = (control.enter(), &sidecar.pages);
        let namespace = joined.id.namespace().unwrap_or(&bootstrap.node.namespace);
        dns::start(sockets, section, namespace, &pages.process, &pages.feed, &pages.registry)
            .context("dns")?;
    }
    let workers = workers::start(&sidecar.pages.process, sockets, &sidecar.pages.readiness)?;
    let here = LocalSet::new();
    let ended = control.block_on(here.run_until(sidecar.run(&bootstrap, &joined, feed, tracing)));
    workers.stop();
    // Nothing on it is worth waiting for any more.
    control.shutdown_timeout(Duration::from_millis(200));
    ended
}

fn workers(bootstrap: &Bootstrap) -> usize {
    bootstrap.workers.unwrap_or_else(workers::default_count)
}

type Feed = ConfigFeed<Publisher>;
type Tracing = Option<(Exporter, SpanSender)>;

/// What the control runtime works with.
struct Sidecar {
    pages: Pages,
    registering: Option<JoinHandle<()>>,
}

fn assemble(
    bootstrap: &Bootstrap,
    joined: &Joined,
    logs: LogControl,
    lookup: Lookup,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<(Sidecar, Feed, Tracing)> {
    let _inside = runtime.enter();
    let tracing = spans(bootstrap)?;
    let (demand, demands) = Demand::channel();
    let totals = metrics::Totals::new(local(bootstrap, joined));
    let process = Arc::new(Process {
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        generation: AtomicU64::new(0),
        swapped: watch::channel(0).0,
        credentials: joined.store.clone(),
        sampling: bootstrap.tracing.sampling,
        spans: tracing.as_ref().map(|(_, sender)| sender.clone()),
        access_log: access_log(bootstrap)?,
        recent: Recent::new(workers(bootstrap), bootstrap.recent_requests == RecentRequests::All),
        drain: Drain::new(),
        demand,
        node: bootstrap.node.clone(),
        metrics: totals.clone(),
        outbound_policy: bootstrap.outbound_policy,
        pending_timeout: bootstrap.pending_timeout,
        loops: Default::default(),
        mark: bootstrap.interception.mark,
        token: Token::new(),
        memory: Budget::new(bootstrap.memory_limit, workers(bootstrap)),
        descriptors: Descriptors::of_process(),
    });
    // The application's are called so already.
    let prefix = if bootstrap.app_metrics.is_some() { "outrigger_" } else { "" };
    let registry = Registry::with_process_as(prefix, "proxy", env!("CARGO_PKG_VERSION"));
    registry.register(totals);
    registry.register(Arc::new(process.access_log.clone()));
    let shed = process.memory.shed.clone();
    registry.register_fn(move |page| shed.write(page));
    let seen = process.clone();
    registry.register_fn(move |page| {
        let snapshot = seen.snapshot.load();
        metrics::cluster::write_state(&snapshot, page);
        metrics::limits::write_limits(&snapshot, page);
    });
    if let Some((_, sender)) = &tracing {
        registry.register(sender.source());
    }
    let names = Board::default();
    let (registrar, registering) = register(bootstrap, joined, &process, &registry).unzip();
    let (client, events) = ads(bootstrap, joined, registrar.as_ref());
    let resolver = Resolver::new(lookup, names.clone());
    let (feed, status) = feed(bootstrap, joined, &process, demands, resolver, (client, events));
    let seen = names.clone();
    registry.register_fn(move |page| seen.write(page));
    config_feed::metrics::register(&registry, &feed);
    let readiness = readiness(joined, &status);
    expect_interception(bootstrap, &process.token, &readiness);
    let drain = process.drain.clone();
    let renewal = joined.renewal.clone();
    let probes = bootstrap.probes.clone();
    let application =
        bootstrap.app_metrics.clone().map(|section| application(section, &registry, process.clone()));
    let pages = Pages {
        process,
        feed: status,
        state: feed.state.clone(),
        names,
        renewal,
        readiness,
        probes,
        application,
        registry,
        logs,
        registrar,
        drain,
    };
    Ok((Sidecar { pages, registering }, feed, tracing))
}

/// Nobody asks for the application's metrics at an address of ours.
fn application(section: Section, registry: &Registry, process: Arc<Process>) -> Arc<Application> {
    Application::new(section, registry, move |address| {
        process.loops.led(address).is_ok() && process.loops.inward(address).is_ok()
    })
}

impl Sidecar {
    async fn run(
        mut self,
        bootstrap: &Bootstrap,
        joined: &Joined,
        mut feed: Feed,
        tracing: Tracing,
    ) -> anyhow::Result<()> {
        tokio::spawn(joined.renew());
        feed.restore();
        tokio::spawn(feed.run());
        tokio::task::spawn_local(health::run(self.pages.process.clone()));
        tokio::spawn(intervals::run(self.pages.process.clone()));
        self.serve_pages(bootstrap)?;
        let drain = self.pages.drain.clone();
        let exporter = tracing.map(|(exporter, _)| {
            let drain = drain.clone();
            tokio::spawn(async move {
                let stop = async move {
                    drain.draining().await;
                    let _ = drain.wait_idle(Duration::from_secs(3600)).await;
                };
                exporter.run(stop, Duration::from_secs(2)).await;
            })
        });
        stop_asked(bootstrap, &self.pages).await?;
        self.pages.registrar.iter().for_each(Registrar::leave);
        drain.begin();
        if let Err(forced) = drain.wait_idle(bootstrap.drain_timeout).await {
            tracing::warn!(active = forced.active, "not everything has ended in time; the rest is cut");
        }
        if let (Some(registrar), Some(task)) = (&self.pages.registrar, self.registering.take()) {
            registrar.end(task).await;
        }
        if let Some(exporter) = exporter {
            let _ = tokio::time::timeout(Duration::from_secs(3), exporter).await;
        }
        tracing::info!("drained");
        Ok(())
    }

    fn serve_pages(&self, bootstrap: &Bootstrap) -> anyhow::Result<()> {
        let pages = &self.pages;
        let mut servers = vec![("admin", bootstrap.admin, pages.admin(&bootstrap.admin_names))];
        servers.extend(bootstrap.metrics.map(|address| ("metrics", address, pages.metrics())));
        servers.extend(bootstrap.health.map(|address| ("health", address, pages.health())));
        for (name, address, table) in servers {
            let server = AdminServer::bind(address, table).with_context(|| format!("{name}: {address}"))?;
            tracing::info!(address = %server.local_addr(), "{name} pages");
            outrigger_telemetry::listen::reached(server.local_addr())
                .for_each(|address| pages.process.loops.serving(address));
            // The pages answer until the process is gone, the drain included.
            tokio::spawn(server.serve(std::future::pending()));
        }
        Ok(())
    }
}

/// Resolves when draining shall begin: a signal and its grace period, the parent's end, or `/quitquitquit`.
async fn stop_asked(bootstrap: &Bootstrap, pages: &Pages) -> anyhow::Result<()> {
    let signals = Drain::new();
    let watched = signals.clone();
    let drain = pages.drain.clone();
    tokio::spawn(async move {
        if let Err(error) = drain::on_signals(watched.clone()).await {
            tracing::error!(%error, "signals cannot be watched; use /quitquitquit to stop");
            std::future::pending::<()>().await;
        }
        drain.force();
    });
    let parent = async {
        match bootstrap.parent_pipe {
            true => drain::parent_stdin().await,
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        () = signals.draining() => {
            let leaving = pages.readiness.register("signal");
            leaving.set_not_ready("stopping; connections are still accepted for the grace period");
            pages.registrar.iter().for_each(Registrar::leave);
            tokio::select! {
                () = tokio::time::sleep(bootstrap.grace) => {}
                () = pages.drain.draining() => {}
            }
        }
        ended = parent => {
            ended.context("parent_pipe: standard input cannot be watched")?;
            tracing::info!("the parent is gone: stopping at once");
            pages.drain.force();
        }
        () = pages.drain.draining() => {}
    }
    Ok(())
}

fn spans(bootstrap: &Bootstrap) -> anyhow::Result<Tracing> {
    if bootstrap.tracing.otlp.is_empty() {
        return Ok(None);
    }
    let node = &bootstrap.node;
    let name = if node.app.is_empty() { &node.workload } else { &node.app };
    let resource = [
        ("service.name", format!("{name}.{}", node.namespace)),
        ("service.namespace", node.namespace.clone()),
        ("service.version", node.version.clone()),
        ("service.instance.id", node.id.clone()),
    ];
    let (sender, exporter) = exporter(ExportConfig {
        endpoints: bootstrap.tracing.otlp.clone(),
        resource: resource.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        interval: Duration::from_millis(bootstrap.tracing.flush_ms.max(10)),
        ..ExportConfig::default()
    })
    .context("tracing.otlp")?;
    Ok(Some((exporter, sender)))
}

fn access_log(bootstrap: &Bootstrap) -> anyhow::Result<access_log::Sink> {
    let format = match bootstrap.access_log.format {
        Format::Text => access_log::Format::Text,
        Format::Json => access_log::Format::Json,
    };
    let target = match bootstrap.access_log.path.as_str() {
        "off" => return Ok(access_log::Sink::off()),
        "-" => access_log::Target::Stdout,
        path => access_log::Target::File(path.into()),
    };
    access_log::Sink::to(&target, format)
        .with_context(|| format!("access_log.path: {}", bootstrap.access_log.path))
}

fn local(bootstrap: &Bootstrap, joined: &Joined) -> metrics::Local {
    let node = &bootstrap.node;
    metrics::Local {
        workload: Workload {
            name: node.workload.clone(),
            namespace: joined.id.namespace().unwrap_or(&node.namespace).to_owned(),
            service: if node.app.is_empty() { node.workload.clone() } else { node.app.clone() },
            revision: node.version.clone(),
        },
        principal: Some(joined.id.clone()),
        cluster: node.cluster.clone(),
        node_id: node_id(bootstrap),
        mesh_id: joined.id.trust_domain().to_owned(),
    }
}

fn node_id(bootstrap: &Bootstrap) -> String {
    let node = &bootstrap.node;
    let address = node.address.or_else(|| bootstrap.inbound.first().map(|inbound| inbound.bind.ip()));
    let address = address.map_or_else(String::new, |address| address.to_string());
    format!("sidecar~{address}~{}.{}~{}", node.id, node.namespace, node.cluster)
}

fn feed(
    bootstrap: &Bootstrap,
    joined: &Joined,
    process: &Arc<Process>,
    demands: mpsc::Receiver<ResourceKey>,
    resolver: Resolver,
    (client, events): (Client, Events),
) -> (Feed, Arc<Mutex<FeedStatus>>) {
    let mut state = FeedState::new(config_feed::always(bootstrap.dns.is_some()));
    for outbound in &bootstrap.outbound {
        state.pin(&outbound.to);
    }
    let status = Arc::new(Mutex::new(FeedStatus::default()));
    let bound_to = format!("{} {}", joined.id, bootstrap.node.id);
    let reachable = Reachable::new(
        !bootstrap.inbound.is_empty() || bootstrap.mode != Mode::Explicit,
        format!("instance \"{}\" as {}", bootstrap.node.id, joined.id),
    );
    let zones = Zones::new(bootstrap.local_cluster.clone(), bootstrap.node.locality.to_model());
    let trust_domain = joined.id.trust_domain().to_owned();
    let publisher = Publisher::new(process.clone(), trust_domain, reachable, zones);
    let file = SnapshotFile::new(&bootstrap.state_dir, bound_to);
    let bounds = Bounds::default();
    let kept = status.clone();
    let feed = ConfigFeed {
        client,
        events,
        demands,
        resolver,
        state: Arc::new(Mutex::new(state)),
        publisher,
        bounds,
        file,
        status: kept,
    };
    (feed, status)
}

/// Registers the workload, where that is ours to do.
fn register(
    bootstrap: &Bootstrap,
    joined: &Joined,
    process: &Arc<Process>,
    registry: &Registry,
) -> Option<(Registrar, JoinHandle<()>)> {
    let section = bootstrap.register.as_ref()?;
    let (own, checks) = (Own::new(bootstrap, section, &joined.id), Checks::start(&section.checks));
    let (control, store) = (joined.control.clone(), joined.store.clone());
    let (registrar, task) = Registrar::start(own, checks, control, store, process.clone());
    let seen = registrar.clone();
    registry.register_fn(move |page| seen.write(page));
    Some((registrar, task))
}

/// The ADS client waits for the certificate, as who we are decides what we are told, and for the first try to register, as what we
/// are does.
fn ads(bootstrap: &Bootstrap, joined: &Joined, registrar: Option<&Registrar>) -> (Client, Events) {
    let node = &bootstrap.node;
    let info = NodeInfo {
        id: node_id(bootstrap),
        cluster: node.cluster.clone(),
        locality: node.locality.to_model(),
        user_agent: "outrigger".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        metadata: match registrar {
            Some(registrar) => json!({ "INSTANCE": node.id, "NAMESPACE": node.namespace,
                "INCARNATION": registrar.incarnation() }),
            None => json!({ "INSTANCE": node.id, "NAMESPACE": node.namespace }),
        },
    };
    let (store, control) = (joined.store.clone(), joined.control.clone());
    let registrar = registrar.cloned();
    let connect = move || {
        let (store, control, registrar) = (store.clone(), control.clone(), registrar.clone());
        async move {
            store.ready().await;
            if let Some(registrar) = registrar {
                registrar.tried().await;
            }
            Ok(control.channel())
        }
    };
    let (client, events, run) = client::start(connect, info, Options::default());
    tokio::spawn(run);
    (client, events)
}

fn readiness(joined: &Joined, feed: &Arc<Mutex<FeedStatus>>) -> Readiness {
    let readiness = Readiness::new();
    let store = joined.store.clone();
    readiness.probe("identity", Duration::from_secs(1), move || {
        let there = store.load().valid_certificate(std::time::SystemTime::now()).is_some();
        async move { if there { Ok(()) } else { Err("there is no valid certificate yet; see /certs".to_owned()) } }
    });
    let feed = feed.clone();
    readiness.probe("configuration", Duration::from_secs(1), move || {
        let status = feed.lock();
        let reason = status.disconnected.clone().unwrap_or_else(|| "waiting for the control plane".into());
        let applied = status.applied;
        async move { if applied { Ok(()) } else { Err(reason) } }
    });
    readiness
}

/// Fails closed: a sidecar that is told to expect interception is not ready while the rules are absent.
fn expect_interception(bootstrap: &Bootstrap, token: &Token, readiness: &Readiness) {
    if bootstrap.mode == Mode::Explicit || !bootstrap.interception.required {
        return;
    }
    let token = token.clone();
    readiness.probe("interception", Duration::from_secs(2), move || {
        let token = token.clone();
        async move { probe::check(&token, &probe::reachable()).await }
    });
}
