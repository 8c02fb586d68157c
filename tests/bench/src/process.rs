//! Processes: started pinned, ended with us, and what they use.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

/// A process of the bench.
pub struct Process {
    child: Child,
    name: String,
    cpu: usize,
    argv: Vec<String>,
    log: PathBuf,
    out: Option<BufReader<ChildStdout>>,
    input: Option<ChildStdin>,
}

impl Process {
    /// Starts `argv` on a CPU. It dies with us: `setpriv --pdeathsig`, and `taskset`, exec one another, so the pid
    /// is the program's.
    pub fn start(name: &str, cpu: usize, argv: &[String], directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let mut child = spawn(cpu, argv, &log)?;
        let (out, input) = (child.stdout.take().map(BufReader::new), child.stdin.take());
        Ok(Self { child, name: name.to_owned(), cpu, argv: argv.to_vec(), log, out, input })
    }

    /// Starts it anew after [`Process::stop`].
    pub fn start_again(&mut self) -> Result<()> {
        let mut child = spawn(self.cpu, &self.argv, &self.log)?;
        (self.out, self.input) = (child.stdout.take().map(BufReader::new), child.stdin.take());
        self.child = child;
        Ok(())
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints, as JSON.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if let Some(out) = &mut self.out {
            out.read_line(&mut line)?;
        }
        if line.is_empty() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("{} ended without an answer: {log}", self.name);
        }
        serde_json::from_str(&line).with_context(|| format!("{} printed {line:?}", self.name))
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it. An instrumented program (`cargo xtask dist`) writes its profile when it ends by itself, so it is asked to.
    pub fn stop(&mut self) {
        drop(self.input.take());
        if std::env::var_os("LLVM_PROFILE_FILE").is_some() {
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        } else {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn spawn(cpu: usize, argv: &[String], log: &Path) -> Result<Child> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c", &cpu.to_string()]).args(argv);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(std::fs::File::create(log)?);
    command.spawn().context("setpriv and taskset (util-linux) are needed")
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// CPU time of all threads that still live; ours end only with the process.
pub fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let mut nanos = 0;
    for pid in pids {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(nanos as f64 / 1e9)
}

/// Memory of a process, KiB.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Memory {
    /// Resident, mapped program text included.
    pub resident: u64,
    /// Of it anonymous: heap and stacks.
    pub anonymous: u64,
}

/// What a process holds.
pub fn memory(pid: u32) -> Result<Memory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    };
    Ok(Memory { resident: field("VmRSS:"), anonymous: field("RssAnon:") })
}

/// Seconds that the hypervisor took away from all CPUs since boot.
pub fn stolen_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = text.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse::<f64>().ok());
    ticks.unwrap_or(0.0) / 100.0
}

/// Nanoseconds per dependent load from a block larger than most caches: what a crowded host makes worse.
pub fn memory_latency() -> f64 {
    const SLOTS: usize = 4 << 20;
    const LOADS: usize = 400_000;
    let mut next: Vec<u32> = (0..SLOTS as u32).collect();
    let mut random = fastrand::Rng::with_seed(7);
    for last in (1..SLOTS).rev() {
        next.swap(last, random.usize(..last)); // Sattolo: one cycle through all
    }
    let (mut at, since) = (0, std::time::Instant::now());
    for _ in 0..LOADS {
        at = next[at as usize];
    }
    std::hint::black_box(at);
    since.elapsed().as_nanos() as f64 / LOADS as f64
}
