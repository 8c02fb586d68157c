//! What the sources must look like, as far as neither rustfmt nor clippy holds it: file sizes, crate roots, modules,
//! circles of files.
//!
//! Functions (80 lines) and futures are clippy's; arrows between crates are the layering test's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::{MetadataCommand, TargetKind};

/// Lines a source file may have: what one can hold in mind. A module's `tests.rs` does not count.
const FILE_BUDGET: usize = 500;

const FORBID_UNSAFE: &str = "#![forbid(unsafe_code)]";

/// Checks every `.rs` file under `crates` and `tests`, and the root of every target; names all offenders at once.
pub fn check(root: &Path) -> Result<()> {
    let mut files = Vec::new();
    for dir in ["crates", "tests"] {
        sources(&root.join(dir), &mut files)?;
    }
    files.sort();
    let mut offences = Vec::new();
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file);
        offences.extend(offences_of(name, &read(file)?));
    }
    for file in crate_roots(root)? {
        if !read(&file)?.lines().any(|line| line.trim_end() == FORBID_UNSAFE) {
            let name = file.strip_prefix(root).unwrap_or(&file);
            offences.push(format!("{}: a crate root without `{FORBID_UNSAFE}`", name.display()));
        }
    }
    offences.extend(crate::circles::offences(root)?);
    for offence in &offences {
        eprintln!("{offence}");
    }
    if !offences.is_empty() {
        bail!("{} offences in {} files", offences.len(), files.len());
    }
    Ok(())
}

fn offences_of(file: &Path, text: &str) -> Vec<String> {
    let mut offences = Vec::new();
    let name = file.file_name().unwrap_or_default();
    let lines = text.lines().count();
    if name != "tests.rs" && lines > FILE_BUDGET {
        offences.push(format!("{}: {lines} lines, the budget is {FILE_BUDGET}", file.display()));
    }
    if name == "mod.rs" {
        offences.push(format!("{}: a module is `x.rs` beside `x/`, not `mod.rs`", file.display()));
    }
    let opening = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
    if name != "tests.rs" && !opening.is_some_and(|line| line.starts_with("//!")) {
        offences.push(format!("{}: does not open with a `//!` saying what it owns", file.display()));
    }
    offences
}

/// Every `.rs` file but build output and fuzz corpora.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            if name != "target" && name != "corpus" && name != "artifacts" {
                sources(&path, found)?;
            }
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// The first file of every library, program, test, bench and example; build scripts are not shipped.
fn crate_roots(root: &Path) -> Result<Vec<PathBuf>> {
    let metadata = MetadataCommand::new().manifest_path(root.join("Cargo.toml")).no_deps().exec()?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    let ours = targets.filter(|target| !target.kind.contains(&TargetKind::CustomBuild));
    Ok(ours.map(|target| target.src_path.into()).collect())
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offences(name: &str, text: &str) -> usize {
        offences_of(Path::new(name), text).len()
    }

    #[test]
    fn five_hundred_lines_pass_and_one_more_does_not() {
        let full = "//! Owns nothing.\n".to_owned() + &"\n".repeat(499);
        assert_eq!(offences("crates/a/src/lib.rs", &full), 0);
        assert_eq!(offences("crates/a/src/lib.rs", &(full + "\n")), 1);
    }

    #[test]
    fn a_module_says_what_it_owns_unless_it_is_tests() {
        assert_eq!(offences("crates/a/src/lib.rs", "#![forbid(unsafe_code)]\n\n//! Owns.\n"), 0);
        assert_eq!(offences("crates/a/src/b.rs", "use std::io;\n"), 1);
        assert_eq!(offences("crates/a/src/b/tests.rs", &"use super::*;\n".repeat(600)), 0);
    }

    #[test]
    fn mod_rs_is_refused() {
        assert_eq!(offences("crates/a/src/b/mod.rs", "//! Owns.\n"), 1);
    }
}
