//! A check that is a program: no shell, a process group of its own, which ends with the check, and a bounded look at what it says.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::time::timeout;

/// Of what it says; the rest is read and forgotten, so that it does not wait for a reader.
const MOST_OUTPUT: usize = 1024;
/// For the last words of a program that has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The program and all that it has started, unless that has left the group; they end with this.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody is left: as it should be.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs a program; dropped before its end, kills it with its group.
pub(super) async fn run(command: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Err("no program".to_owned()) };
    let cannot = |error: std::io::Error| format!("{program} cannot be run: {error}");
    let (reader, writer) = std::io::pipe().map_err(cannot)?;
    let mut reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(cannot)?;
    let mut child = {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(writer.try_clone().map_err(cannot)?).stderr(writer);
        // Our ends of the pipe go with the command.
        command.process_group(0).kill_on_drop(true).spawn().map_err(cannot)?
    };
    let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let mut said = Vec::new();
    let status = {
        let mut listening = std::pin::pin!(listen(&mut reader, &mut said));
        let (status, heard) = tokio::select! {
            status = child.wait() => (status, false),
            () = &mut listening => (child.wait().await, true),
        };
        // What it left in the background holds the pipe, too.
        drop(group);
        if !heard {
            let _ = timeout(LAST_WORDS, &mut listening).await;
        }
        status.map_err(cannot)?
    };
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    Err(format!("{program}: {status}: {}", said.trim()).trim_end_matches([':', ' ']).to_owned())
}

/// To the end; what came first is kept.
async fn listen(reader: &mut pipe::Receiver, said: &mut Vec<u8>) {
    let mut buffer = [0; MOST_OUTPUT];
    while let Ok(read @ 1..) = reader.read(&mut buffer).await {
        let room = MOST_OUTPUT - said.len();
        said.extend_from_slice(&buffer[..read.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, pidfd_open};

    use super::*;

    async fn shell(text: &str) -> Result<(), String> {
        run(&["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()]).await
    }

    #[tokio::test]
    async fn the_exit_code_decides_and_the_first_words_are_the_reason() {
        assert_eq!(shell("exit 0").await, Ok(()));
        let said = shell("echo full; echo disk >&2; exit 3").await.unwrap_err();
        assert!(said.contains("exit status: 3") && said.contains("full\ndisk"), "{said}");
        let long = shell("head -c 1000000 /dev/zero | tr '\\0' x; exit 1").await.unwrap_err();
        assert!(long.len() < MOST_OUTPUT + 100, "{}", long.len());
        let nothing = run(&["/nonexistent/check".to_owned()]).await.unwrap_err();
        assert!(nothing.contains("/nonexistent/check cannot be run"), "{nothing}");
        assert_eq!(run(&["/bin/echo".to_owned(), "$(false); x".to_owned()]).await, Ok(()), "no shell");
    }

    /// Whether a process ends.
    async fn ends(pid: Pid) -> bool {
        tokio::task::spawn_blocking(move || {
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
            let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
            poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).unwrap() == 1
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_ends_with_it_and_with_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        // Who is in the background says so.
        let background = format!("sleep 1000 & echo $! > '{}'", fifo.display());
        let told = || {
            let fifo = fifo.clone();
            tokio::task::spawn_blocking(move || {
                std::fs::read_to_string(fifo).unwrap().trim().parse().unwrap()
            })
        };
        let (done, pid) = tokio::join!(shell(&background), told());
        assert_eq!(done, Ok(()), "it does not wait for the background");
        assert!(ends(Pid::from_raw(pid.unwrap()).unwrap()).await, "the background is killed");

        let waiting = format!("{background}; wait");
        let mut running = Box::pin(shell(&waiting));
        let pid = tokio::select! {
            result = &mut running => panic!("it waits: {result:?}"),
            pid = told() => Pid::from_raw(pid.unwrap()).unwrap(),
        };
        drop(running);
        assert!(ends(pid).await, "the whole group is killed");
    }
}
