//! Starts and stops a control plane: opens the store, loads registries, and only then listens.
//!
//! ```text
//! settings -> authority, store, registries -> keeper (first world) -> board, tokens -> servers
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use outrigger_identity::{Authority, AuthorityOptions, CredentialStore, keep_server_certificate};
use outrigger_telemetry::{Drain, LogControl, Readiness, Registry};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{Api, ApiParts};
use crate::instance::State;
use crate::keeper::{Keeper, Start};
use crate::keys;
use crate::metrics::{Metrics, observe};
use crate::recall;
use crate::registry::health::Table;
use crate::registry::write::Wanted;
use crate::registry::{self, Heard};
use crate::rejections::Rejections;
use crate::replicas::Replicas;
use crate::replicas::keys::Keys;
use crate::reports::Reporter;
use crate::settings::Settings;
use crate::status::Board;
use crate::store::embedded::Embedded;
use crate::store::{Contents, Store};
use crate::tokens::{AdminToken, Tokens};
use crate::traces::TraceStore;

mod accept;
mod balance;
pub(crate) mod gate;
mod grpc;
mod http;
mod lineage;
mod replicated;
mod servers;

#[cfg(test)]
pub(crate) use accept::user;

/// The store in the data directory.
const STORE_FILE: &str = "outrigger.redb";
/// Between two looks whether the store takes changes again.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at what registries are to have.
const BURST: Duration = Duration::from_millis(50);
/// For streams to see their end, once told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A control plane.
pub struct ControlPlane;

/// A control plane that runs.
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    /// The management socket.
    pub socket: PathBuf,
    keeper: Keeper,
    store: Arc<dyn Store>,
    /// Handles on it, ours and those of whoever gave it to us.
    handles: usize,
    board: Arc<Board>,
    traces: TraceStore,
    authority: Arc<Authority>,
    replicas: Option<Arc<Replicas>>,
    drain: Drain,
    tasks: JoinSet<()>,
}

/// Where a control plane listens: what was really bound.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// xDS and certificate requests over TLS.
    pub xds: SocketAddr,
    /// xDS without TLS.
    pub plaintext_xds: Option<SocketAddr>,
    /// The management API over TLS.
    pub management: Option<SocketAddr>,
    /// Metrics, readiness, debug pages.
    pub metrics: SocketAddr,
    /// OTLP receiver.
    pub otlp: Option<SocketAddr>,
    /// Jaeger's query API.
    pub query: Option<SocketAddr>,
    /// The webhook that injects sidecars.
    pub injector: Option<SocketAddr>,
}

/// What was opened before anything listens.
pub(crate) struct Parts {
    pub(crate) settings: Settings,
    pub(crate) keeper: Keeper,
    pub(crate) registries: Table,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) board: Arc<Board>,
    pub(crate) tokens: Tokens,
    pub(crate) admin: AdminToken,
    pub(crate) authority: Arc<Authority>,
    /// The others, if there may be any.
    pub(crate) replicas: Option<Arc<Replicas>>,
    pub(crate) credentials: CredentialStore,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) registry: Registry,
    pub(crate) traces: TraceStore,
    pub(crate) rejections: Rejections,
    /// What an operator must know for as long as this process runs.
    pub(crate) notices: Vec<String>,
    pub(crate) logs: Option<LogControl>,
    /// Where sidecars are served.
    pub(crate) streams: Handle,
    pub(crate) drain: Drain,
}

impl ControlPlane {
    /// Starts on the present tokio runtime, with port 0 wherever the settings say so. Returns when it serves.
    ///
    /// # Errors
    /// When a setting cannot work, a file cannot be used, or an address is taken.
    pub async fn start(settings: Settings) -> anyhow::Result<Running> {
        Self::start_with(settings, None, None, Handle::current()).await
    }

    /// As [`ControlPlane::start`], with the log filter on the metrics port, a store other than the one in the data directory, and
    /// sidecars served on another runtime: a thousand of them that are told of a change keep no operator waiting then.
    ///
    /// # Errors
    /// The same.
    pub async fn start_with(
        settings: Settings,
        logs: Option<LogControl>,
        store: Option<Arc<dyn Store>>,
        streams: Handle,
    ) -> anyhow::Result<Running> {
        settings.validate()?;
        let handles = store.as_ref().map_or(1, Arc::strong_count);
        let mut tasks = JoinSet::new();
        let (parts, heard) = open(settings, (logs, streams), store, &mut tasks).await?;
        for heard in heard {
            tasks.spawn(pass_on(heard, parts.keeper.clone()));
        }
        tasks.spawn(keys::follow(parts.keeper.clone(), parts.registries.clone()));
        tasks.spawn(watch_roots(parts.authority.clone(), parts.keeper.clone(), parts.store.clone()));
        tasks.spawn(watch_revoked(parts.keeper.clone(), parts.authority.clone(), parts.tokens.clone()));
        tasks.spawn(recover(parts.store.clone()));
        if parts.replicas.is_some() && !parts.notices.is_empty() {
            tasks.spawn(replicated::mended(parts.keeper.clone(), parts.store.clone()));
        }
        for reporter in Reporter::all(
            &parts.settings,
            &parts.registries,
            &parts.keeper,
            &parts.board,
            parts.replicas.as_ref(),
        ) {
            tasks.spawn(reporter.tell());
        }
        let (keeper, board, traces) = (parts.keeper.clone(), parts.board.clone(), parts.traces.clone());
        let (store, replicas) = (parts.store.clone(), parts.replicas.clone());
        let (authority, drain, socket) =
            (parts.authority.clone(), parts.drain.clone(), parts.settings.socket_path());
        let addresses = servers::start(parts, &mut tasks).await?;
        tracing::info!(
            xds = %addresses.xds, socket = %socket.display(), generation = keeper.published().generation(),
            "the control plane serves"
        );
        Ok(Running {
            addresses,
            socket,
            keeper,
            store,
            handles,
            board,
            traces,
            authority,
            replicas,
            drain,
            tasks,
        })
    }
}

async fn open(
    settings: Settings,
    (logs, streams): (Option<LogControl>, Handle),
    store: Option<Arc<dyn Store>>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<(Parts, Vec<Heard>)> {
    let (directory, given) = (settings.data_dir.clone(), store);
    let opened = tokio::task::spawn_blocking(move || open_store(&directory, given)).await;
    let store = opened.context("opening the data directory")??;
    let (joining, store) = replicated::begin(&settings, store).await?;
    let contents = store.clone().load().await?;
    let options = AuthorityOptions {
        default_ttl: Duration::from_secs(settings.certificate_ttl_seconds),
        ..AuthorityOptions::new(&settings.trust_domain)
    };
    let among = (joining.as_ref(), &store);
    let (shared, lost) = replicated::authority(among, &settings, options.clone(), &contents).await?;
    let opened = tokio::task::spawn_blocking(move || open_files(settings, options, contents, shared)).await;
    let Opened { settings, mut contents, authority, keys, admin, mut notices } =
        opened.context("opening the data directory")??;
    notices.extend(lost);
    lineage::record(&store, &authority).await?;
    let authority = Arc::new(authority);
    let credentials = CredentialStore::default();
    let (names, ips) = (settings.certificate_names(), settings.certificate_ips());
    tasks.spawn(keep_server_certificate(authority.clone(), credentials.clone(), names, ips));
    credentials.ready().await;
    let mesh = settings.mesh();
    let origin = lineage::origin(&store, &contents).await?;
    let rows = settings.rows();
    let memories = recall::load(&store, &contents, &rows, &mesh).await?;
    let opened = registry::open(&rows, &mesh.reading("default"), &origin, memories, tasks);
    let registry::Opened { table: registries, mut heard, wanted } = opened;
    // Together: those that are away are waited for once.
    let said = try_join_all(heard.iter_mut().map(Heard::first)).await?.into_iter().flatten().collect();
    let tokens = Tokens::new(store.clone(), std::mem::take(&mut contents.tokens));
    let start = Start {
        store: store.clone(),
        contents,
        settings: mesh,
        said,
        roots_pem: authority.bundle().to_pem(&settings.trust_domain).into(),
    };
    let mut keeper = Keeper::start(start).await?;
    let replicas = match joining {
        Some(joining) => {
            keeper = keeper.among_replicas();
            Some(joining.join(keys, (&authority, &credentials), &keeper, &tokens, tasks)?)
        }
        None => None,
    };
    authority.revoke(keeper.published().revoked.clone());
    tasks.spawn(pass_back(keeper.clone(), wanted));
    tasks.spawn(recall::keep(keeper.clone(), store.clone(), registries.clone(), rows));
    let board = Arc::new(Board::new(keeper.published().compiled.audience().clone()));
    let registry = Registry::with_process("outrigger-control", env!("CARGO_PKG_VERSION"));
    let metrics = Metrics::new(&registry);
    let traces = TraceStore::new(settings.trace_spans, settings.trace_bytes);
    if let Some(replicas) = &replicas {
        replicas.observe(&registry);
    }
    observe(&registry, keeper.clone(), registries.clone(), board.clone(), traces.clone());
    let drain = Drain::new();
    let parts = Parts {
        settings,
        keeper,
        registries,
        store,
        board,
        tokens,
        admin,
        authority,
        replicas,
        credentials,
        metrics,
        registry,
        traces,
        rejections: Rejections::default(),
        notices,
        logs,
        streams,
        drain,
    };
    Ok((parts, heard))
}

struct Opened {
    settings: Settings,
    contents: Contents,
    authority: Authority,
    /// Where replicas share it.
    keys: Option<Keys>,
    admin: AdminToken,
    notices: Vec<String>,
}

/// The data directory, and the store in it unless there is another.
fn open_store(directory: &Path, given: Option<Arc<dyn Store>>) -> anyhow::Result<Arc<dyn Store>> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("the data directory {} cannot be made", directory.display()))?;
    match given {
        Some(store) => Ok(store),
        None => Ok(Arc::new(Embedded::open(&directory.join(STORE_FILE))?)),
    }
}

fn open_files(
    settings: Settings,
    options: AuthorityOptions,
    contents: Contents,
    shared: Option<(Authority, Keys)>,
) -> anyhow::Result<Opened> {
    lineage::check(&settings, &contents)?;
    let (authority, keys, notices) = match shared {
        Some((authority, keys)) => (authority, Some(keys), None),
        None => {
            let authority = Authority::open(&settings.authority_path(), options)?;
            let notices = lineage::lost_authority(&contents, &authority, &settings.authority_path());
            (authority, None, notices)
        }
    };
    let notices = notices.into_iter().collect();
    let admin = AdminToken::open(&settings.data_dir)?;
    Ok(Opened { settings, contents, authority, keys, admin, notices })
}

/// Each registry has a task of its own: one that says much waits for the keeper, and nobody for it.
async fn pass_on(mut heard: Heard, keeper: Keeper) {
    while let Some(said) = heard.next().await {
        if keeper.registries(said).await.is_err() {
            return;
        }
    }
}

/// What is registered here, for registries that are to have it: those that nobody has revoked or stopped.
async fn pass_back(keeper: Keeper, wanted: watch::Sender<Arc<Wanted>>) {
    let mut generation = keeper.subscribe();
    while !wanted.is_closed() {
        let published = keeper.published();
        let mut all = Wanted::new();
        for id in published.registrations.keys() {
            let instance = published.world.instance(id).filter(|instance| instance.state != State::Stopped);
            all.extend(instance.map(|instance| (id.clone(), instance.clone())));
        }
        wanted.send_if_modified(|before| {
            let is_news = **before != all;
            if is_news {
                *before = Arc::new(all);
            }
            is_news
        });
        if generation.changed().await.is_err() {
            return;
        }
        // All of them are looked at, so once for changes that come together.
        tokio::time::sleep(BURST).await;
    }
}

async fn watch_roots(authority: Arc<Authority>, keeper: Keeper, store: Arc<dyn Store>) {
    let mut changed = authority.subscribe();
    while changed.changed().await.is_ok() {
        lineage::record_roots(&store, &authority).await;
        keeper.roots(authority.bundle().to_pem(authority.trust_domain()).into()).await;
    }
}

/// The authority's bundle, and with it every listener of ours, follows what the keeper says.
async fn watch_revoked(keeper: Keeper, authority: Arc<Authority>, tokens: Tokens) {
    let mut generation = keeper.subscribe();
    loop {
        let published = keeper.published();
        authority.revoke(published.revoked.clone());
        tokens.forget_answers(published.revocations.values().map(|one| one.at).max());
        if generation.changed().await.is_err() {
            return;
        }
    }
}

/// While the disk does not take changes, asks it again: readiness must come back without anybody's change.
async fn recover(store: Arc<dyn Store>) {
    loop {
        tokio::time::sleep(RETRY).await;
        let Some(trouble) = store.trouble() else { continue };
        match store.clone().retry().await {
            Ok(()) => tracing::info!(trouble, "the store takes changes again"),
            Err(error) => tracing::debug!(%error, "the store still takes no changes"),
        }
    }
}

impl Running {
    /// A client of the management socket.
    pub fn client(&self) -> crate::client::Client {
        crate::client::Client::socket(&self.socket)
    }

    /// What changes the world, without HTTP.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Who is connected.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// The built-in trace store.
    pub fn traces(&self) -> &TraceStore {
        &self.traces
    }

    /// The certificate authority.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Begin it to stop the servers.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Stops listening, ends streams and removes the socket.
    pub async fn stop(mut self) {
        self.drain.begin();
        if let Some(replicas) = &self.replicas {
            replicas.stop().await;
        }
        // xDS streams end with the keeper; until then tonic would wait for them.
        self.keeper.stop().await;
        let servers = self.drain.wait_idle(STOP_TIMEOUT).await;
        if let Err(forced) = servers {
            tracing::info!("{forced}");
        }
        self.tasks.shutdown().await;
        remove_socket(&self.socket);
        // Handlers that still run hold the store; whoever starts again in this process needs it free.
        let free = async {
            while Arc::strong_count(&self.store) > self.handles {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, free).await.is_err() {
            tracing::warn!("a request is still under way and holds the store");
        }
    }
}

/// Only a socket is removed: the path may be a mistake.
fn remove_socket(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
}

pub(crate) fn api(parts: Parts, advertised: String) -> (Api, Arc<ApiParts>) {
    let Parts { settings, keeper, registries, store, board, tokens, admin, authority, metrics, .. } = parts;
    let replicas = parts.replicas;
    let (rejections, notices) = (parts.rejections, parts.notices);
    let shared = Arc::new(ApiParts {
        settings,
        keeper,
        registries,
        store,
        board,
        tokens,
        admin,
        authority,
        replicas,
        metrics,
        advertised,
        rejections,
        notices,
        started: std::time::SystemTime::now(),
        explaining: Default::default(),
    });
    (Api { shared: shared.clone() }, shared)
}

/// The readiness of a control plane that serves: everything was loaded before, so the drain counts, and whether changes can
/// be stored.
fn readiness(drain: &Drain, store: &Arc<dyn Store>, replicas: Option<Arc<Replicas>>) -> Readiness {
    let readiness = Readiness::new();
    readiness.fail_when_draining(drain);
    let store = store.clone();
    readiness.probe("store", Duration::from_secs(1), move || {
        let trouble = store.trouble();
        async move { trouble.map_or(Ok(()), |why| Err(format!("changes cannot be stored: {why}"))) }
    });
    if let Some(replicas) = replicas {
        readiness.probe("replica", Duration::from_secs(1), move || {
            let hears = replicas.hears();
            async move { hears }
        });
    }
    readiness
}

#[cfg(test)]
mod tests;
