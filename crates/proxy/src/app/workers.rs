//! The worker threads: each with its own runtime, its own sockets and a pulse that readiness feels.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use outrigger_telemetry::Readiness;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::conn;
use crate::listen::Bound;
use crate::listen::accept;
use crate::process::Process;
use crate::worker::Worker;

/// A worker that has not answered for so long is stuck.
const PULSE: Duration = Duration::from_secs(2);

/// The threads; dropping it leaves them to the end of the process.
pub struct Workers {
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// CPUs that this process may use, at least one.
pub fn default_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Starts one worker per set of sockets.
///
/// # Errors
/// When a thread or its runtime cannot be started.
pub fn start(
    process: &Arc<Process>,
    sets: Vec<Vec<Bound>>,
    readiness: &Readiness,
) -> anyhow::Result<Workers> {
    let (stop, stopped) = watch::channel(false);
    let mut threads = Vec::with_capacity(sets.len());
    for (id, sockets) in sets.into_iter().enumerate() {
        let (ask, asked) = mpsc::channel::<oneshot::Sender<()>>(4);
        readiness.probe(format!("worker {id}"), PULSE, move || {
            let ask = ask.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                ask.send(answer).await.map_err(|_| "it has ended".to_owned())?;
                answered.await.map_err(|_| "it has ended".to_owned())
            }
        });
        let (process, stopped) = (process.clone(), stopped.clone());
        let thread = std::thread::Builder::new()
            .name(format!("worker-{id}"))
            .spawn(move || run(id, process, sockets, asked, stopped))
            .context("a worker's thread cannot be started")?;
        threads.push(thread);
    }
    Ok(Workers { stop, threads })
}

impl Workers {
    /// Ends all workers and what they still serve.
    pub fn stop(self) {
        self.stop.send_replace(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker has panicked");
            }
        }
    }
}

fn run(
    id: usize,
    process: Arc<Process>,
    sockets: Vec<Bound>,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
    mut stopped: watch::Receiver<bool>,
) {
    // A local runtime cannot move between threads, so it is made here.
    let options = tokio::runtime::LocalOptions::default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build_local(options) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "worker {id} cannot start");
            return;
        }
    };
    runtime.block_on(async move {
        process.metrics.watch(id, tokio::runtime::Handle::current().metrics());
        let most = process.memory.connections(accept::MAX_CONNECTIONS);
        let worker = Worker::new(id, process);
        let permits = Arc::new(Semaphore::new(most));
        for bound in sockets {
            tokio::task::spawn_local(accept::run(worker.clone(), bound, permits.clone()));
        }
        tokio::task::spawn_local(conn::open::watch(worker.clone()));
        loop {
            tokio::select! {
                Some(answer) = asked.recv() => drop(answer.send(())),
                _ = stopped.wait_for(|stop| *stop) => return,
            }
        }
    });
}
