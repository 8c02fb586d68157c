//! The access log: one line per stream, in Istio's text format or as JSON with the same names.
//!
//! A line is formatted by the worker only if the log is on, and written by a thread of its own, fed by a bounded queue:
//! a slow disk or terminal costs lines (they are counted), never requests.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use outrigger_telemetry::metrics::{Page, Source};

/// Lines that wait for the writer.
const QUEUE: usize = 8192;

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Istio's default text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where lines go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// Appended to a file.
    File(PathBuf),
}

struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
}

/// The workers' end; cheap to clone.
#[derive(Clone)]
pub struct Sink {
    format: Format,
    lines: Option<SyncSender<Vec<u8>>>,
    counts: Arc<Counts>,
}

impl Sink {
    /// No access log.
    pub fn off() -> Self {
        let counts = Arc::new(Counts { written: AtomicU64::new(0), dropped: AtomicU64::new(0) });
        Self { format: Format::Text, lines: None, counts }
    }

    /// Starts the writer. It ends when the last sink is dropped and all lines are written.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn to(target: &Target, format: Format) -> io::Result<Self> {
        let output: Box<dyn Write + Send> = match target {
            Target::Stdout => Box::new(io::stdout()),
            Target::Stderr => Box::new(io::stderr()),
            Target::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        Self::writer(output, format)
    }

    /// Starts the writer with any output.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn writer(output: Box<dyn Write + Send>, format: Format) -> io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        let sink = Self { format, lines: Some(lines), ..Self::off() };
        let counts = sink.counts.clone();
        let run = move || write_all(&queue, output, &counts);
        std::thread::Builder::new().name("access-log".into()).stack_size(128 * 1024).spawn(run)?;
        Ok(sink)
    }

    /// Whether a line is worth formatting.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// How lines are to look.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Hands over a line with its line feed.
    pub fn write(&self, line: Vec<u8>) {
        if let Some(lines) = &self.lines
            && lines.try_send(line).is_err()
        {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Lines dropped because the writer was behind, or failed.
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Relaxed)
    }
}

impl Source for Sink {
    fn collect(&self, page: &mut Page) {
        page.counter("outrigger_access_log_lines_total", "Access log lines written.")
            .sample((), self.counts.written.load(Relaxed));
        page.counter("outrigger_access_log_dropped_total", "Access log lines dropped.")
            .sample((), self.dropped());
    }
}

/// Writes lines until all sinks are gone; flushes whenever the queue runs empty.
fn write_all(queue: &Receiver<Vec<u8>>, output: Box<dyn Write + Send>, counts: &Counts) {
    let mut output = BufWriter::with_capacity(64 * 1024, output);
    let write = |line: &[u8], output: &mut BufWriter<_>| match output.write_all(line) {
        Ok(()) => counts.written.fetch_add(1, Relaxed),
        // A full disk may have room again later: go on, and count.
        Err(_) => counts.dropped.fetch_add(1, Relaxed),
    };
    while let Ok(line) = queue.recv() {
        write(&line, &mut output);
        while let Ok(line) = queue.try_recv() {
            write(&line, &mut output);
        }
        if output.flush().is_err() {
            // What is still buffered is tried again with the next line.
            tracing::debug!("the access log could not be flushed");
        }
    }
}

#[cfg(test)]
mod tests;
