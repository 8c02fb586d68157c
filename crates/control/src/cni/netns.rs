//! Programs in the network namespaces of Pods.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// For a program that makes rules.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);
/// Of what one says.
const LONGEST: u64 = 64 * 1024;

/// A network namespace of a Pod.
#[derive(Debug, Clone)]
pub(super) enum Netns {
    /// As a runtime names it.
    At(PathBuf),
    /// Held open: it is that one for whoever has this, whatever becomes of the process that it was found by, or of this agent's wish.
    Open(Arc<File>),
}

impl Netns {
    fn open(self) -> Result<(Arc<File>, String), Trouble> {
        let path = match self {
            Self::Open(file) => return Ok((file, "of a process of the Pod".to_owned())),
            Self::At(path) => path,
        };
        let shown = path.display().to_string();
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Trouble::Gone(format!("there is no network namespace {shown}")),
            _ => Trouble::Other(format!("the network namespace {shown} cannot be opened: {error}")),
        })?;
        Ok((Arc::new(file), shown))
    }
}

/// Why a program was not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The namespace is not there any more.
    Gone(String),
    /// All else.
    Other(String),
}

/// How a program has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// What it wrote on standard error.
    pub(super) said: String,
}

/// Runs one there. It is started by a thread that has moved, since a namespace is a thread's.
///
/// # Errors
/// It could not be started there, or did not end.
pub(super) async fn run(
    netns: Netns,
    program: PathBuf,
    words: Vec<String>,
    permit: OwnedSemaphorePermit,
) -> Result<Ended, Trouble> {
    let (send, receive) = oneshot::channel();
    let work = move || {
        let done = enter(netns).and_then(|()| wait(&program, &words).map_err(Trouble::Other));
        // Only now, whether anybody still waits for it or not.
        drop(permit);
        let _ = send.send(done);
    };
    let spawned = thread::Builder::new().name("netns".to_owned()).spawn(work);
    spawned.map_err(|error| Trouble::Other(format!("a thread cannot be started: {error}")))?;
    receive.await.unwrap_or_else(|_| Err(Trouble::Other("the thread ended early".to_owned())))
}

fn enter(netns: Netns) -> Result<(), Trouble> {
    let (file, shown) = netns.open()?;
    // Rules meant for one Pod would take the connections of a whole node.
    match (identity(&file.metadata()), identity(&std::fs::metadata("/proc/self/ns/net"))) {
        (Some(there), Some(here)) if there != here => {}
        (Some(_), Some(_)) => {
            return Err(Trouble::Other(format!("{shown} is the network namespace of the node itself")));
        }
        _ => {
            return Err(Trouble::Other(format!(
                "the network namespace {shown} cannot be compared with the node's"
            )));
        }
    }
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|error| {
        Trouble::Other(format!(
            "the network namespace {shown} cannot be entered ({error}); it takes CAP_SYS_ADMIN"
        ))
    })
}

fn identity(found: &std::io::Result<std::fs::Metadata>) -> Option<(u64, u64)> {
    found.as_ref().ok().map(|found| (found.dev(), found.ino()))
}

fn wait(program: &Path, words: &[String]) -> Result<Ended, String> {
    let shown = program.display();
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // It has programs of its own (`nft`), which end with it.
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| format!("{shown} does not start: {error}"))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < end => thread::sleep(PAUSE),
            Ok(None) => {
                kill(&mut child);
                return Err(format!("{shown} {} did not end within {PATIENCE:?}", words.join(" ")));
            }
            Ok(Some(status)) => {
                let said = child.stderr.take().map(what_is_there).unwrap_or_default();
                return Ok(Ended { status, said: said.trim().to_owned() });
            }
            Err(error) => return Err(format!("{shown} cannot be waited for: {error}")),
        }
    }
}

/// What was written by now: errors are short, and the pipe holds them. Whatever a program has left running may keep its end for ever.
fn what_is_there(pipe: ChildStderr) -> String {
    let pipe = OwnedFd::from(pipe);
    let mut said = Vec::new();
    if fcntl_setfl(&pipe, OFlags::NONBLOCK).is_ok() {
        // At the end of what there is that is an error, and what was read is there.
        let _ = File::from(pipe).take(LONGEST).read_to_end(&mut said);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// It, and whatever it has started.
fn kill(child: &mut Child) {
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use rustix::process::kill_process;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn the_nodes_own_namespace_is_never_entered_and_one_that_is_gone_is_named() {
        let permits = Arc::new(Semaphore::new(1));
        let ran = async |netns: Netns| {
            let permit = permits.clone().acquire_owned().await.unwrap();
            run(netns, "/bin/true".into(), vec![], permit).await
        };
        let open = Netns::Open(Arc::new(File::open("/proc/self/ns/net").unwrap()));
        for own in [Netns::At("/proc/self/ns/net".into()), open] {
            let own = ran(own).await.unwrap_err();
            assert!(matches!(&own, Trouble::Other(why) if why.contains("of the node itself")), "{own:?}");
        }
        let gone = ran(Netns::At("/run/netns/nobody-has-made-this".into())).await.unwrap_err();
        assert!(matches!(&gone, Trouble::Gone(why) if why.contains("nobody-has-made-this")), "{gone:?}");
    }

    #[test]
    fn what_a_program_has_started_ends_with_it() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
            .unwrap();
        let is_there = || {
            // One that nobody has waited for yet has ended, too.
            std::fs::read_to_string(format!("/proc/{}/stat", line.trim()))
                .is_ok_and(|text| !text.contains(") Z "))
        };
        assert!(is_there());
        kill(&mut child);
        let end = Instant::now() + PATIENCE;
        while is_there() {
            assert!(Instant::now() < end);
            thread::sleep(PAUSE);
        }
    }

    /// Its place is another's then.
    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let words = ["-c", "sleep 1000 & echo $! >&2; exit 3"].map(str::to_owned);
        let began = Instant::now();
        let ended = wait(Path::new("/bin/sh"), &words).unwrap();
        let took = began.elapsed();
        let left: i32 = ended.said.parse().unwrap();
        kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
        assert!(ended.status.code() == Some(3) && took < PATIENCE / 2, "{took:?}");
    }

    #[test]
    fn what_a_program_says_and_how_it_ends_is_known() {
        let words = ["-c", "echo no >&2; exit 3"].map(str::to_owned);
        let ended = wait(Path::new("/bin/sh"), &words).unwrap();
        assert_eq!((ended.status.code(), ended.said.as_str()), (Some(3), "no"));
        assert!(wait(Path::new("/nowhere"), &[]).unwrap_err().contains("does not start"));
    }
}
