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

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::balance;
use crate::conn::ConnInfo;
use crate::failure::{Failure, FailureKind, Retry, Side, Stage};
use crate::http::timeout::{Timer, after};
use crate::record::{Protocol, StreamRecord};
use crate::runtime::cluster::{ClusterHandle, PickContext};
use crate::runtime::endpoint::{EndpointState, InFlight, Outcome};
use crate::runtime::limits::ConnectionPermit;
use crate::runtime::snapshot::{TcpHandle, TerminalHandle};
use crate::stream::Stream;
use crate::stream::region::{READ_SIZE, Region, WRITE_SIZE};
use crate::upstream::connect::{Want, connect};
use crate::worker::Worker;

/// Endpoints tried in all.
const ATTEMPTS: usize = 3;

/// Metrics of a long tunnel are brought up to date this often, while bytes flow.
const PROGRESS: Duration = Duration::from_secs(5);

/// A bulk transfer earns reads of this size.
const BULK: usize = 64 * 1024;

/// A connection to an endpoint, with what it holds.
pub struct Upstream {
    pub stream: Stream,
    cluster: Arc<ClusterHandle>,
    endpoint: Arc<EndpointState>,
    local: SocketAddr,
    _in_flight: InFlight,
    _permit: Option<ConnectionPermit>,
}

/// Serves a connection to its end. `early`: the upstream was dialled while the first byte was waited for.
pub async fn serve(worker: Rc<Worker>, info: Rc<ConnInfo>, mut downstream: Stream, early: Option<Upstream>) {
    // Only chains that end so come here.
    let TerminalHandle::Tcp(tcp) = &info.chain.terminal else { return };
    let mut record = StreamRecord::open(&worker, &info, Protocol::Tcp, Instant::now());
    let mut upstream = match early {
        Some(upstream) => upstream,
        None => match Box::pin(dial(&worker, &info, tcp)).await {
            Ok(upstream) => upstream,
            Err(failure) => {
                tracing::debug!(%failure, source = %info.source, "a connection found no upstream");
                return record.fail(&failure);
            }
        },
    };
    record.cluster = Some(upstream.cluster.clone());
    record.endpoint = Some(upstream.endpoint.clone());
    record.upstream_local = Some(upstream.local);
    record.tcp_opened();
    let idle = tcp.config.idle_timeout;
    let copied = copy(&mut downstream, &mut upstream.stream, &mut record, idle).await;
    if let Err(failure) = copied {
        record.fail(&failure);
    }
}

/// Picks and connects; a failed connect is tried elsewhere, because the application never saw it.
///
/// # Errors
/// No cluster, nothing to pick, or nobody answered.
pub async fn dial(worker: &Rc<Worker>, info: &ConnInfo, tcp: &TcpHandle) -> Result<Upstream, Failure> {
    let cluster = tcp.pick(fastrand::u64(..)).map_err(|name| {
        let detail = format!("chain {} names {name}", info.chain.name);
        Failure::local(Stage::Route, FailureKind::NoCluster, detail)
    })?;
    let mut tried: SmallVec<[SocketAddr; 4]> = SmallVec::new();
    // Of a connection only its source can be hashed, whatever the rule names for requests.
    let hash = cluster.config.balance.hashes().then(|| balance::hash_of_ip(info.source.ip()));
    loop {
        let endpoint = cluster.pick(&PickContext { tried: &tried, original: info.original(), hash })?;
        let in_flight = endpoint.begin();
        tried.push(endpoint.address);
        let failure = match connect(worker, cluster, &endpoint, Want::Tcp).await {
            Ok(connected) => {
                endpoint.report(cluster, Outcome::Success);
                let (stream, local, _permit) = (connected.stream, connected.local, connected.permit);
                let cluster = cluster.clone();
                return Ok(Upstream { stream, cluster, endpoint, local, _in_flight: in_flight, _permit });
            }
            Err(failure) => failure,
        };
        let cells = worker.metrics.cluster(&cluster.name);
        match failure.kind {
            FailureKind::Overflow { .. } => cells.pending_overflow.inc(),
            _ => cells.connect_failures.inc(),
        }
        let theirs = failure.side == Side::Upstream;
        endpoint.report(cluster, if theirs { Outcome::GatewayError } else { Outcome::LocalFailure });
        if failure.retry != Retry::Safe || tried.len() == ATTEMPTS {
            return Err(failure);
        }
    }
}

/// One direction of a tunnel.
struct Half {
    region: Option<Region>,
    /// Bytes taken over.
    bytes: u64,
    /// The last read filled the buffer.
    bulk: bool,
    unflushed: bool,
    state: State,
}

#[derive(PartialEq)]
enum State {
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
        Self { region: None, bytes: 0, bulk: false, unflushed: false, state: State::Open }
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
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    let told =
                        if last { Pin::new(&mut *to).poll_shutdown(cx) } else { to.poll_half_close(cx) };
                    // A sink that is gone already need not be told.
                    let _ = ready!(told);
                    self.state = State::Ended;
                }
                State::Open => match self.poll_fill(cx, from) {
                    Poll::Ready(Ok(0)) => self.state = State::Ending,
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
        let room = region.room().len().min(BULK);
        let mut buf = ReadBuf::new(&mut region.room()[..room]);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let n = buf.filled().len();
        self.bulk = buf.remaining() <= BULK / 4;
        region.grew(n);
        self.region = (n > 0).then_some(region);
        Poll::Ready(Ok(n))
    }
}

/// Copies both ways until both have ended, one side breaks, or nothing moves for `idle` (zero: for ever).
async fn copy(
    downstream: &mut Stream,
    upstream: &mut Stream,
    record: &mut StreamRecord,
    idle: Duration,
) -> Result<(), Failure> {
    let (mut up, mut down) = (Half::new(), Half::new());
    let mut timer = Timer::default();
    let mut shown = Instant::now();
    let mut deadline = after(shown, idle);
    poll_fn(|cx| {
        let before = up.bytes + down.bytes;
        let sending = up.poll(cx, downstream, upstream, down.state == State::Ended);
        let receiving = down.poll(cx, upstream, downstream, up.state == State::Ended);
        (record.received, record.sent) = (up.bytes, down.bytes);
        if let Poll::Ready(Err(broken)) = sending {
            return Poll::Ready(Err(name(broken, true)));
        }
        if let Poll::Ready(Err(broken)) = receiving {
            return Poll::Ready(Err(name(broken, false)));
        }
        if up.state == State::Ended && down.state == State::Ended {
            return Poll::Ready(Ok(()));
        }
        if up.bytes + down.bytes != before {
            let now = Instant::now();
            deadline = after(now, idle);
            if now.saturating_duration_since(shown) > PROGRESS {
                shown = now;
                record.tcp_progress();
            }
        }
        timer.poll(cx, deadline).map(|()| {
            let detail = format!("no byte in either direction for {idle:?}");
            Err(Failure::local(Stage::Forward, FailureKind::IdleTimeout, detail))
        })
    })
    .await
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
