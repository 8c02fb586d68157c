//! Metrics of the process itself, read from /proc at scrape time.
//!
//! What cannot be read (another operating system, a hidden /proc) is left out of the page, never reported as zero.

use std::fs;

use super::{Page, Source};

/// Kernel constants that /proc's numbers are in; from the auxiliary vector, so that no libc call is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Units {
    ticks_per_second: u64,
    page_size: u64,
}

impl Units {
    fn read() -> Self {
        const AT_PAGESZ: usize = 6;
        const AT_CLKTCK: usize = 17;
        let mut units = Self { ticks_per_second: 100, page_size: 4096 };
        let vector = fs::read("/proc/self/auxv").unwrap_or_default();
        let words: Vec<usize> = vector
            .chunks_exact(size_of::<usize>())
            .filter_map(|word| word.try_into().ok().map(usize::from_ne_bytes))
            .collect();
        for pair in words.chunks_exact(2) {
            match pair[0] {
                AT_PAGESZ => units.page_size = pair[1] as u64,
                AT_CLKTCK => units.ticks_per_second = pair[1] as u64,
                _ => {}
            }
        }
        units
    }
}

/// The process metrics source.
#[derive(Debug)]
pub struct Process {
    prefix: &'static str,
    units: Units,
    /// Unix seconds; constant, therefore read once.
    started: Option<f64>,
}

/// The fields of /proc/self/stat that we show.
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

fn stat() -> Option<Stat> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in parentheses and may hold spaces and parentheses: count from the last one.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc(5) numbers fields from 1 and `rest` begins with the third.
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    Some(Stat {
        cpu_ticks: field(14)? + field(15)?,
        threads: field(20)?,
        start_ticks: field(22)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

fn boot_time() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn max_fds() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn open_fds() -> Option<u64> {
    // The directory that is being read is itself one of the entries.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

impl Process {
    /// Reads what does not change; each name is `PREFIXprocess_…`.
    pub fn new(prefix: &'static str) -> Self {
        let units = Units::read();
        let started = stat().zip(boot_time()).map(|(stat, boot)| {
            let ticks = stat.start_ticks as f64 / units.ticks_per_second as f64;
            boot as f64 + ticks
        });
        Self { prefix, units, started }
    }
}

impl Source for Process {
    fn collect(&self, out: &mut Page) {
        let name = |name: &str| format!("{}process_{name}", self.prefix);
        if let Some(stat) = stat() {
            let cpu = stat.cpu_ticks as f64 / self.units.ticks_per_second as f64;
            out.counter(&name("cpu_seconds_total"), "User and system CPU time spent, in seconds.")
                .sample((), cpu);
            let resident = stat.resident_pages * self.units.page_size;
            out.gauge(&name("resident_memory_bytes"), "Resident memory, in bytes.").sample((), resident);
            out.gauge(&name("virtual_memory_bytes"), "Virtual memory, in bytes.")
                .sample((), stat.virtual_bytes);
            out.gauge(&name("threads"), "Number of threads.").sample((), stat.threads);
        }
        if let Some(open) = open_fds() {
            out.gauge(&name("open_fds"), "Number of open file descriptors.").sample((), open);
        }
        if let Some(max) = max_fds() {
            out.gauge(&name("max_fds"), "Limit of open file descriptors.").sample((), max);
        }
        if let Some(started) = self.started {
            let help = "Start time of the process, in seconds since the Unix epoch.";
            out.gauge(&name("start_time_seconds"), help).sample((), started);
        }
    }
}
