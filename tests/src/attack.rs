//! What an attack costs: memory of the processes under it, and what somebody notices who only asks meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::recorder::message;
use crate::wait::eventually;

/// From an honest client's answer to its next request, at least.
const PAUSE: Duration = Duration::from_millis(10);

/// No answer for so long is none.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an honest client waits for one answer at most, on two cores that others use, too.
pub const NOTICED: Duration = Duration::from_secs(5);

/// Requests before an attack: what only the first ones need is there when memory is measured.
const BEFORE: usize = 50;

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// What it has in memory.
    pub resident: u64,
    /// The most that it has had since [`Memory::begin`], or since its start where the kernel does not forget.
    pub peak: u64,
}

impl Memory {
    /// As it is now.
    ///
    /// # Panics
    /// When there is no such process any more.
    pub fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .unwrap_or_else(|error| panic!("process {pid} is not there: {error}"));
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let line = line.unwrap_or_else(|| panic!("process {pid} has ended: {status}"));
            line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
        };
        Self { resident: field("VmRSS:"), peak: field("VmHWM:") }
    }

    /// As it is now; the peak begins anew.
    pub fn begin(pid: u32) -> Self {
        // 5: the peak is set to what is resident now (proc_pid_clear_refs(5)). Where that is not built in, the old one is more.
        let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Self::of(pid)
    }
}

/// A process under attack, and what that may cost it.
#[derive(Debug, Clone, Copy)]
pub struct Victim {
    /// What it is.
    pub name: &'static str,
    /// Its id.
    pub pid: u32,
    /// MiB that it may grow by while the attack lasts.
    pub grows: u64,
    /// MiB that it may keep of that when the attack is over.
    pub keeps: u64,
}

/// An attack that is under way, and an honest client that asks meanwhile, over a connection of its own.
pub struct Attack {
    what: &'static str,
    victims: Vec<(Victim, Memory)>,
    answered: Arc<AtomicUsize>,
    honest: (oneshot::Sender<()>, JoinHandle<Seen>),
    /// How often the honest client may find its connection closed while it rests.
    pub reconnects: usize,
}

/// The time after an attack.
pub struct After(Vec<(Victim, Memory)>);

/// What an honest client has seen.
#[derive(Default)]
struct Seen {
    waits: Vec<Duration>,
    lost: Vec<String>,
    reconnects: usize,
}

/// An HTTP/1.1 client that keeps its connection.
struct Asker {
    to: SocketAddr,
    request: String,
    stream: Option<TcpStream>,
    seen: Seen,
}

impl Asker {
    fn new(to: SocketAddr, path: &str) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Self { to, request, stream: None, seen: Seen::default() }
    }

    async fn ask(&mut self) {
        let began = Instant::now();
        match timeout(PATIENCE, self.answer()).await {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200 ") => self.seen.waits.push(began.elapsed()),
            Ok(Ok(answer)) => self.seen.lost.push(answer),
            Ok(Err(error)) => self.seen.lost.push(error.to_string()),
            Err(_) => self.seen.lost.push(format!("no answer for {PATIENCE:?}")),
        }
    }

    async fn answer(&mut self) -> std::io::Result<String> {
        if let Some(stream) = self.stream.take() {
            if let Ok(Some(answer)) = self.exchange(stream).await {
                return Ok(answer);
            }
            // It was closed while it rested: every client makes another then.
            self.seen.reconnects += 1;
        }
        let stream = TcpStream::connect(self.to).await?;
        let answer = self.exchange(stream).await?;
        answer.ok_or_else(|| std::io::Error::other("a new connection was closed without an answer"))
    }

    async fn exchange(&mut self, mut stream: TcpStream) -> std::io::Result<Option<String>> {
        stream.write_all(self.request.as_bytes()).await?;
        let answer = message(&mut stream).await?;
        let stays = answer
            .as_ref()
            .is_some_and(|answer| !answer.to_ascii_lowercase().contains("\r\nconnection: close"));
        if stays {
            self.stream = Some(stream);
        }
        Ok(answer)
    }

    async fn run(mut self, answered: Arc<AtomicUsize>, mut stop: oneshot::Receiver<()>) -> Seen {
        let mut ticks = interval(PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = &mut stop => return self.seen,
                _ = ticks.tick() => {}
            }
            self.ask().await;
            answered.store(self.seen.waits.len(), Relaxed);
        }
    }
}

impl Attack {
    /// Looks at the victims' memory before it, and has somebody ask at `entry` from now on.
    pub async fn begin(
        what: &'static str,
        victims: &[Victim],
        entry: SocketAddr,
        path: &'static str,
    ) -> Self {
        let mut asker = Asker::new(entry, path);
        for _ in 0..BEFORE {
            asker.ask().await;
        }
        assert!(asker.seen.lost.is_empty(), "before the attack: {:?}", asker.seen.lost);
        asker.seen = Seen::default();
        let victims = victims.iter().map(|victim| (*victim, Memory::begin(victim.pid))).collect();
        let (stop, stopped) = oneshot::channel();
        let answered = Arc::new(AtomicUsize::new(0));
        let asking = tokio::spawn(asker.run(answered.clone(), stopped));
        Self { what, victims, answered, honest: (stop, asking), reconnects: 0 }
    }

    /// Goes on until the honest client has had so many more answers.
    pub async fn lasts(&self, answers: usize) {
        let wanted = self.answered.load(Relaxed) + answers;
        eventually(&format!("{}: an honest client has {answers} answers", self.what), || {
            let answered = self.answered.load(Relaxed);
            std::future::ready(if answered >= wanted {
                Ok(())
            } else {
                Err(format!("{} are missing", wanted - answered))
            })
        })
        .await;
    }

    /// Says what it has cost and holds its bounds; the attackers may go then.
    pub async fn end(self) -> After {
        let (stop, asking) = self.honest;
        drop(stop);
        let mut seen = asking.await.expect("the honest client does not panic");
        seen.waits.sort_unstable();
        let (worst, median) = (seen.waits.last().copied(), seen.waits.get(seen.waits.len() / 2).copied());
        let (worst, median) = (worst.unwrap_or(PATIENCE), median.unwrap_or(PATIENCE));
        let costs: Vec<(Victim, Memory, Memory)> =
            self.victims.iter().map(|(victim, before)| (*victim, *before, Memory::of(victim.pid))).collect();
        let memory: Vec<String> = costs
            .iter()
            .map(|(victim, before, now)| {
                let (before, peak) = (before.resident / 1024, now.peak / 1024);
                format!("{} {before} MiB before, {peak} at most (+{} allowed)", victim.name, victim.grows)
            })
            .collect();
        let (what, answers, reconnects) = (self.what, seen.waits.len(), seen.reconnects);
        eprintln!(
            "FIGURES {what}: {}; an honest client had {answers} answers, lost {}, reconnected {reconnects} times, \
             waited {median:.1?} as a rule and {worst:.1?} at most",
            memory.join(", "),
            seen.lost.len(),
        );
        assert!(seen.lost.is_empty(), "{what}: an honest client lost {:?}", seen.lost);
        assert!(reconnects <= self.reconnects, "{what}: its connection was closed {reconnects} times");
        assert!(worst <= NOTICED, "{what}: an honest client waited {worst:?}");
        for (victim, before, now) in costs {
            let most = before.resident + victim.grows * 1024;
            assert!(now.peak <= most, "{what}: {} has had {} KiB of {most}", victim.name, now.peak);
        }
        After(self.victims)
    }
}

impl After {
    /// Waits until what was freed has gone back, but for what each may keep.
    pub async fn calm(self) {
        for (victim, before) in self.0 {
            let most = before.resident + victim.keeps * 1024;
            let now = eventually(&format!("{} gives memory back", victim.name), || {
                let now = Memory::of(victim.pid).resident;
                std::future::ready(if now <= most { Ok(now) } else { Err(format!("{now} KiB of {most}")) })
            })
            .await;
            let (before, now, keeps) = (before.resident / 1024, now / 1024, victim.keeps);
            eprintln!(
                "FIGURES afterwards: {} {before} MiB before, {now} now (+{keeps} allowed)",
                victim.name
            );
        }
    }
}
