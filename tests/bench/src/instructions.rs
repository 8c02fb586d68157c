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
    /// The counts that hold; more than 2 % above one of them fails (4 % for HTTP/2 and gRPC).
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
    /// User instructions, all of them.
    instructions: f64,
    /// Of them in ciphers, whose assembly is chosen by the CPU: machines differ in these.
    ciphers: f64,
    /// Without readings of the clock, which are no system calls outside of valgrind.
    system_calls: f64,
    clock_readings: f64,
    allocations: f64,
}

impl Count {
    fn per(self, requests: u64) -> Self {
        let share = 1.0 / requests as f64;
        Self {
            instructions: self.instructions * share,
            ciphers: self.ciphers * share,
            system_calls: self.system_calls * share,
            clock_readings: self.clock_readings * share,
            allocations: self.allocations * share,
        }
    }
}

/// How much a count may grow. Of HTTP/2, whose frames meet in one wake-up or in two as timing has it, a little more: runs of
/// the same binary differ by 1.5 %, and those of HTTP/1 and TCP by 0.3 %.
fn tolerance(kind: &str) -> f64 {
    if matches!(kind, "h2" | "grpc") { 1.04 } else { 1.02 }
}

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
    let (site, _app) = Site::open(&mesh, &args.programs.bin)?;
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
        counts.insert(kind.to_string(), total.per(args.requests));
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

/// Adds a profile. Format: <https://valgrind.org/docs/manual/cl-format.html>.
fn add(total: &mut Count, profile: &Path) -> Result<()> {
    let text = std::fs::read_to_string(profile)?;
    let events =
        text.lines().find_map(|line| line.strip_prefix("events:")).context("no events in the profile")?;
    ensure!(
        events.split_whitespace().take(2).eq(["Ir", "sysCount"]),
        "other events in the profile: {events}"
    );
    for (function, spent) in functions(&text) {
        total.instructions += spent.instructions;
        if is_cipher(function) {
            total.ciphers += spent.instructions;
        }
        if function.starts_with("clock_gettime") {
            total.clock_readings += spent.calls;
        } else {
            total.system_calls += spent.system_calls;
        }
        if matches!(function, "malloc" | "calloc" | "realloc" | "posix_memalign" | "aligned_alloc") {
            total.allocations += spent.calls;
        }
    }
    Ok(())
}

fn is_cipher(function: &str) -> bool {
    function.starts_with("aws_lc_") || function.starts_with("_aesni") || function.contains("_ghash_")
}

/// What a function itself spent, and how often it was called.
#[derive(Default)]
struct Spent {
    instructions: f64,
    system_calls: f64,
    calls: f64,
}

/// The functions of a profile. Names are compressed: `(12) malloc` once, `(12)` from then on. The line behind `calls=` is
/// the callee's cost.
fn functions(text: &str) -> BTreeMap<&str, Spent> {
    let (mut names, mut found) = (BTreeMap::new(), BTreeMap::<&str, Spent>::new());
    let (mut function, mut callee, mut of_callee) = ("", "", false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = named(&mut names, name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = named(&mut names, name);
        } else if let Some(rest) = line.strip_prefix("calls=") {
            found.entry(callee).or_default().calls += number(rest.split(' ').next());
            of_callee = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first))
            && !std::mem::take(&mut of_callee)
        {
            let mut costs = line.split(' ').skip(1);
            let spent = found.entry(function).or_default();
            spent.instructions += number(costs.next());
            spent.system_calls += number(costs.next());
        }
    }
    found
}

fn named<'t>(names: &mut BTreeMap<&'t str, &'t str>, text: &'t str) -> &'t str {
    match text.split_once(' ') {
        Some((id, name)) => {
            names.insert(id, name);
            name
        }
        None => names.get(text).copied().unwrap_or(text),
    }
}

fn number(text: Option<&str>) -> f64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

fn hold(baseline: &Path, counts: &BTreeMap<String, Count>) -> Result<()> {
    let text = std::fs::read_to_string(baseline).with_context(|| baseline.display().to_string())?;
    let allowed: BTreeMap<String, Count> = serde_json::from_str(&text)?;
    let mut grown = Vec::new();
    for (kind, count) in counts {
        let Some(most) = allowed.get(kind) else { bail!("{}: no `{kind}`", baseline.display()) };
        for (what, now, then) in [
            (
                "instructions outside of ciphers",
                count.instructions - count.ciphers,
                most.instructions - most.ciphers,
            ),
            ("system calls", count.system_calls, most.system_calls),
            ("allocations", count.allocations, most.allocations),
        ] {
            // Timers and keep-alives of the control plane add a little of their own.
            if now > then * tolerance(kind) + 0.1 {
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

    const PROFILE: &str = "events: Ir sysCount\nfn=(1) main\n3 40\ncfn=(2) malloc\ncalls=3 0\n1 90\n\
        fn=(2)\n+1 80\n* 10\nfn=(3) recv\n0 5 2\nfn=(4) aws_lc_x\n0 7\ncfn=(2)\ncalls=2 0\n1 1\n";

    #[test]
    fn a_function_has_its_own_cost_and_not_its_callees() {
        let functions = functions(PROFILE);
        let own = |name: &str| functions[name].instructions;
        assert_eq!([own("main"), own("malloc"), own("recv"), own("aws_lc_x")], [40.0, 90.0, 5.0, 7.0]);
        assert_eq!((functions["malloc"].calls, functions["recv"].system_calls), (5.0, 2.0));
    }

    #[test]
    fn what_grew_by_more_than_the_tolerance_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let baseline = directory.path().join("baseline.json");
        let count = |instructions| Count { instructions, ciphers: 1000.0, ..Count::default() };
        let counts = |instructions| BTreeMap::from([("h1".to_owned(), count(instructions))]);
        std::fs::write(&baseline, serde_json::to_string(&counts(2000.0)).unwrap()).unwrap();
        hold(&baseline, &counts(2019.0)).unwrap();
        let told = hold(&baseline, &counts(2021.0)).unwrap_err().to_string();
        assert!(told.contains("h1: 1021.00 instructions outside of ciphers per request, 1000.00"), "{told}");
    }
}
