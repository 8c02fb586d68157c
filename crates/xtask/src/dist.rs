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

/// Libc inside. What a function hardly ever does lies apart from it, and the relocations of its own addresses, which are read at
/// the start, take a bit each.
const SHIPPED: &[&str] = &[
    "-Ctarget-feature=+crt-static",
    "-Cllvm-args=-split-machine-functions",
    "-Clink-arg=-Wl,-z,keep-text-section-prefix",
    "-Clink-arg=-Wl,-z,pack-relative-relocs",
    "-Clink-arg=-Wl,--no-warn-symbol-ordering",
];

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
    build(&root, &triple, &[&format!("-Cprofile-generate={}", work.display())])?;
    train(&root, &target, &triple, &work)?;
    let merged = work.join("merged.profdata");
    run(Command::new(&profdata).arg("merge").arg("-o").arg(&merged).args(profiles(&work)?))?;
    let order = work.join("order.txt");
    let shown = output(Command::new(profdata).args(["show", "--all-functions", "--counts"]).arg(&merged))?;
    let ran = by_use(&shown);
    ensure!(!ran.is_empty(), "no function that ran in what llvm-profdata shows of {}", merged.display());
    std::fs::write(&order, ran.join("\n"))?;
    let profile = format!("-Cprofile-use={}", merged.display());
    let order = format!("-Clink-arg=-Wl,--symbol-ordering-file={}", order.display());
    build(&root, &triple, &[&[profile.as_str(), &order], SHIPPED].concat())?;
    let binary = assembled(&target, &triple, &target.join(PROGRAMS))?;
    // A program that relocates itself takes a libc that can.
    run(Command::new(&binary).arg("--version"))?;
    println!("{}: {:.1} MB", binary.display(), binary.metadata()?.len() as f64 / 1e6);
    Ok(())
}

/// With a target named, flags do not reach build scripts.
fn build(root: &Path, triple: &str, flags: &[&str]) -> Result<()> {
    let words = ["build", "--profile", "dist", "--locked", "-p", "outrigger-proxy", "--target", triple];
    cargo(root, &words, &[("CARGO_ENCODED_RUSTFLAGS", &flags.join("\x1f"))]).map(drop)
}

/// A folder with the sidecar that was built last, and what the bench needs beside it.
fn assembled(target: &Path, triple: &str, folder: &Path) -> Result<PathBuf> {
    let binary = folder.join("outrigger-proxy");
    std::fs::create_dir_all(folder)?;
    std::fs::copy(target.join(triple).join("dist/outrigger-proxy"), &binary)?;
    std::fs::copy(target.join("release/outrigger"), folder.join("outrigger"))?;
    Ok(binary)
}

/// Loads the instrumented sidecar as the bench does.
fn train(root: &Path, target: &Path, triple: &str, work: &Path) -> Result<()> {
    let bin = work.join("instrumented");
    assembled(target, triple, &bin)?;
    let mut bench = Command::new(target.join("release/outrigger-bench"));
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

/// What the compiler says of itself behind a key.
pub fn said_by_rustc(key: &str) -> Result<String> {
    let said = output(Command::new("rustc").arg("-vV"))?;
    let found = said.lines().find_map(|line| line.strip_prefix(key));
    found.map(str::to_owned).with_context(|| format!("`rustc -vV` does not say `{key}`"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{}", command.get_program().display()))?;
    ensure!(output.status.success(), "{}: {}", command.get_program().display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn functions_that_ran_come_by_use() {
        let shown = "Counters:\n  _never:\n    Hash: 0x1\n    Counters: 1\n    Block counts: [0]\n  a.rs;_local:\n    \
                     Hash: 0x2\n    Block counts: [1, 7]\n  _most:\n    Block counts: [8]\nTotal functions: 3\n";
        assert_eq!(by_use(shown), ["_most", "_local"]);
    }

    /// Whoever has cargo and its compiler can build what ships: nothing else is started by name, neither here nor by the peers of
    /// the training.
    #[test]
    fn no_foreign_program_is_needed() {
        let ships = include_str!("dist.rs").split("#[cfg(test)]").next().unwrap();
        let started = ships.split("Command::new(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        assert_eq!(started.collect::<BTreeSet<_>>(), BTreeSet::from(["rustc"]));
        let at =
            TRAINING.iter().position(|word| *word == "--peers").expect("the bench's default is all peers");
        let sources = workspace_root().unwrap().join("tests/bench/src/peers");
        // What answers directly has no sidecar.
        for peer in TRAINING[at + 1].split(',').filter(|peer| *peer != "direct") {
            let source = std::fs::read_to_string(sources.join(format!("{peer}.rs"))).unwrap();
            assert!(!source.contains("program(\""), "{peer} needs a program that cargo does not build");
        }
    }
}
