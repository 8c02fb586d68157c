//! User instructions, system calls and allocations per request of our pair, under callgrind: what no crowded machine moves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use outrigger_tests::mesh::Mesh;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::load::Outcome;
use crate::peers::{self, LOAD_CPU, Peer, Site};
use crate::process::Process;
use crate::{Kind, Programs, compare};

/// What to count.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    programs: Programs,
    /// Only these kinds of traffic.
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::H1, Kind::H2, Kind::Grpc, Kind::Tcp])]
    kinds: Vec<Kind>,
    /// Requests that are counted.
    #[arg(long, default_value_t = 1000)]
    requests: u64,
    /// The counts that hold; more than 2 % above one of them fails.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Writes the counts there.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Folder for callgrind's profiles.
    #[arg(long, default_value = "target/bench/callgrind")]
    out: PathBuf,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// Per request, both sidecars together.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Count {
    instructions: f64,
    system_calls: f64,
    allocations: f64,
}

/// How much a count may grow.
const TOLERANCE: f64 = 1.02;
/// Requests before those that are counted: pools, caches and buffers are then filled.
const WARM_UP: u64 = 300;

/// Counts, prints, compares with the baseline.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let counts = runtime.block_on(count_all(args))?;
    println!("| per request, pair | user instructions | system calls | allocations |\n|---|---|---|---|");
    for (kind, count) in &counts {
        println!(
            "| {kind} | {:.0} | {:.2} | {:.2} |",
            count.instructions, count.system_calls, count.allocations
        );
    }
    if let Some(path) = &args.write {
        std::fs::write(path, serde_json::to_string_pretty(&counts)? + "\n")?;
    }
    args.baseline.as_deref().map_or(Ok(()), |path| hold(path, &counts))
}

async fn count_all(args: &Args) -> Result<BTreeMap<String, Count>> {
    let out = std::path::absolute(&args.out)?;
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&out)?;
    let binary = args.programs.bin.join("outrigger");
    let mesh = Mesh::start_with(&binary.display().to_string(), json!({ "sampling": 0.0 })).await;
    let directory = mesh.path("bench");
    std::fs::create_dir_all(&directory)?;
    let exe = std::env::current_exe()?.display().to_string();
    let words = [&exe, "app", "--ip", &mesh.address(2, 0).ip().to_string()].map(str::to_owned);
    let mut app = Process::start("app", LOAD_CPU, &words, &directory)?;
    let site = Site { mesh: &mesh, directory, bin: args.programs.bin.clone(), app: app.answer()? };
    let valgrind = outrigger_tests::require::tool("valgrind").context("valgrind is needed")?;
    let file = format!("--callgrind-out-file={}/NAME", out.display());
    let wrap = [&valgrind.display().to_string(), "--tool=callgrind", "--collect-systime=nsec", &file];
    let peer = peers::outrigger::start(&site, &wrap.map(str::to_owned)).await?;
    let mut counts = BTreeMap::new();
    for kind in &args.kinds {
        load(*kind, WARM_UP, &peer, &site)?;
        dump(&peer)?;
        let before = profiles(&out)?;
        load(*kind, args.requests, &peer, &site)?;
        dump(&peer)?;
        let mut total = Count::default();
        let new: Vec<PathBuf> = profiles(&out)?.into_iter().filter(|path| !before.contains(path)).collect();
        ensure!(new.len() >= peer.sidecars.len(), "callgrind wrote {} profiles", new.len());
        for path in new {
            add(&mut total, &path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().replace('.', "-");
            std::fs::rename(&path, out.join(format!("{kind}-{name}")))?;
        }
        let share = 1.0 / args.requests as f64;
        counts.insert(
            kind.to_string(),
            Count {
                instructions: total.instructions * share,
                system_calls: total.system_calls * share,
                allocations: total.allocations * share,
            },
        );
    }
    Ok(counts)
}

/// One connection, one request at a time: the same work each time.
fn load(kind: Kind, requests: u64, peer: &Peer, site: &Site<'_>) -> Result<()> {
    let mut words = compare::load(kind, peer, 1)?;
    words.extend(["--requests".to_owned(), requests.to_string()]);
    let outcome: Outcome = Process::start("load", LOAD_CPU, &words, &site.directory)?.answer()?;
    ensure!(outcome.failed == 0, "{kind}: {} requests failed: {:?}", outcome.failed, outcome.error);
    Ok(())
}

/// Writes what was counted so far, and begins anew.
fn dump(peer: &Peer) -> Result<()> {
    for pid in peer.pids() {
        let output = Command::new("callgrind_control").args(["--dump", &pid.to_string()]).output()?;
        ensure!(output.status.success(), "callgrind_control: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn profiles(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        found.push(entry?.path());
    }
    found.sort();
    Ok(found)
}

/// Adds a profile's totals. Format: <https://valgrind.org/docs/manual/cl-format.html>.
fn add(total: &mut Count, profile: &Path) -> Result<()> {
    let text = std::fs::read_to_string(profile)?;
    let line = |name: &str| text.lines().rev().chain(text.lines()).find_map(|line| line.strip_prefix(name));
    let events: Vec<&str> = line("events:").context("no events in the profile")?.split_whitespace().collect();
    let totals = line("totals:").or_else(|| line("summary:")).context("no totals in the profile")?;
    let values: Vec<f64> = totals.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let value = |name: &str| {
        let index = events.iter().position(|event| *event == name);
        index.and_then(|index| values.get(index)).copied().with_context(|| format!("no event {name}"))
    };
    total.instructions += value("Ir")?;
    total.system_calls += value("sysCount")?;
    total.allocations += allocations(&text);
    Ok(())
}

/// Calls of the allocator's entries. Names are compressed: `(12) malloc` once, `(12)` from then on.
fn allocations(text: &str) -> f64 {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut calls, mut callee) = (0.0, "");
    for line in text.lines() {
        if let Some((_, rest)) =
            line.split_once("fn=").filter(|(before, _)| before.is_empty() || *before == "c")
        {
            let (id, name) = rest.split_once(' ').unwrap_or((rest, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            callee = names.get(id).copied().unwrap_or("");
        } else if let Some(rest) = line.strip_prefix("calls=")
            && matches!(callee, "malloc" | "calloc" | "realloc" | "posix_memalign" | "aligned_alloc")
        {
            calls += rest.split(' ').next().and_then(|count| count.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    calls
}

fn hold(baseline: &Path, counts: &BTreeMap<String, Count>) -> Result<()> {
    let text = std::fs::read_to_string(baseline).with_context(|| baseline.display().to_string())?;
    let allowed: BTreeMap<String, Count> = serde_json::from_str(&text)?;
    let mut grown = Vec::new();
    for (kind, count) in counts {
        let Some(most) = allowed.get(kind) else { bail!("{}: no `{kind}`", baseline.display()) };
        for (what, now, then) in [
            ("instructions", count.instructions, most.instructions),
            ("system calls", count.system_calls, most.system_calls),
            ("allocations", count.allocations, most.allocations),
        ] {
            // Timers and keep-alives of the control plane add a little of their own.
            if now > then * TOLERANCE + 0.1 {
                grown.push(format!("{kind}: {now:.2} {what} per request, {then:.2} in the baseline"));
            }
        }
    }
    ensure!(
        grown.is_empty(),
        "{}\nRaising {} needs a line in docs/decisions.md that says what it buys.",
        grown.join("\n"),
        baseline.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_the_allocator_are_counted_by_compressed_names() {
        let text = "fn=(1) main\n3 4\ncfn=(2) malloc\ncalls=3 0\n1 9\ncfn=(3) send\ncalls=7 0\n1 9\nfn=(4) other\ncfn=(2)\ncalls=2 0\n1 1\n";
        assert!((allocations(text) - 5.0).abs() < f64::EPSILON);
    }
}
