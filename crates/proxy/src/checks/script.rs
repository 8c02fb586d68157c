//! A check that is a program: no shell, a process group of its own, which ends with the check, little of our environment, and a
//! bounded look at what it says.

use std::io::{self, PipeWriter};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::bootstrap::register::Script;

/// Of what it says; the rest is read and forgotten, so that it does not wait for a reader.
const MOST_OUTPUT: usize = 1024;
/// Whoever says more is not asked how the application is: reading it would be a load.
const MOST_READ: usize = 1 << 20;
/// For the last words of a program that has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// What a program has of our environment: what else is in it may be secret.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

/// A program that is run again and again.
pub(super) struct Program {
    script: Script,
    /// To start it: where a disk does not answer, one thread waits for it and not one more at each interval.
    starting: Arc<Semaphore>,
}

/// The program and all that it has started, unless that has left the group; they end with this.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(group) = self.0 {
            // Nobody is left: as it should be.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Program {
    pub(super) fn new(script: Script) -> Self {
        Self { script, starting: Arc::new(Semaphore::new(1)) }
    }

    /// Runs it; dropped before its end, kills it with its group.
    pub(super) async fn run(&self) -> Result<(), String> {
        let program = self.script.command.first().map_or("no program", String::as_str);
        let cannot = |error: io::Error| format!("{program} cannot be run: {error}");
        let (reader, writer) = io::pipe().map_err(cannot)?;
        let mut reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(cannot)?;
        let (mut child, group) = self.start(writer).await.map_err(cannot)?;
        let mut said = Vec::new();
        let (status, bounded) = {
            let mut listening = std::pin::pin!(listen(&mut reader, &mut said));
            let (status, heard) = tokio::select! {
                status = child.wait() => (status, None),
                bounded = &mut listening => {
                    if !bounded {
                        group.kill();
                    }
                    (child.wait().await, Some(bounded))
                }
            };
            // What it left in the background holds the pipe, too.
            drop(group);
            let bounded = match heard {
                Some(bounded) => bounded,
                None => timeout(LAST_WORDS, &mut listening).await.unwrap_or(true),
            };
            (status.map_err(cannot)?, bounded)
        };
        if !bounded {
            return Err(format!("{program} says more than {MOST_READ} bytes; let it be quiet"));
        }
        if status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said);
        Err(format!("{program}: {status}: {}", said.trim()).trim_end_matches([':', ' ']).to_owned())
    }

    /// On a thread of its own: to find and read a program's file may take as long as the disk likes.
    async fn start(&self, writer: PipeWriter) -> io::Result<(Child, Group)> {
        let permit = self.starting.clone().acquire_owned().await.map_err(io::Error::other)?;
        let script = self.script.clone();
        let started = spawn_blocking(move || {
            let _permit = permit;
            let (program, arguments) =
                script.command.split_first().ok_or_else(|| io::Error::other("nothing to run"))?;
            // Our ends of the pipe go with the command.
            let mut command = Command::new(program);
            command.args(arguments).env_clear();
            let inherited = INHERITED.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
            command.envs(inherited).envs(&script.env);
            command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
            let child = command.process_group(0).kill_on_drop(true).spawn()?;
            let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
            // Who waits for it may be gone by now: then they end here.
            Ok((child, group))
        });
        started.await.map_err(io::Error::other)?
    }
}

/// To the end; what came first is kept. Whether it has ended before it was too much.
async fn listen(reader: &mut pipe::Receiver, said: &mut Vec<u8>) -> bool {
    let (mut buffer, mut all) = ([0; MOST_OUTPUT], 0);
    while let Ok(read @ 1..) = reader.read(&mut buffer).await {
        let room = MOST_OUTPUT - said.len();
        said.extend_from_slice(&buffer[..read.min(room)]);
        all += read;
        if all > MOST_READ {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rustix::process::{WaitOptions, set_child_subreaper, waitpid};

    use super::*;

    fn program(command: &[&str]) -> Program {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        Program::new(Script { command, env: [("GREETING".to_owned(), "hi".to_owned())].into() })
    }

    async fn shell(text: &str) -> Result<(), String> {
        program(&["/bin/sh", "-c", text]).run().await
    }

    #[tokio::test]
    async fn the_exit_code_decides_and_the_first_words_are_the_reason() {
        assert_eq!(shell("exit 0").await, Ok(()));
        let said = shell("echo full; echo disk >&2; exit 3").await.unwrap_err();
        assert!(said.contains("exit status: 3") && said.contains("full\ndisk"), "{said}");
        let long = shell("head -c 1000000 /dev/zero | tr '\\0' x; exit 1").await.unwrap_err();
        assert!(long.len() < MOST_OUTPUT + 100, "{}", long.len());
        let nothing = program(&["/nonexistent/check"]).run().await.unwrap_err();
        assert!(nothing.contains("/nonexistent/check cannot be run"), "{nothing}");
        assert_eq!(program(&["/bin/echo", "$(false); x"]).run().await, Ok(()), "no shell");
    }

    #[tokio::test]
    async fn one_that_does_not_stop_talking_fails() {
        let endless = shell("exec yes").await.unwrap_err();
        assert!(endless.contains("says more than 1048576 bytes"), "{endless}");
        let well = shell("head -c 2000000 /dev/zero").await.unwrap_err();
        assert!(well.contains("says more than"), "{well}");
    }

    #[tokio::test]
    async fn a_program_has_nothing_of_our_environment_but_what_it_needs() {
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "what is not inherited");
        let all = shell("env | grep -v '^\\(PATH\\|HOME\\|LANG\\|PWD\\|OLDPWD\\|SHLVL\\|_\\)='; exit 1")
            .await
            .unwrap_err();
        assert!(all.ends_with("exit status: 1: GREETING=hi"), "{all}");
        assert_eq!(shell("exec env sh -c 'test -n \"$PATH\"'").await, Ok(()));
    }

    /// Waits for the end of an orphan, which is ours now. Whether it was killed, and is gone.
    async fn is_killed(pid: Pid) -> bool {
        spawn_blocking(move || {
            let status = loop {
                // Until its parent has ended it is not ours.
                match waitpid(Some(pid), WaitOptions::empty()) {
                    Ok(Some((_, status))) => break status,
                    Ok(None) | Err(_) => std::thread::yield_now(),
                }
            };
            let entry = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
            status.terminating_signal() == Some(Signal::KILL.as_raw()) && !entry.exists()
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_ends_with_it_and_with_its_time() {
        set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        // Who is in the background says so.
        let background = format!("sleep 1000 & echo $! > '{}'", fifo.display());
        let told = || {
            let fifo = fifo.clone();
            spawn_blocking(move || std::fs::read_to_string(fifo).unwrap().trim().parse().unwrap())
        };
        let (done, pid) = tokio::join!(shell(&background), told());
        assert_eq!(done, Ok(()), "it does not wait for the background");
        assert!(is_killed(Pid::from_raw(pid.unwrap()).unwrap()).await, "the background is killed");

        let waiting = format!("{background}; wait");
        let mut running = Box::pin(shell(&waiting));
        let pid = tokio::select! {
            result = &mut running => panic!("it waits: {result:?}"),
            pid = told() => Pid::from_raw(pid.unwrap()).unwrap(),
        };
        drop(running);
        assert!(is_killed(pid).await, "the whole group is killed");
    }
}
