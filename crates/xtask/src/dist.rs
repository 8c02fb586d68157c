//! The shipped sidecar: built for the profile of a training run, so that what is never run lies apart from what is.
//!
//! ```text
//! instrumented build -> loads of the bench -> profile -> the build
//! ```
//! A sidecar's idle memory is mostly program text. The kernel maps 64 KiB or more around each page that is touched, so what
//! runs, scattered over all of the text, would map nearly all of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::MetadataCommand;

use crate::{cargo, run, workspace_root};

/// All kinds of traffic, some connections that idle, a few starts.
const TRAINING: &[&str] = &[
    "compare",
    "--peers",
    "direct,outrigger",
    "--rounds",
    "1",
    "--seconds",
    "2",
    "--idle",
    "100",
    "--starts",
    "2",
];

/// One file for any Linux. What a function hardly ever does lies apart from it, and the relocations of its own addresses, which
/// are read at the start, take a bit each.
const SHIPPED: &str = "-Ctarget-feature=+crt-static -Cllvm-args=-split-machine-functions \
                       -Clink-arg=-Wl,-z,keep-text-section-prefix -Clink-arg=-Wl,-z,pack-relative-relocs";

/// Where the shipped sidecar stands with what the bench needs beside it, in the target folder.
pub const PROGRAMS: &str = "pgo/bin";

/// Builds `outrigger-proxy` and says where it is.
pub fn dist() -> Result<()> {
    let root = workspace_root()?;
    let target = PathBuf::from(MetadataCommand::new().no_deps().exec()?.target_directory);
    let (work, triple) = (target.join("pgo"), said_by_rustc("host: ")?);
    let profdata = profdata(&triple)?;
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work)?;
    cargo(&root, &["build", "--release", "--locked", "-p", "outrigger-cli", "-p", "outrigger-bench"], &[])?;
    build(&root, &triple, &format!("-Cprofile-generate={}", work.display()))?;
    train(&root, &target, &triple, &work)?;
    let merged = work.join("merged.profdata");
    run(Command::new(&profdata).arg("merge").arg("-o").arg(&merged).args(profiles(&work)?))?;
    let order = work.join("order.txt");
    let shown = output(Command::new(profdata).args(["show", "--all-functions", "--counts"]).arg(&merged))?;
    std::fs::write(&order, by_use(&shown).join("\n"))?;
    let ordered = format!(
        "-Clink-arg=-Wl,--symbol-ordering-file={} -Clink-arg=-Wl,--no-warn-symbol-ordering",
        order.display()
    );
    build(&root, &triple, &format!("-Cprofile-use={} {SHIPPED} {ordered}", merged.display()))?;
    let binary = target.join(PROGRAMS).join("outrigger-proxy");
    let bytes = std::fs::copy(built(&target, &triple), &binary)?;
    println!("{}: {:.1} MB", binary.display(), bytes as f64 / 1e6);
    Ok(())
}

/// With a target named, flags do not reach build scripts.
fn build(root: &Path, triple: &str, flags: &str) -> Result<()> {
    let words = ["build", "--profile", "dist", "--locked", "-p", "outrigger-proxy", "--target", triple];
    cargo(root, &words, &[("RUSTFLAGS", flags)]).map(drop)
}

fn built(target: &Path, triple: &str) -> PathBuf {
    target.join(triple).join("dist/outrigger-proxy")
}

/// Loads the instrumented sidecar as the bench does.
fn train(root: &Path, target: &Path, triple: &str, work: &Path) -> Result<()> {
    let (bin, release) = (target.join(PROGRAMS), target.join("release"));
    std::fs::create_dir_all(&bin)?;
    std::fs::copy(built(target, triple), bin.join("outrigger-proxy"))?;
    std::fs::copy(release.join("outrigger"), bin.join("outrigger"))?;
    let mut bench = Command::new(release.join("outrigger-bench"));
    bench.current_dir(root).args(TRAINING).arg("--bin").arg(&bin).arg("--out").arg(work.join("bench"));
    run(bench.env("LLVM_PROFILE_FILE", work.join("%p.profraw")))
}

fn profiles(work: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(work)? {
        found.push(entry?.path());
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "profraw"));
    ensure!(!found.is_empty(), "the training left no profile in {}", work.display());
    Ok(found)
}

/// The functions that ran, the busiest first: a name's line ends with a colon, its counts follow further in.
fn by_use(shown: &str) -> Vec<&str> {
    let (mut name, mut found) = ("", Vec::new());
    for line in shown.lines() {
        let text = line.trim();
        if let Some(counts) = text.strip_prefix("Block counts: ") {
            let counts =
                counts.trim_matches(['[', ']']).split(", ").filter_map(|count| count.parse::<u64>().ok());
            found.extend(counts.max().filter(|most| *most > 0).map(|most| (most, name)));
        } else if let Some(named) = text.strip_suffix(':') {
            // A local function stands behind its file.
            name = named.rsplit(';').next().unwrap_or(named);
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, name)| name).collect()
}

/// LLVM's own merger, of the same version as the compiler.
fn profdata(triple: &str) -> Result<PathBuf> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let path = Path::new(sysroot.trim()).join("lib/rustlib").join(triple).join("bin/llvm-profdata");
    if !path.is_file() {
        bail!("no {}; `rustup component add llvm-tools` installs it", path.display());
    }
    Ok(path)
}

fn said_by_rustc(key: &str) -> Result<String> {
    let said = output(Command::new("rustc").arg("-vV"))?;
    let found = said.lines().find_map(|line| line.strip_prefix(key));
    found.map(str::to_owned).with_context(|| format!("`rustc -vV` does not say `{key}`"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{}", command.get_program().display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_ran_come_by_use() {
        let shown = "Counters:\n  _never:\n    Hash: 0x1\n    Counters: 1\n    Block counts: [0]\n  a.rs;_local:\n    \
                     Hash: 0x2\n    Block counts: [1, 7]\n  _most:\n    Block counts: [8]\nTotal functions: 3\n";
        assert_eq!(by_use(shown), ["_most", "_local"]);
    }
}
