//! Attacks on what many share, each with its figure: memory of the sidecars under it, and what an honest client notices meanwhile.
//!
//! The bounds are the documented limits (docs/security.md) and room for what nobody counts: code that runs for the first time,
//! buffers of sockets and of TLS, the allocator's own. The binary under test has the system's allocator (glibc), which gives back
//! what stands at an end of an arena and keeps what lies between things that live on, so a part of each peak may stay.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use outrigger_control::instance::Protocol;
use outrigger_tests::app::get;
use outrigger_tests::attack::{Attack, Victim};
use outrigger_tests::frames::{Frames, REFERENCE, block, entry};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::wait::eventually;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::BINARY;
use crate::thin_thread::web;

mod peers;
mod traces;

/// Interim responses to each request that asks for them without end.
const ENDLESS: u32 = 1000;

/// An application that speaks HTTP/2 and has no limits of its own but the library's.
struct App {
    /// Requests that came, but for those of honest clients.
    begun: AtomicUsize,
    /// Streams that were reset while they had interim responses.
    cut: AtomicUsize,
    /// Lets requests for `/later` be answered.
    open: Semaphore,
}

impl App {
    async fn serve(listen: SocketAddr) -> Arc<Self> {
        let app =
            Arc::new(Self { begun: AtomicUsize::new(0), cut: AtomicUsize::new(0), open: Semaphore::new(0) });
        let (listener, shared) = (TcpListener::bind(listen).await.unwrap(), app.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let app = shared.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(came) = connection.accept().await {
                        match came {
                            Ok((request, respond)) => {
                                drop(tokio::spawn(app.clone().answer(request, respond)))
                            }
                            Err(error) => return eprintln!("a connection of the application ended: {error}"),
                        }
                    }
                });
            }
        });
        app
    }

    async fn answer(self: Arc<Self>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let path = request.uri().path().to_owned();
        if path != "/" {
            self.begun.fetch_add(1, SeqCst);
        }
        match path.as_str() {
            "/held" => drop(poll_fn(|cx| respond.poll_reset(cx)).await),
            "/large" => large(respond).await,
            "/endless" => {
                let reset = endless(respond).await;
                self.cut.fetch_add(usize::from(reset), SeqCst);
            }
            "/later" => {
                self.open.acquire().await.unwrap().forget();
                small(respond);
            }
            _ => small(respond),
        }
        // Dropped earlier, a body that is still sent would reset its stream.
        drop(request);
    }

    async fn until(&self, begun: usize) {
        eventually(&format!("{begun} requests reach the application"), || {
            let now = self.begun.load(SeqCst);
            std::future::ready(if now >= begun { Ok(()) } else { Err(format!("{now} have")) })
        })
        .await;
    }
}

fn small(mut respond: SendResponse<Bytes>) {
    let head = Response::builder().header("content-length", "1").body(()).unwrap();
    if let Ok(mut stream) = respond.send_response(head, false) {
        let _ = stream.send_data(Bytes::from_static(b"x"), true);
    }
}

/// Four MiB, as the window allows.
async fn large(mut respond: SendResponse<Bytes>) {
    let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
    let mut left: usize = 4 << 20;
    while left > 0 {
        stream.reserve_capacity(left.min(16 * 1024));
        let Some(Ok(granted)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        left -= granted.min(left);
        if stream.send_data(Bytes::from(vec![b'x'; granted]), left == 0).is_err() {
            return;
        }
    }
}

/// Interim responses of 200 bytes and never an answer; whether that was cut off.
async fn endless(mut respond: SendResponse<Bytes>) -> bool {
    for n in 0..ENDLESS {
        let early = Response::builder().status(103).header("x-n", format!("{n:0200}")).body(()).unwrap();
        let reset = respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready();
        if reset || respond.send_informational(early).is_err() {
            return true;
        }
        if n % 8 == 0 {
            tokio::task::yield_now().await;
        }
    }
    timeout(Duration::from_secs(30), poll_fn(|cx| respond.poll_reset(cx))).await.is_ok()
}

/// Two sidecars, and an application behind the one.
struct Stage {
    mesh: Mesh,
    web: Sidecar,
    catalog: Sidecar,
    app: Arc<App>,
}

impl Stage {
    /// With this limit of memory for each sidecar.
    async fn with(memory: &str) -> Self {
        let mut mesh = Mesh::start_with(BINARY, json!({ "sampling": 0.0 })).await;
        mesh.bootstrap = json!({ "memory_limit": memory });
        let spec =
            Spec { service: "catalog", version: "v1", host: 11, protocol: Protocol::Http2, calls: &[] };
        let catalog = mesh.workload(&spec).await;
        let web = mesh.workload(&web(&["catalog:8080"])).await;
        let app = App::serve(catalog.app).await;
        Self { mesh, web, catalog, app }
    }

    /// Where the application of `web` calls `catalog`.
    fn entry(&self) -> SocketAddr {
        self.web.outbound[0]
    }

    fn both(&self, grows: u64, keeps: u64) -> [Victim; 2] {
        [victim("web", &self.web, grows, keeps), self.catalog(grows, keeps)]
    }

    fn control(&self, grows: u64, keeps: u64) -> Victim {
        let page = (self.mesh.address(1, 15014), "/metrics");
        Victim { name: "control plane", pid: self.mesh.control_id().unwrap(), grows, keeps, page }
    }

    fn catalog(&self, grows: u64, keeps: u64) -> Victim {
        victim("catalog", &self.catalog, grows, keeps)
    }
}

fn victim(name: &'static str, sidecar: &Sidecar, grows: u64, keeps: u64) -> Victim {
    let page = (sidecar.admin, "/stats/prometheus");
    Victim { name, pid: sidecar.id().unwrap(), grows, keeps, page }
}

/// What is answered in that time: what nobody answers must not keep a test for ever.
async fn asked(to: SocketAddr, path: &'static str, patience: Duration) -> (u16, String) {
    let answer = timeout(patience, get(to, path, "")).await;
    answer.unwrap_or_else(|_| panic!("{path} was not answered within {patience:?}")).unwrap()
}

/// What the sidecar says that it has refused and closed for want of memory.
pub(crate) async fn shed(sidecar: &Sidecar) -> f64 {
    let page = sidecar.page("/stats/prometheus").await;
    let lines = page.lines().filter(|line| line.starts_with("outrigger_shed_"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// A window of 256 KiB for each stream, once as it came and once on its way: 32 MiB for 64 of them. And 32 more.
#[tokio::test(flavor = "multi_thread")]
async fn responses_that_nobody_reads_cost_their_windows_and_nobody_elses_time() {
    let stage = Stage::with("512Mi").await;
    let attack =
        Attack::begin("64 responses that nobody reads", &stage.both(64, 32), stage.entry(), "/").await;
    let mut greedy = Frames::connect(stage.entry(), true).await.unwrap();
    for _ in 0..64 {
        greedy.request(&block(false, "/large"), true).await.unwrap();
    }
    stage.app.until(64).await;
    attack.lasts(100).await;
    let after = attack.end().await;
    drop(greedy);
    after.calm().await;
}

/// Half of the limit is handed out, 80 MiB, and 40 more are for what is not counted. 3,500 such heads are 200.
#[tokio::test(flavor = "multi_thread")]
async fn references_to_the_header_table_cost_what_is_handed_out() {
    let stage = Stage::with("160Mi").await;
    let victims = [stage.catalog(120, 60)];
    let attack = Attack::begin("3500 heads of 58 KiB by reference", &victims, stage.entry(), "/").await;
    let to = stage.catalog.inbound;
    let crowd: Vec<_> = (0..5)
        .map(|_| {
            tokio::spawn(async move {
                let mut frames = Frames::connect(to, true).await.unwrap();
                let head = block(false, "/held");
                for n in 0..700 {
                    // 15 fields of 3.9 kB each, which is what the header table has room for.
                    let fields = if n == 0 {
                        [entry(3900), vec![REFERENCE; 14]].concat()
                    } else {
                        vec![REFERENCE; 15]
                    };
                    if frames.request(&[&head[..], &fields].concat(), true).await.is_err() {
                        break;
                    }
                }
                frames
            })
        })
        .collect();
    held(stage, attack, crowd).await;
}

/// The same limit, for streams whose bodies never come.
#[tokio::test(flavor = "multi_thread")]
async fn open_streams_cost_what_is_handed_out() {
    let stage = Stage::with("160Mi").await;
    let victims = [stage.catalog(120, 60)];
    let attack = Attack::begin("8000 open streams of 8 connections", &victims, stage.entry(), "/").await;
    let to = stage.catalog.inbound;
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                let mut frames = Frames::connect(to, true).await.unwrap();
                for _ in 0..1000 {
                    if frames.request(&block(true, "/held"), false).await.is_err() {
                        break;
                    }
                }
                frames
            })
        })
        .collect();
    held(stage, attack, crowd).await;
}

/// What strangers hold of the memory that is handed out is held, and the rest refused.
async fn held(stage: Stage, mut attack: Attack, mut crowd: Vec<JoinHandle<Frames>>) {
    attack.pages.push(("web", (stage.web.admin, "/stats/prometheus")));
    stage.app.until(100).await;
    // Who is not read any more waits in the middle of a request, so what counts is what the sidecar says.
    eventually("the limit is reached", || async {
        let shed = shed(&stage.catalog).await;
        if shed > 0.0 { Ok(()) } else { Err(format!("{shed} requests and connections were shed")) }
    })
    .await;
    let mut open = Vec::new();
    let until = Instant::now() + Duration::from_secs(5);
    for one in &mut crowd {
        match timeout_at(until, &mut *one).await {
            Ok(frames) => open.push(frames.unwrap()),
            Err(_) => one.abort(),
        }
    }
    attack.lasts(100).await;
    let after = attack.end().await;
    drop(open);
    after.calm().await;
}

/// Of each request no more than 16 go on, a few KiB; nothing is counted but what runs for the first time.
#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_without_end_are_cut_off_where_nobody_reads() {
    let stage = Stage::with("512Mi").await;
    let what = "100 times 1000 interim responses that nobody reads";
    let attack = Attack::begin(what, &stage.both(24, 24), stage.entry(), "/").await;
    let mut crowd = Vec::new();
    for _ in 0..10 {
        let mut frames = Frames::connect(stage.entry(), false).await.unwrap();
        for _ in 0..10 {
            frames.request(&block(false, "/endless"), true).await.unwrap();
        }
        crowd.push(frames);
    }
    eventually("all are cut off", || {
        let cut = stage.app.cut.load(SeqCst);
        std::future::ready(if cut >= 100 { Ok(()) } else { Err(format!("{cut} are")) })
    })
    .await;
    attack.lasts(50).await;
    let after = attack.end().await;
    drop(crowd);
    after.calm().await;
}

/// 200 streams at a time, 16 KiB each, and as much again for those whose resets wait. And 40 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn one_clients_cancellations_cost_nobody_a_request() {
    let stage = Stage::with("512Mi").await;
    // They are answered when the attack is over.
    let patience = Duration::from_secs(180);
    let others: Vec<_> = (0..20).map(|_| tokio::spawn(asked(stage.entry(), "/later", patience))).collect();
    stage.app.until(20).await;
    let attack =
        Attack::begin("3000 cancellations by one client", &stage.both(48, 32), stage.entry(), "/").await;
    let mut hasty = Frames::connect(stage.entry(), true).await.unwrap();
    for _ in 0..15 {
        let before = stage.app.begun.load(SeqCst);
        let mut streams = Vec::new();
        for _ in 0..200 {
            streams.push(hasty.request(&block(false, "/held"), true).await.unwrap());
        }
        // Cancelled are requests that the application has, not only the sidecar.
        stage.app.until(before + 1).await;
        for stream in streams {
            hasty.cancel(stream).await.unwrap();
        }
    }
    attack.lasts(50).await;
    let after = attack.end().await;
    stage.app.open.add_permits(others.len());
    for other in others {
        let (status, text) = other.await.unwrap();
        assert_eq!(status, 200, "{text}");
    }
    drop(hasty);
    after.calm().await;
}
