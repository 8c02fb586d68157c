//! Opaque connections: pick, connect (again elsewhere if that fails), copy both ways with half-close.
//!
//! Bytes are not looked at. A buffer is borrowed only while bytes are in flight, so an idle tunnel owns none.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use outrigger_model::cluster::NOWHERE;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::balance;
use crate::downstream::ConnInfo;
use crate::failure::{Failure, FailureKind, Retry, Side, Stage};
use crate::http::timeout::{Timer, after, earlier};
use crate::memory::{Account, Told};
use crate::proof::Proof;
use crate::protocol::Protocol;
use crate::record::StreamRecord;
use crate::runtime::breaker::Pass;
use crate::runtime::build::PASSTHROUGH;
use crate::runtime::cluster::{ClusterHandle, PickContext};
use crate::runtime::endpoint::{EndpointState, InFlight, Outcome};
use crate::runtime::snapshot::{TcpHandle, TerminalHandle};
use crate::stream::region::{READ_SIZE, Region, WRITE_SIZE};
use crate::stream::{Stream, Unanswered};
use crate::upstream::connect::{Connected, Held, connect};
use crate::worker::Worker;

/// Endpoints tried in all.
const ATTEMPTS: usize = 3;

/// Metrics of a long tunnel are brought up to date this often, while bytes flow.
const PROGRESS: Duration = Duration::from_secs(5);

/// A bulk transfer earns reads of this size: what is written then, records' overhead included, is one segment for the kernel
/// (64 KiB at most), without a small one behind it.
const BULK: usize = 60 * 1024;

/// A connection to an endpoint, with what it holds.
pub struct Upstream {
    pub stream: Stream,
    cluster: Arc<ClusterHandle>,
    endpoint: Arc<EndpointState>,
    local: SocketAddr,
    proof: Option<Rc<Proof>>,
    _in_flight: InFlight,
    _permit: Held,
}

/// A connection that stands and is not used yet: it says something only then.
pub struct Dialled {
    pub upstream: Upstream,
    pub pass: Option<Pass>,
}

impl Dialled {
    /// Bytes go over it. One that was dialled early for what turned out to be a request is another's matter.
    fn used(self) -> Upstream {
        let Self { upstream, pass } = self;
        upstream.cluster.report(&upstream.endpoint, Outcome::Success, pass);
        upstream
    }
}

/// Serves a connection to its end. `early`: the upstream was dialled while the first byte was waited for.
pub fn serve(
    worker: Rc<Worker>,
    info: Rc<ConnInfo>,
    downstream: Unanswered,
    early: Option<Dialled>,
) -> impl Future<Output = ()> {
    // As in `conn::serve`: only the tunnel stays.
    let opening = Box::pin(Tunnel::open(worker, info, downstream, early));
    async move {
        if let Some(mut tunnel) = opening.await {
            let copied = poll_fn(|cx| tunnel.poll_copy(cx)).await;
            if let Err(failure) = copied {
                tunnel.record.fail(&failure);
            }
        }
    }
}

/// Both ends of a connection, and what is known of it.
struct Tunnel {
    record: StreamRecord,
    downstream: Stream,
    upstream: Upstream,
    up: Half,
    down: Half,
    /// Once bytes have waited that nobody took.
    waits: Option<Box<Waits>>,
    timer: Timer,
    deadline: Option<Instant>,
    /// When metrics were brought up to date.
    shown: Instant,
}

/// Picks and connects; a failed connect is tried elsewhere, because the application never saw it.
///
/// # Errors
/// No cluster, nothing to pick, or nobody answered.
pub async fn dial(worker: &Rc<Worker>, info: &ConnInfo, tcp: &TcpHandle) -> Result<Dialled, Failure> {
    let cluster = tcp.pick(fastrand::u64(..)).map_err(|name| {
        let chain = &info.chain.name;
        let detail = match name {
            NOWHERE => format!("chain {chain} has no backend here that is there"),
            name => format!("chain {chain} names {name}"),
        };
        let origin = info.chain.origin.clone();
        Failure::local(Stage::Route, FailureKind::NoCluster(503), detail).because_of(origin)
    })?;
    let mut tried: SmallVec<[SocketAddr; 4]> = SmallVec::new();
    // Of a connection only its source can be hashed, whatever the rule names for requests.
    let hash = cluster.config.balance.hashes().then(|| balance::hash_of_ip(info.source.ip()));
    loop {
        let pass = cluster.admit()?;
        let endpoint = cluster.pick(&PickContext { tried: &tried, original: info.original(), hash })?;
        if cluster.config.name == PASSTHROUGH {
            worker.process.loops.one_more(endpoint.in_flight())?;
        }
        let in_flight = endpoint.begin();
        tried.push(endpoint.address);
        let failure = match connect(&worker.way, cluster, &endpoint, (Protocol::Tcp, None)).await {
            Ok(connected) => {
                let Connected { stream, local, proof, permit: _permit, .. } = connected;
                let (cluster, _in_flight) = (cluster.clone(), in_flight);
                let upstream = Upstream { stream, cluster, endpoint, local, proof, _in_flight, _permit };
                return Ok(Dialled { upstream, pass });
            }
            Err(failure) => failure,
        };
        let cells = worker.metrics.cluster(&cluster.name);
        match failure.kind {
            FailureKind::Overflow { .. } => cells.pending_overflow.inc(),
            _ => cells.connect_failures.inc(),
        }
        let outcome = match failure.kind {
            FailureKind::ConnectRefused => Outcome::Refused,
            _ if failure.side == Side::Upstream => Outcome::Unconnected,
            _ => Outcome::LocalFailure,
        };
        cluster.report(&endpoint, outcome, pass);
        if failure.retry != Retry::Safe || tried.len() == ATTEMPTS {
            return Err(failure);
        }
    }
}

/// What is waited for in a client's name, unless it goes meanwhile: it would keep a place that others wait for, and be dialled for in vain.
///
/// # Errors
/// The client is gone; else as what is waited for.
pub async fn while_there<T>(
    client: &Unanswered,
    waiting: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        come = waiting => come,
        () = client.gone() => {
            let detail = "the client went away while a server was dialled for it";
            Err(Failure::downstream(Stage::Connect, FailureKind::DownstreamClosed, detail))
        }
    }
}

/// What did not end on both sides broke off, for whatever reason, and whoever is still there must see that: a FIN, which
/// says that all was sent, would make a whole answer of half of one.
impl Drop for Tunnel {
    fn drop(&mut self) {
        if self.up.state != Progress::Ended || self.down.state != Progress::Ended {
            self.downstream.reset();
            self.upstream.stream.reset();
        }
    }
}

/// One direction of a tunnel.
struct Half {
    region: Option<Region>,
    /// Bytes taken over.
    bytes: u64,
    /// The last read brought much.
    bulk: bool,
    unflushed: bool,
    state: Progress,
}

#[derive(PartialEq)]
enum Progress {
    Open,
    /// The source has ended; the sink is to be told.
    Ending,
    Ended,
}

/// Which side broke.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Half {
    fn new() -> Self {
        Self { region: None, bytes: 0, bulk: false, unflushed: false, state: Progress::Open }
    }

    /// Moves bytes until neither side goes on; ready when this direction has ended. `last`: the other one has.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        last: bool,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while let Some(region) = &mut self.region {
                match Pin::new(&mut *to).poll_write(cx, region.filled()) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(Broken::Sink(io::ErrorKind::WriteZero.into())));
                    }
                    Poll::Ready(Ok(n)) => {
                        if region.consume(n) {
                            self.region = None;
                        }
                        self.unflushed = true;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Sink(error))),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match self.state {
                Progress::Ended => return Poll::Ready(Ok(())),
                Progress::Ending => {
                    let told =
                        if last { Pin::new(&mut *to).poll_shutdown(cx) } else { to.poll_half_close(cx) };
                    // A sink that is gone already need not be told.
                    let _ = ready!(told);
                    self.state = Progress::Ended;
                }
                Progress::Open => match self.poll_fill(cx, from) {
                    Poll::Ready(Ok(0)) => self.state = Progress::Ending,
                    Poll::Ready(Ok(n)) => self.bytes += n as u64,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Source(error))),
                    Poll::Pending if self.unflushed => match Pin::new(&mut *to).poll_flush(cx) {
                        Poll::Ready(Ok(())) => {
                            self.unflushed = false;
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Sink(error))),
                        Poll::Pending => return Poll::Pending,
                    },
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut Stream) -> Poll<io::Result<usize>> {
        if from.poll_news(cx).is_pending() {
            self.bulk = false;
            return Poll::Pending;
        }
        let mut region = Region::borrow(if self.bulk { WRITE_SIZE } else { READ_SIZE });
        // Opened where it is to stay, a record ends with its type.
        let room = region.room().len().min(BULK + usize::from(from.is_tls()));
        let mut buf = ReadBuf::new(&mut region.room()[..room]);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let n = buf.filled().len();
        self.bulk = n >= READ_SIZE / 2;
        region.grew(n);
        self.region = (n > 0).then_some(region);
        Poll::Ready(Ok(n))
    }
}

impl Tunnel {
    async fn open(
        worker: Rc<Worker>,
        info: Rc<ConnInfo>,
        downstream: Unanswered,
        early: Option<Dialled>,
    ) -> Option<Box<Self>> {
        // Only chains that end so come here.
        let TerminalHandle::Tcp(tcp) = &info.chain.terminal else { return None };
        let mut record = StreamRecord::open(&worker, &info, Protocol::Tcp, Instant::now());
        let dialled = match early {
            Some(dialled) => Ok(dialled),
            None => Box::pin(while_there(&downstream, dial(&worker, &info, tcp))).await,
        };
        let upstream = match dialled {
            Ok(dialled) => dialled.used(),
            Err(failure) => {
                tracing::debug!(%failure, source = %info.source, "a connection found no upstream");
                record.fail(&failure);
                return None;
            }
        };
        if let Some(failure) = note_reached(&worker, &info, &upstream) {
            record.fail(&failure);
            return None;
        }
        record.cluster = Some(upstream.cluster.clone());
        record.endpoint = Some(upstream.endpoint.clone());
        record.upstream_local = Some(upstream.local);
        record.tcp_opened();
        let shown = Instant::now();
        let (up, down, timer) = (Half::new(), Half::new(), Timer::default());
        let deadline = earlier(after(shown, tcp.config.idle_timeout), ends(tcp, &info));
        let downstream = downstream.answer();
        Some(Box::new(Self { record, downstream, upstream, up, down, waits: None, timer, deadline, shown }))
    }

    /// Copies both ways until both have ended, one side breaks, or nothing moves for too long.
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let Self { record, downstream, up, down, .. } = self;
        let upstream = &mut self.upstream.stream;
        let before = up.bytes + down.bytes;
        let sending = up.poll(cx, downstream, upstream, down.state == Progress::Ended);
        let receiving = down.poll(cx, upstream, downstream, up.state == Progress::Ended);
        (record.received, record.sent) = (up.bytes, down.bytes);
        if let Poll::Ready(Err(broken)) = sending {
            return Poll::Ready(Err(name(broken, true)));
        }
        if let Poll::Ready(Err(broken)) = receiving {
            if self.upstream.is_careless(&broken) {
                (up.state, down.state) = (Progress::Ended, Progress::Ended);
            }
            return Poll::Ready(Err(name(broken, false)));
        }
        if up.state == Progress::Ended && down.state == Progress::Ended {
            return Poll::Ready(Ok(()));
        }
        // Whatever is behind a buffer waits there.
        let stuck = usize::from(up.region.is_some()) + usize::from(down.region.is_some());
        if (stuck > 0 || self.waits.is_some())
            && let Some(failure) = self.wait(cx, stuck)
        {
            return Poll::Ready(Err(failure));
        }
        let (up, down) = (&self.up, &self.down);
        if up.bytes + down.bytes != before {
            let now = Instant::now();
            let Times { idle, ends } = self.times();
            self.deadline = earlier(after(now, idle), ends);
            if now.saturating_duration_since(self.shown) > PROGRESS {
                self.shown = now;
                self.record.tcp_progress();
            }
        }
        self.timer.poll(cx, self.deadline).map(|()| {
            let Times { idle, ends } = self.times();
            if ends.is_some_and(|ends| ends <= Instant::now()) {
                return Err(outlived(Stage::Forward));
            }
            let detail = format!("no byte in either direction for {idle:?}");
            Err(Failure::local(Stage::Forward, FailureKind::IdleTimeout(408), detail))
        })
    }
}

/// When a connection ends, whatever is on its way.
fn ends(tcp: &TcpHandle, info: &ConnInfo) -> Option<Instant> {
    tcp.config.max_duration.map(|longest| info.started + longest)
}

/// It is as old as one may be.
pub fn outlived(stage: Stage) -> Failure {
    let detail = "the connection has lasted as long as its listener lets it";
    Failure::local(stage, FailureKind::StreamDuration(408), detail)
}

/// How long a tunnel may go still (zero: for ever), and when it ends all the same.
struct Times {
    idle: Duration,
    ends: Option<Instant>,
}

/// What a tunnel holds of the worker's memory, in so many directions.
struct Waits {
    account: Account,
    stuck: usize,
}

impl Tunnel {
    fn times(&self) -> Times {
        let info = &self.record.conn;
        match &info.chain.terminal {
            TerminalHandle::Tcp(tcp) => Times { idle: tcp.config.idle_timeout, ends: ends(tcp, info) },
            // Only chains that end so come here.
            TerminalHandle::Http(_) => Times { idle: Duration::ZERO, ends: None },
        }
    }

    /// So many directions have bytes that nobody takes. Where memory ends, those go that have most of such.
    fn wait(&mut self, cx: &Context<'_>, stuck: usize) -> Option<Failure> {
        let worker = self.record.worker();
        let waits = self.waits.get_or_insert_with(|| {
            let account = worker.ledger.open(worker.alarm.place(&worker.process.drain));
            Box::new(Waits { account, stuck: 0 })
        });
        if stuck != waits.stuck {
            waits.stuck = stuck;
            waits.account.park_alone(stuck);
            waits.account.place().register(cx);
        }
        (waits.account.told() == Some(Told::Greedy)).then(|| {
            let detail = "memory has come near its limit, and this tunnel holds bytes that nobody takes; see memory_limit";
            Failure::local(Stage::Forward, FailureKind::Overload, detail)
        })
    }
}

/// From here on the tunnel ends when whom it reached is revoked. That may have happened since the handshake began.
fn note_reached(worker: &Worker, info: &ConnInfo, upstream: &Upstream) -> Option<Failure> {
    let proof = upstream.proof.as_ref()?;
    let _ = info.reached.set(proof.clone());
    proof.stands(&worker.process.credentials).err()
}

impl Upstream {
    /// Outside the mesh many servers end TLS without close_notify; a reset would take from the client what it has not read.
    fn is_careless(&self, broken: &Broken) -> bool {
        matches!(broken, Broken::Source(error) if error.kind() == io::ErrorKind::UnexpectedEof)
            && self.cluster.outside.is_some()
    }
}

/// From an error of one direction to the side that it is about.
fn name(broken: Broken, towards_upstream: bool) -> Failure {
    let (error, upstream) = match broken {
        Broken::Source(error) => (error, !towards_upstream),
        Broken::Sink(error) => (error, towards_upstream),
    };
    if upstream {
        let kind = FailureKind::UpstreamClosed;
        Failure::upstream(Stage::Forward, kind, Retry::Never, error.to_string())
    } else {
        Failure::downstream(Stage::Forward, FailureKind::DownstreamClosed, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Per-connection memory is a feature: this is what stays of an idle tunnel, beside its streams.
    #[test]
    fn a_tunnel_stays_small() {
        assert!(size_of::<Tunnel>() <= 576, "a tunnel has {} bytes", size_of::<Tunnel>());
    }
}
