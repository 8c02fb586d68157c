//! Every listener of the control plane, bound before any of them serves.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use outrigger_identity::accept::ClientAuth;
use outrigger_identity::distrust::distrusted;
use outrigger_identity::{CertificateService, CredentialStore, Handshaker, PeerInfo, control_plane_id};
use outrigger_model::identity::SpiffeId;
use outrigger_telemetry::admin::AdminServer;
use outrigger_telemetry::{Drain, Registry, listen};
use outrigger_xds::server::AdsService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::service::Routes;

use super::accept::{self, Listen, Peer};
use super::balance::Leavers;
use super::gate::{Gate, Known, Shares};
use super::grpc::{self, Served, Terms};
use super::{Addresses, Parts, api, http, readiness};
use crate::api::{Channel, members, replicas, router, same_site};
use crate::debug;
use crate::keeper::Keeper;
use crate::proofs::Proofs;
use crate::rejections::{Noting, Rejections};
use crate::replicas::leader::Leadership;
use crate::service_accounts::{ServiceAccounts, Whose};
use crate::traces::{query, receive};
use crate::webhook::validate::Validator;
use crate::webhook::{self, Injector};
use crate::xds_source::XdsSource;

/// Exports that are read at once, and for how long each: some 64 MiB may be held by each while it is decoded,
/// some 24 MiB by an ordinary one that is as large as may be.
const EXPORTS: usize = 4;
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

fn bind(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    listen::bind(address).with_context(|| {
        format!("{what} cannot listen on {address}: choose another address or stop what holds it")
    })
}

/// A socket that a dead control plane left behind is replaced, one that answers is not.
async fn bind_socket(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            bail!("the management socket {shown} is another kind of file; choose another path");
        }
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            bail!("another control plane answers on the management socket {shown}");
        }
        std::fs::remove_file(path)
            .with_context(|| format!("the old management socket {shown} cannot be removed"))?;
    }
    // Bound under a name that nobody knows in a directory of our own, closed to others, and only then given its name:
    // between bind and chmod a socket has the mode of the umask.
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside)
        .with_context(|| format!("the management socket {} cannot be bound", aside.display()))?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&aside, path))
        .with_context(|| format!("the management socket {shown} cannot be given its mode and name"))?;
    Ok(listener)
}

/// Counts a server as active until it has ended.
fn spawn(tasks: &mut JoinSet<()>, drain: &Drain, server: impl Future<Output = ()> + Send + 'static) {
    spawn_on(&Handle::current(), tasks, drain, server);
}

/// The same on another runtime, with all its connections.
fn spawn_on(
    runtime: &Handle,
    tasks: &mut JoinSet<()>,
    drain: &Drain,
    server: impl Future<Output = ()> + Send + 'static,
) {
    let guard = drain.guard();
    let server = async move {
        server.await;
        drop(guard);
    };
    tasks.spawn_on(server, runtime);
}

/// Binds everything, then serves; everything was loaded before, so whoever is answered gets the whole world.
pub(super) async fn start(parts: Parts, tasks: &mut JoinSet<()>) -> anyhow::Result<Addresses> {
    let settings = parts.settings.clone();
    let xds = bind(settings.xds_address, "xDS")?;
    let plain = match &settings.plaintext_xds {
        Some(plain) => Some((bind(plain.address, "plaintext xDS")?, plain.identity.clone())),
        None => None,
    };
    let management = bind_optional(settings.management_address, "the management API")?;
    let otlp = bind_optional(settings.otlp_address, "the OTLP receiver")?;
    let queries = bind_optional(settings.query_address, "the trace query API")?;
    let injector = injector(&parts, tasks)?;
    let socket = bind_socket(&settings.socket_path()).await?;
    let (drain, credentials) = (parts.drain.clone(), parts.credentials.clone());
    let (traces, registry, logs) = (parts.traces.clone(), parts.registry.clone(), parts.logs.clone());
    let (rejections, gates) = (parts.rejections.clone(), Gates::of(parts.keeper.clone()));
    gates.observe(&registry);

    let source = XdsSource::new(
        parts.keeper.clone(),
        parts.board.clone(),
        parts.metrics.clone(),
        rejections.clone(),
        &settings.trust_domain,
    );
    let cluster = followed(accounts(&parts), parts.replicas.is_none(), &settings.data_dir, tasks).await;
    let proofs = Proofs { tokens: parts.tokens.clone(), cluster, keeper: parts.keeper.clone() };
    let policy = Noting { policy: proofs, rejections: rejections.clone() };
    let csr = CertificateService::new(parts.authority.clone(), Arc::new(policy)).into_server();
    let mut addresses = Addresses {
        xds: xds.local_addr()?,
        plaintext_xds: plain.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?,
        management: management.as_ref().map(TcpListener::local_addr).transpose()?,
        metrics: settings.metrics_address,
        otlp: otlp.as_ref().map(TcpListener::local_addr).transpose()?,
        query: queries.as_ref().map(TcpListener::local_addr).transpose()?,
        injector: injector.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?,
    };
    let (leavers, streams) = (leavers(&parts, tasks), parts.streams.clone());
    let readiness = readiness(&drain, &parts.store, parts.replicas.clone());
    let (api, shared) = api(parts, settings.advertised(addresses.xds));
    let table = debug::table(&shared, registry, readiness, logs);
    let admin = AdminServer::bind(settings.metrics_address, table)?;
    addresses.metrics = admin.local_addr();

    let listeners = Listeners { drain: drain.clone(), rejections };
    let ads = AdsService::server(Arc::new(source.clone()), peer_of);
    let services = Routes::new(ads).add_service(csr).into_axum_router();
    let served = Served::new(Routes::from(services.merge(members(api.clone())).merge(replicas(api.clone()))));
    let terms = (gates.xds.clone(), leavers);
    let sidecars = listeners.xds(xds, credentials.clone(), terms, served, settings.trust_domain.clone());
    spawn_on(&streams, tasks, &drain, sidecars);
    if let Some((listener, identity)) = plain {
        tracing::warn!("xDS without TLS is open: whoever reaches that port can read the configuration");
        let ads = AdsService::server(Arc::new(source.plaintext(identity)), peer_of);
        let served = Served::new(Routes::new(ads));
        spawn_on(&streams, tasks, &drain, listeners.plain(listener, gates.xds, Terms::MEMBER, served));
    }
    if let Some(listener) = otlp {
        let routes = Routes::new(receive::Receiver::server(traces.clone()));
        let served = Served::limited(routes, EXPORTS, EXPORT_TIMEOUT);
        spawn_on(&streams, tasks, &drain, listeners.plain(listener, gates.otlp, Terms::EXPORTER, served));
    }
    if let Some((listener, router)) = injector {
        let (gate, credentials) = (gates.injector, credentials.clone());
        spawn(tasks, &drain, listeners.management(listener, gate, credentials, router));
    }
    if let Some(listener) = management {
        let router = router(api.clone(), Some(traces.clone()));
        spawn(tasks, &drain, listeners.management(listener, gates.management, credentials, router));
    }
    if let Some(listener) = queries {
        let router = same_site(query::router(traces.clone()), &settings);
        spawn_on(&streams, tasks, &drain, listeners.http(listener, gates.query, router));
    }
    spawn(tasks, &drain, listeners.http(socket, gates.socket, router(api, Some(traces))));
    let stop = drain.clone();
    spawn(tasks, &drain, admin.serve(async move { stop.draining().await }));
    Ok(addresses)
}

/// Who is to go where there is more room, among replicas.
fn leavers(parts: &Parts, tasks: &mut JoinSet<()>) -> Leavers {
    let Some(replicas) = parts.replicas.clone() else { return Leavers::new(Arc::default()) };
    let leavers = Leavers::new(replicas.proxies.clone());
    tasks.spawn(leavers.clone().balance(replicas));
    leavers
}

/// Whose tokens are whose, where there is a cluster.
fn accounts(parts: &Parts) -> Option<ServiceAccounts> {
    let keeper = parts.keeper.clone();
    let pods =
        move |whose: &Whose| whose.is(keeper.published().world.instance(&whose.instance()).map(|one| &**one));
    let settings = &parts.settings;
    Some(ServiceAccounts::new(settings.cluster()?, &settings.trust_domain, Arc::new(pods)))
}

/// Keeps up with the keys of tokens; who is alone keeps them over a restart. Replicas wait for the API server when they start, and who writes into
/// their directories need not have the authority.
async fn followed(
    all: Option<ServiceAccounts>,
    is_alone: bool,
    directory: &Path,
    tasks: &mut JoinSet<()>,
) -> Option<ServiceAccounts> {
    let all = if is_alone { all?.keeping(directory).await } else { all? };
    tasks.spawn(all.clone().follow());
    Some(all)
}

/// The webhooks, if there are to be any, and who keeps what their API server knows of them.
fn injector(parts: &Parts, tasks: &mut JoinSet<()>) -> anyhow::Result<Option<(TcpListener, axum::Router)>> {
    let Parts { settings, authority, keeper, registries, registry, replicas, .. } = parts;
    let leadership = replicas.as_ref().map_or_else(Leadership::alone, |replicas| replicas.own.clone());
    let known = keeper.clone();
    let inhabited = Box::new(move || known.published().world.inhabited());
    let Some(injector) = Injector::new(settings, authority.clone(), registries, registry, inhabited) else {
        return Ok(None);
    };
    let listener = bind(injector.address(), "the injector")?;
    if let Some(cluster) = settings.cluster() {
        for configuration in injector.configurations() {
            tasks.spawn(webhook::bundle::keep(
                cluster.clone(),
                configuration,
                authority.clone(),
                leadership.clone(),
            ));
        }
    }
    let validator = Validator::new(settings.mesh(), injector.unjudged(), keeper.clone(), registry);
    Ok(Some((listener, injector.router().merge(validator.router()))))
}

/// The places of each listener.
struct Gates {
    xds: Gate,
    management: Gate,
    injector: Gate,
    socket: Gate,
    otlp: Gate,
    query: Gate,
}

impl Gates {
    /// As many as the process has descriptors for.
    fn of(keeper: Keeper) -> Self {
        let shares = Shares::of(descriptors());
        let known: Arc<Known> =
            Arc::new(move |ip: IpAddr| keeper.published().world.instances_at(ip).next().is_some());
        let gate = |limits| Gate::new(limits, known.clone());
        Self {
            xds: gate(shares.xds),
            management: gate(shares.management),
            injector: gate(shares.injector),
            socket: gate(shares.socket),
            otlp: gate(shares.otlp),
            query: gate(shares.query),
        }
    }

    /// Shows how full each listener is.
    fn observe(&self, registry: &Registry) {
        let all = [
            ("xds", self.xds.clone()),
            ("management", self.management.clone()),
            ("injector", self.injector.clone()),
            ("socket", self.socket.clone()),
            ("otlp", self.otlp.clone()),
            ("query", self.query.clone()),
        ];
        registry.register_fn(move |page| {
            let mut open = page.gauge("outrigger_connections", "Open connections, by listener.");
            for (listener, gate) in &all {
                let (strangers, members, _) = gate.counts();
                open.sample([("listener", *listener), ("kind", "stranger")], strangers as u64);
                open.sample([("listener", *listener), ("kind", "member")], members as u64);
            }
            let help = "Connections that went for want of room.";
            let mut gone = page.counter("outrigger_connections_shed_total", help);
            for (listener, gate) in &all {
                gone.sample([("listener", *listener)], gate.counts().2);
            }
        });
    }
}

/// What all listeners have in common; each becomes the future that serves it.
struct Listeners {
    drain: Drain,
    rejections: Rejections,
}

impl Listeners {
    /// xDS and certificate requests over TLS. A certificate of this mesh makes a member.
    fn xds(
        &self,
        listener: TcpListener,
        credentials: CredentialStore,
        (gate, leavers): (Gate, Leavers),
        served: Served,
        trust_domain: String,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut handshaker = Handshaker::from_store(credentials.clone(), &[b"h2"], ClientAuth::Optional);
        let (drain, rejections) = (self.drain.clone(), self.rejections.clone());
        accept::serve(listener, gate, self.drain.clone(), grpc::LINGER, move |tcp, peer, ticket| {
            let shaken = handshaker.shake(tcp, peer.remote());
            let (served, drain, rejections) = (served.clone(), drain.clone(), rejections.clone());
            let (trust_domain, credentials) = (trust_domain.clone(), credentials.clone());
            let leavers = leavers.clone();
            async move {
                let (io, info) = match shaken.await {
                    Ok(shaken) => shaken,
                    Err(refused) => return rejections.handshake(&refused),
                };
                let terms = match &info.identity {
                    None => Terms::STRANGER,
                    Some(identity) if identity.trust_domain() != trust_domain => Terms::FOREIGNER,
                    Some(identity) if !ticket.promote_as(identity) => {
                        let reason =
                            "there are as many connections as there may be, in all or of this identity";
                        return rejections.note(
                            "xds",
                            &info.remote.ip().to_string(),
                            &format!("{identity}: {reason}"),
                        );
                    }
                    Some(_) => Terms::MEMBER,
                };
                let remote = info.remote;
                // Another replica asks and goes; where it should be is not the question.
                let own = control_plane_id(&trust_domain).ok();
                let may_leave = info
                    .identity
                    .as_ref()
                    .is_some_and(|one| one.trust_domain() == trust_domain && own.as_ref() != Some(one));
                let shown = io.get_ref().1.peer_certificates().unwrap_or_default();
                let shown = shown.iter().cloned().map(CertificateDer::into_owned).collect();
                tokio::select! {
                    () = Box::pin(grpc::connection(io, info, terms, served, drain)) => {}
                    () = leavers.leaves(), if may_leave => {
                        tracing::debug!(%remote, "let go, to come in again where there is more room");
                    }
                    problem = distrusted(credentials, shown) => {
                        tracing::warn!(%remote, reason = %problem, "connection ended");
                    }
                }
            }
        })
    }

    /// gRPC without TLS: nobody is anybody.
    fn plain(
        &self,
        listener: TcpListener,
        gate: Gate,
        terms: Terms,
        served: Served,
    ) -> impl Future<Output = ()> + Send + use<> {
        let drain = self.drain.clone();
        accept::serve(listener, gate, self.drain.clone(), grpc::LINGER, move |tcp, peer, ticket| {
            let (served, drain) = (served.clone().promoting(ticket), drain.clone());
            async move {
                let _ = tcp.set_nodelay(true);
                let info = PeerInfo { identity: None, remote: peer.remote(), not_after: None };
                Box::pin(grpc::connection(tcp, info, terms, served, drain)).await;
            }
        })
    }

    /// HTTP over TLS: the management API, and the injector.
    fn management(
        &self,
        listener: TcpListener,
        gate: Gate,
        credentials: CredentialStore,
        router: axum::Router,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut handshaker = Handshaker::from_store(credentials, &[b"http/1.1"], ClientAuth::Optional);
        let (drain, rejections) = (self.drain.clone(), self.rejections.clone());
        accept::serve(listener, gate, self.drain.clone(), http::LINGER, move |tcp, peer, ticket| {
            let shaken = handshaker.shake(tcp, peer.remote());
            let (router, drain, rejections) = (router.clone(), drain.clone(), rejections.clone());
            async move {
                match shaken.await {
                    Ok((io, info)) => {
                        let PeerInfo { identity, not_after, remote } = info;
                        let channel = Channel::Tls { identity, not_after, remote };
                        Box::pin(http::connection(io, channel, ticket, router, drain)).await;
                    }
                    Err(refused) => rejections.handshake(&refused),
                }
            }
        })
    }

    /// HTTP without TLS: the unix socket, where the kernel says who calls, and the query API, which does not ask.
    fn http<L: Listen>(
        &self,
        listener: L,
        gate: Gate,
        router: axum::Router,
    ) -> impl Future<Output = ()> + Send + use<L>
    where
        L::Io: AsyncRead + AsyncWrite + Unpin,
    {
        let drain = self.drain.clone();
        accept::serve(listener, gate, self.drain.clone(), http::LINGER, move |io, peer, ticket| {
            let channel = match peer {
                Peer::Local { uid } => Channel::Socket { user: accept::user(uid) },
                Peer::Remote(remote) => Channel::Tls { identity: None, not_after: None, remote },
            };
            Box::pin(http::connection(io, channel, ticket, router.clone(), drain.clone()))
        })
    }
}

fn bind_optional(address: Option<SocketAddr>, what: &str) -> anyhow::Result<Option<TcpListener>> {
    match address {
        Some(address) => Ok(Some(bind(address, what)?)),
        None => Ok(None),
    }
}

/// As many as the process may have open.
fn descriptors() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The identity that the acceptor left; a certificate that has expired since the handshake does not count.
fn peer_of(extensions: &tonic::Extensions) -> (Option<SpiffeId>, Option<SocketAddr>) {
    let Some(peer) = extensions.get::<PeerInfo>() else { return (None, None) };
    let valid = peer.is_certificate_valid(SystemTime::now());
    (peer.identity.clone().filter(|_| valid), Some(peer.remote))
}
