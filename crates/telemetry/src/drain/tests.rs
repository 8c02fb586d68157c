use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::*;

#[tokio::test(start_paused = true)]
async fn idle_process_leaves_at_once() {
    let drain = Drain::new();
    drain.begin();
    assert_eq!(drain.wait_idle(Duration::from_secs(30)).await, Ok(()));
    assert_eq!(drain.phase(), Phase::Draining);
}

#[tokio::test(start_paused = true)]
async fn wait_ends_with_the_last_guard_and_not_before() {
    let drain = Drain::new();
    let (first, second) = (drain.guard(), drain.guard());
    let waiting = tokio::spawn({
        let drain = drain.clone();
        async move { drain.wait_idle(Duration::from_secs(3600)).await }
    });
    tokio::time::advance(Duration::from_secs(10)).await;
    drop(first);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(drain.active(), 1);
    drop(second);
    assert_eq!(waiting.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn deadline_forces_those_who_are_left() {
    let drain = Drain::new();
    assert!(drain.begin());
    assert!(!drain.begin(), "it begins once");
    let guard = drain.guard();
    let cut = tokio::spawn({
        let drain = drain.clone();
        async move {
            drain.forced().await;
            drop(guard);
        }
    });
    let before = tokio::time::Instant::now();
    let deadline = Duration::from_secs(30);
    assert_eq!(drain.wait_idle(deadline).await, Err(Forced { active: 1, deadline }));
    assert!(before.elapsed() >= deadline);
    cut.await.unwrap();
    assert_eq!(drain.active(), 0);
    assert!(!drain.begin(), "there is no way back");
    assert_eq!(drain.phase(), Phase::Forced);
}

#[tokio::test(start_paused = true)]
async fn waiters_on_another_runtime_hear_of_the_drain() {
    let drain = Drain::new();
    let remote = drain.clone();
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(remote.draining());
        remote.is_draining()
    });
    drain.begin();
    assert!(worker.join().unwrap());
}

// Signals belong to the process, so both steps are one test. The signal is sent by `kill`, to ourselves alone.
#[tokio::test]
async fn first_signal_drains_and_second_forces() {
    let drain = Drain::new();
    let mut handler = Box::pin(on_signals(drain.clone()));
    // Until the handler is installed SIGTERM would end this test: it is installed by its first poll.
    assert!(futures_util::FutureExt::now_or_never(&mut handler).is_none());
    let handler = tokio::spawn(handler);
    let raise = |name: &str| {
        let status =
            Command::new("kill").args(["-s", name, &std::process::id().to_string()]).status().unwrap();
        assert!(status.success());
    };
    raise("TERM");
    drain.draining().await;
    assert_eq!(drain.phase(), Phase::Draining);
    raise("INT");
    drain.forced().await;
    handler.await.unwrap().unwrap();
}

#[tokio::test]
async fn parent_pipe_ends_when_the_other_end_is_gone() {
    let (reader, writer) = io::pipe().unwrap();
    let mut watching = tokio::spawn(parent_pipe(reader.into()));
    let mut writer = File::from(OwnedFd::from(writer));
    io::Write::write_all(&mut writer, b"noise is ignored").unwrap();
    tokio::task::yield_now().await;
    assert!(futures_util::FutureExt::now_or_never(&mut watching).is_none());
    drop(writer);
    watching.await.unwrap().unwrap();
}

#[tokio::test]
async fn parent_pipe_ends_when_the_parent_is_killed() {
    let (reader, writer) = io::pipe().unwrap();
    // A stand-in for the parent: it holds the only writing end as its stdout and waits.
    let mut parent = Command::new("sleep")
        .arg("600")
        .stdout(writer)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let watching = tokio::spawn(parent_pipe(reader.into()));
    parent.kill().unwrap();
    watching.await.unwrap().unwrap();
    parent.wait().unwrap();
}
