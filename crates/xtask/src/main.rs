//! Development tasks, run as `cargo xtask NAME`: the checks that every change passes, advisories, long fuzzing.
//!
//! Owns the order, the flags and the timing of the checks; what the code must look like on disk is in `house.rs`,
//! what it must not lint is in `Cargo.toml` and `clippy.toml`, what it must not link is in `deny.toml`.
#![forbid(unsafe_code)]

mod circles;
mod dist;
mod house;
mod images;
mod limits;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;

const HELP: &str = "\
Usage: cargo xtask <task>

  check [step…]             what every change must pass, or only the named steps; a failure stops no other step:
                            fmt, house (budgets), limits (docs/security.md), deny (bans, licences, sources), clippy, docs, layering
  advisories                cargo-deny against the RustSec database (needs the network)
  fuzz [target] [seconds]   run one fuzz target, or every one, for so many seconds each (60);
                            needs a nightly toolchain and cargo-fuzz
  bench [--dist] [argument…]
                            sidecars side by side: ours (with --dist, what `dist` has built), Envoy, HAProxy, a bare relay
                            (`bench --help`)
  bench --control [argument…]
                            the control plane under change: convergence, CPU, memory (`bench --control --help`)
  bench --kubernetes [argument…]
                            the control plane of a large cluster: start, memory, Pods that change; needs root and the programs of Kubernetes
                            (`bench --kubernetes --help`)
  dist                      the shipped sidecar, built for a profile of the bench's loads; needs rustup's llvm-tools
  images [folder]           the images of deploy/docker/Dockerfile as OCI archives in target/images, without an engine; of programs in that folder, else
                            built first. Needs nft, ip and ca-certificates on this machine, whose libraries they have
  instructions [argument…]  user instructions, system calls and allocations per request, against tests/bench/baseline.json

cargo-deny and cargo-fuzz are looked for in $OUTRIGGER_TOOLS/bin (default ~/.cache/outrigger/bin), then on PATH;
`bash .ci/run tools` installs the former. With OUTRIGGER_REQUIRE=all a missing cargo-deny fails the check.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        ["check", wanted @ ..] => check(wanted),
        ["advisories"] => advisories(),
        ["fuzz"] => fuzz(None, "60"),
        ["fuzz", target] => fuzz(Some(target), "60"),
        ["fuzz", target, seconds] => fuzz(Some(target), seconds),
        ["dist"] => dist::dist(),
        ["images"] => images::images(None),
        ["images", folder] => images::images(Some(folder)),
        ["bench", "--dist", more @ ..] => bench("compare", dist::PROGRAMS, &[], more),
        ["bench", "--control", more @ ..] => bench("control", "release", &[], more),
        ["bench", "--kubernetes", more @ ..] => bench("kubernetes", "release", &[], more),
        ["bench", more @ ..] => bench("compare", "release", &[], more),
        ["instructions", more @ ..] => {
            bench("instructions", "release", &["--baseline", "tests/bench/baseline.json"], more)
        }
        _ => Err(anyhow::anyhow!("unknown task `{}`\n\n{HELP}", words.join(" "))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a step came to.
enum Verdict {
    Passed,
    Skipped(String),
}

/// Runs every step, cheap ones first: a format slip is said before minutes of compiling.
///
/// clippy and rustdoc share the dependencies' metadata, so docs cost only our own crates; the layering test builds
/// what `cargo test --workspace` uses again (same packages, same features), so CI compiles nothing a second time.
fn check(wanted: &[&str]) -> Result<()> {
    type Step = (&'static str, fn(&Path) -> Result<Verdict>);
    const STEPS: [Step; 7] = [
        ("fmt", |root| cargo(root, &["fmt", "--all", "--check"], &[])),
        ("house", |root| house::check(root).map(|()| Verdict::Passed)),
        ("limits", |root| limits::check(root).map(|()| Verdict::Passed)),
        ("deny", |root| deny(root, &["--locked"], &["bans", "licenses", "sources"])),
        ("clippy", |root| {
            cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[])
        }),
        ("docs", |root| {
            cargo(root, &["doc", "--workspace", "--no-deps", "--locked"], &[("RUSTDOCFLAGS", "-D warnings")])
        }),
        ("layering", |root| {
            cargo(root, &["test", "--workspace", "--test", "scenarios", "--locked", "--", "layering::"], &[])
        }),
    ];
    if let Some(unknown) = wanted.iter().find(|wanted| !STEPS.iter().any(|(name, _)| name == *wanted)) {
        bail!("no step `{unknown}`; there are {}", STEPS.map(|(name, _)| name).join(", "));
    }
    let root = workspace_root()?;
    let mut report = Vec::new();
    for (name, step) in STEPS.into_iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name)) {
        eprintln!("== {name}");
        let start = Instant::now();
        let outcome = step(&root);
        if let Err(error) = &outcome {
            eprintln!("{name}: {error:#}");
        }
        report.push((name, outcome, start.elapsed()));
    }
    eprintln!("\n{:<10} {:>7}  result", "check", "minutes");
    for (name, outcome, took) in &report {
        let result = match outcome {
            Ok(Verdict::Passed) => "ok".to_owned(),
            Ok(Verdict::Skipped(why)) => format!("SKIPPED: {why}"),
            Err(_) => "FAILED".to_owned(),
        };
        eprintln!("{name:<10} {:>7}  {result}", minutes(*took));
    }
    let failed: Vec<&str> =
        report.iter().filter(|(_, outcome, _)| outcome.is_err()).map(|(name, ..)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn advisories() -> Result<()> {
    match deny(&workspace_root()?, &["--locked"], &["advisories"])? {
        Verdict::Passed => Ok(()),
        Verdict::Skipped(why) => bail!("{why}"),
    }
}

/// The long runs; stable tests replay the corpus. `tests/fuzz` is a workspace of its own with its own lockfile.
fn fuzz(target: Option<&str>, seconds: &str) -> Result<()> {
    let seconds: u64 = seconds.parse().with_context(|| format!("seconds: `{seconds}` is not a number"))?;
    let dir = workspace_root()?.join("tests/fuzz");
    if !dir.join("Cargo.toml").is_file() {
        bail!("no fuzz targets: {} does not exist", dir.join("Cargo.toml").display());
    }
    let targets = match target {
        Some(target) => vec![target.to_owned()],
        None => fuzz_targets(&dir)?,
    };
    for target in targets {
        let start = Instant::now();
        eprintln!("== fuzz {target} for {seconds} s");
        let limit = format!("-max_total_time={seconds}");
        run(cargo_fuzz(&dir).args(["run", &target, "--", &limit]))?;
        eprintln!("{target}: no crash in {} min", minutes(start.elapsed()));
    }
    Ok(())
}

fn fuzz_targets(dir: &Path) -> Result<Vec<String>> {
    let output = cargo_fuzz(dir).arg("list").output().context("cargo fuzz list")?;
    if !output.status.success() {
        bail!(
            "cargo fuzz list: {}; it needs `rustup toolchain install nightly` and `cargo install cargo-fuzz`",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// `rustup run` and not `cargo +nightly`: inside an xtask `cargo` may already be one toolchain's own.
fn cargo_fuzz(dir: &Path) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "fuzz"]).current_dir(dir).env("PATH", tools_first());
    command
}

fn deny(root: &Path, flags: &[&str], checks: &[&str]) -> Result<Verdict> {
    let Some(program) = find("cargo-deny") else {
        let why = "no cargo-deny; `bash .ci/run tools` installs it".to_owned();
        if std::env::var("OUTRIGGER_REQUIRE").is_ok_and(|level| level == "all") {
            bail!("{why} (OUTRIGGER_REQUIRE=all)");
        }
        eprintln!("SKIPPED: {why}");
        return Ok(Verdict::Skipped(why));
    };
    run(Command::new(program).current_dir(root).args(flags).arg("check").args(checks))?;
    Ok(Verdict::Passed)
}

fn cargo(root: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Verdict> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(program).current_dir(root).args(args).envs(env.iter().copied()))?;
    Ok(Verdict::Passed)
}

fn run(command: &mut Command) -> Result<()> {
    let status =
        command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

/// Builds what is measured as it is released, then measures.
fn bench(task: &str, programs: &str, first: &[&str], more: &[&str]) -> Result<()> {
    let root = workspace_root()?;
    let metadata = MetadataCommand::new().no_deps().exec()?;
    let (release, programs) =
        (metadata.target_directory.join("release"), metadata.target_directory.join(programs));
    let mut build = vec!["build", "--release", "--locked", "-p", "outrigger-bench"];
    if programs == release {
        build.extend(["-p", "outrigger-proxy", "-p", "outrigger-cli"]);
    }
    cargo(&root, &build, &[])?;
    let mut command = Command::new(release.join("outrigger-bench"));
    command.current_dir(&root).arg(task).args(["--bin", programs.as_str()]).args(first).args(more);
    run(&mut command)
}

fn workspace_root() -> Result<PathBuf> {
    // Asked of the folder that we run in: an xtask from a shared target folder may have been built in another clone.
    let metadata = MetadataCommand::new().no_deps().exec()?;
    Ok(metadata.workspace_root.into())
}

/// PATH with the tools' folder before everything else.
fn tools_first() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let set = std::env::var_os("OUTRIGGER_TOOLS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".cache/outrigger"));
    let Some(tools) = set.or_else(home) else { return path };
    let dirs = std::iter::once(tools.join("bin")).chain(std::env::split_paths(&path));
    std::env::join_paths(dirs).unwrap_or(path)
}

fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&tools_first()).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn minutes(took: Duration) -> String {
    format!("{:.1}", took.as_secs_f64() / 60.0)
}
