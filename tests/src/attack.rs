//! What an attack costs: memory of the processes under it, and what somebody notices who only asks meanwhile.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::app::get;
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

/// Lines of a page of metrics that tell what was given up, and for whom there was room.
const SHOWN: [&str; 5] = [
    "outrigger_shed",
    "outrigger_connections",
    "outrigger_control_plane_connected",
    "outrigger_worker",
    "process_",
];

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
    /// Where its metrics are.
    pub page: Place,
}

/// A page.
pub type Place = (SocketAddr, &'static str);

/// By whose it is.
pub type Page = (&'static str, Place);

/// An attack that is under way, and an honest client that asks meanwhile, over a connection of its own.
pub struct Attack {
    what: &'static str,
    victims: Vec<(Victim, Memory)>,
    seen: watch::Receiver<Seen>,
    honest: (oneshot::Sender<()>, JoinHandle<()>),
    /// How often the honest client may find its connection closed while it rests.
    pub reconnects: usize,
    /// What is looked at when something is wrong: the victims' metrics, and those of others on the way.
    pub pages: Vec<Page>,
}

/// The time after an attack.
pub struct After(Vec<(Victim, Memory)>);

/// What an honest client has seen.
struct Seen {
    since: Instant,
    /// How long each answer took, and when it was asked for.
    waits: Vec<(Duration, Duration)>,
    lost: Vec<String>,
    /// When its connection was found to be closed, and how.
    closed: Vec<String>,
}

impl Seen {
    fn from_now_on() -> Self {
        Self { since: Instant::now(), waits: Vec::new(), lost: Vec::new(), closed: Vec::new() }
    }

    /// The longest wait, and when it began.
    fn worst(&self) -> (Duration, Duration) {
        self.waits.iter().max().copied().unwrap_or((PATIENCE, Duration::ZERO))
    }

    fn median(&self) -> Duration {
        let mut waits: Vec<Duration> = self.waits.iter().map(|(wait, _)| *wait).collect();
        waits.sort_unstable();
        waits.get(waits.len() / 2).copied().unwrap_or(PATIENCE)
    }
}

impl Display for Seen {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let ((worst, at), median) = (self.worst(), self.median());
        let Self { waits, lost, closed, .. } = self;
        write!(
            to,
            "an honest client had {} answers, lost {}, reconnected {} times, waited {median:.1?} as a rule and {worst:.1?} at most, \
             at {} of it",
            waits.len(),
            lost.len(),
            closed.len(),
            second(at),
        )?;
        for (word, all) in [("lost", lost), ("its connection", closed)] {
            all.iter().take(10).try_for_each(|one| write!(to, "; {word} {one}"))?;
        }
        Ok(())
    }
}

/// When something was, from the beginning of an attack.
fn second(at: Duration) -> String {
    format!("{:.1} s", at.as_secs_f64())
}

/// An HTTP/1.1 client that keeps its connection.
struct Asker {
    to: SocketAddr,
    request: String,
    stream: Option<TcpStream>,
    seen: watch::Sender<Seen>,
}

/// What came of a request.
enum Came {
    Answer(String),
    /// No byte of an answer: the connection was closed before, in this way.
    Closed(String),
}

impl Asker {
    fn new(to: SocketAddr, path: &str) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Self { to, request, stream: None, seen: watch::Sender::new(Seen::from_now_on()) }
    }

    async fn ask(&mut self) {
        let (began, since) = (Instant::now(), self.seen.borrow().since);
        let came = timeout(PATIENCE, self.answer()).await;
        let at = began.duration_since(since);
        let second = second(at);
        self.seen.send_modify(|seen| match came {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200 ") => seen.waits.push((began.elapsed(), at)),
            Ok(Ok(answer)) => seen.lost.push(format!("at {second}: {answer}")),
            Ok(Err(error)) => seen.lost.push(format!("at {second}: {error}")),
            Err(_) => seen.lost.push(format!("at {second}: no answer for {PATIENCE:?}")),
        });
    }

    async fn answer(&mut self) -> io::Result<String> {
        if let Some(stream) = self.stream.take() {
            match self.exchange(stream).await? {
                Came::Answer(answer) => return Ok(answer),
                // It was closed while it rested: every client makes another then.
                Came::Closed(how) => self.seen.send_modify(|seen| {
                    seen.closed.push(format!("at {}: {how}", second(seen.since.elapsed())));
                }),
            }
        }
        let stream = TcpStream::connect(self.to).await?;
        match self.exchange(stream).await? {
            Came::Answer(answer) => Ok(answer),
            Came::Closed(how) => Err(io::Error::other(format!("a new connection without an answer: {how}"))),
        }
    }

    async fn exchange(&mut self, mut stream: TcpStream) -> io::Result<Came> {
        if let Err(error) = stream.write_all(self.request.as_bytes()).await {
            return Ok(Came::Closed(error.to_string()));
        }
        match stream.peek(&mut [0; 1]).await {
            Ok(0) => return Ok(Came::Closed("closed".to_owned())),
            Ok(_) => {}
            Err(error) => return Ok(Came::Closed(error.to_string())),
        }
        let cut = |how: String| io::Error::other(format!("an answer was cut off: {how}"));
        let answer = message(&mut stream).await.map_err(|error| cut(error.to_string()))?;
        let answer = answer.ok_or_else(|| cut("closed".to_owned()))?;
        if !answer.to_ascii_lowercase().contains("\r\nconnection: close") {
            self.stream = Some(stream);
        }
        Ok(Came::Answer(answer))
    }

    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut ticks = interval(PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = &mut stop => return,
                _ = ticks.tick() => {}
            }
            self.ask().await;
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
        let seen = asker.seen.send_replace(Seen::from_now_on());
        assert!(seen.lost.is_empty(), "before the attack: {seen}");
        let before = victims.iter().map(|victim| (*victim, Memory::begin(victim.pid))).collect();
        let pages = victims.iter().map(|victim| (victim.name, victim.page)).collect();
        let (stop, stopped) = oneshot::channel();
        let seen = asker.seen.subscribe();
        let asking = tokio::spawn(asker.run(stopped));
        Self { what, victims: before, seen, honest: (stop, asking), reconnects: 0, pages }
    }

    /// Goes on until the honest client has had so many more answers, for as long as these may take when a few of them are slow. What it has
    /// lost ends that.
    pub async fn lasts(&self, answers: usize) {
        let mut seen = self.seen.clone();
        let wanted = seen.borrow().waits.len() + answers;
        let patience = PAUSE * u32::try_from(answers).expect("a few") + NOTICED * 24;
        let enough = seen.wait_for(|seen| seen.waits.len() >= wanted || !seen.lost.is_empty());
        let is_enough =
            timeout(patience, enough).await.is_ok_and(|seen| seen.is_ok_and(|seen| seen.lost.is_empty()));
        if !is_enough {
            let why = format!("the honest client has not had {answers} more answers within {patience:?}");
            fail(self.what, &self.seen, &self.pages, &why).await;
        }
    }

    /// Says what it has cost and holds its bounds; the attackers may go then.
    pub async fn end(self) -> After {
        let (stop, asking) = self.honest;
        drop(stop);
        asking.await.expect("the honest client does not panic");
        let costs: Vec<(Victim, Memory, Memory)> =
            self.victims.iter().map(|(victim, before)| (*victim, *before, Memory::of(victim.pid))).collect();
        let memory: Vec<String> = costs
            .iter()
            .map(|(victim, before, now)| {
                let (before, peak) = (before.resident / 1024, now.peak / 1024);
                format!("{} {before} MiB before, {peak} at most (+{} allowed)", victim.name, victim.grows)
            })
            .collect();
        eprintln!("FIGURES {}: {}; {}", self.what, memory.join(", "), *self.seen.borrow());
        let mut wrong = Vec::new();
        {
            let seen = self.seen.borrow();
            let (worst, _) = seen.worst();
            wrong.extend((!seen.lost.is_empty()).then(|| "an honest client lost answers".to_owned()));
            let closed = seen.closed.len();
            wrong.extend(
                (closed > self.reconnects).then(|| format!("its connection was closed {closed} times")),
            );
            wrong.extend((worst > NOTICED).then(|| format!("an honest client waited {worst:.1?}")));
        }
        for (victim, before, now) in costs {
            let most = before.resident + victim.grows * 1024;
            wrong.extend(
                (now.peak > most).then(|| format!("{} has had {} KiB of {most}", victim.name, now.peak)),
            );
        }
        if !wrong.is_empty() {
            fail(self.what, &self.seen, &self.pages, &wrong.join("; ")).await;
        }
        After(self.victims)
    }
}

/// Says what the honest client has seen, and what those with a page have given up by its word.
async fn fail(what: &str, seen: &watch::Receiver<Seen>, pages: &[Page], why: &str) -> ! {
    let seen = seen.borrow().to_string();
    let mut told = String::new();
    for (whose, (address, path)) in pages {
        let page = match timeout(NOTICED, get(*address, path, "")).await {
            Ok(Ok((_, page))) => page,
            Ok(Err(error)) => format!("outrigger_shed: {error}"),
            Err(_) => format!("outrigger_shed: {path} was not answered within {NOTICED:?}"),
        };
        let lines = page.lines().filter(|line| SHOWN.iter().any(|shown| line.starts_with(shown)));
        lines.for_each(|line| told += &format!("\n{whose}: {line}"));
    }
    panic!("{what}: {why}\n{seen}{told}");
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n";
    const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";

    /// Answers as many requests of each connection as it says, with that; after each of them the connection is closed.
    async fn server(connections: &'static [&'static [&'static str]]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answers in connections {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answer in *answers {
                    message(&mut stream).await.unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        address
    }

    async fn asked(
        times: usize,
        connections: &'static [&'static [&'static str]],
    ) -> (usize, Vec<String>, usize) {
        let mut asker = Asker::new(server(connections).await, "/");
        for _ in 0..times {
            asker.ask().await;
        }
        let seen = asker.seen.borrow();
        (seen.waits.len(), seen.lost.clone(), seen.closed.len())
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_off_is_lost_and_a_connection_that_rested_is_made_anew() {
        assert_eq!(asked(3, &[&[WHOLE, WHOLE], &[WHOLE]]).await, (3, Vec::new(), 1));
        let cut: [&[&[&str]]; 2] = [&[&[WHOLE, "H"], &[WHOLE]], &[&[WHOLE, CUT], &[WHOLE]]];
        for connections in cut {
            let (answers, lost, closed) = asked(3, connections).await;
            assert_eq!((answers, closed), (2, 0), "{connections:?}");
            assert!(lost.len() == 1 && lost[0].contains("an answer was cut off: closed"), "{lost:?}");
        }
        let (answers, lost, closed) = asked(2, &[&[], &[WHOLE]]).await;
        assert_eq!((answers, closed), (1, 0));
        assert!(
            lost[0].starts_with("at 0.0 s: ") && lost[0].contains("a new connection without an answer"),
            "{lost:?}"
        );
    }

    #[test]
    fn the_worst_wait_is_told_with_its_second() {
        let seconds = Duration::from_secs;
        let waits = vec![(seconds(1), seconds(4)), (seconds(7), seconds(31)), (seconds(2), seconds(40))];
        let closed = vec!["at 31.0 s: Connection reset by peer".to_owned()];
        let seen = Seen { waits, closed, ..Seen::from_now_on() };
        let text = seen.to_string();
        assert!(text.contains("waited 2.0s as a rule and 7.0s at most, at 31.0 s of it"), "{text}");
        assert!(
            text.contains("reconnected 1 times")
                && text.contains("its connection at 31.0 s: Connection reset"),
            "{text}"
        );
    }
}
