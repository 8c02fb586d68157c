//! The arrows between the crates, and what the slim proxy must not carry. Reads manifests and sources; runs offline.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{Metadata, MetadataCommand};

/// Who may depend on whom. `tests` and `xtask` are development only: the one may use all, the other nothing of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("outrigger-cni", &[]),
    ("outrigger-model", &[]),
    ("outrigger-telemetry", &[]),
    ("outrigger-rules", &["outrigger-model"]),
    ("outrigger-xds", &["outrigger-model"]),
    ("outrigger-identity", &["outrigger-model"]),
    ("outrigger-proxy", &["outrigger-identity", "outrigger-model", "outrigger-telemetry", "outrigger-xds"]),
    (
        "outrigger-control",
        &[
            "outrigger-cni",
            "outrigger-identity",
            "outrigger-model",
            "outrigger-rules",
            "outrigger-telemetry",
            "outrigger-xds",
        ],
    ),
    ("outrigger-cli", ALL),
    ("outrigger-tests", ALL),
    ("outrigger-bench", &["outrigger-control", "outrigger-model", "outrigger-tests", "outrigger-xds"]),
    ("xtask", &[]),
];

const ALL: &[&str] = &[
    "outrigger-cli",
    "outrigger-cni",
    "outrigger-control",
    "outrigger-identity",
    "outrigger-model",
    "outrigger-proxy",
    "outrigger-rules",
    "outrigger-telemetry",
    "outrigger-xds",
];

/// What a sidecar image must not ship: servers' frameworks, stores, registries, consoles, a second crypto provider.
const NOT_IN_PROXY: &[&str] = &["axum", "redb", "kube", "ratatui", "ring"];

/// Where the proxy joins itself to xDS, and asks as Envoy asks; everywhere else it knows only `model`.
const XDS_SEAMS: &[&str] = &[
    "app.rs",
    "app/",
    "config_feed.rs",
    "config_feed/",
    "http/filter/ext_authz.rs",
    "http/filter/global_limit.rs",
    "http/load_report.rs",
];

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into())
}

fn workspace() -> Metadata {
    MetadataCommand::new()
        .cargo_path(cargo())
        .manifest_path(workspace_root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--locked".to_owned(), "--offline".to_owned()])
        .exec()
        .unwrap()
}

/// The workspace's crates and what each declares of the others, development dependencies included.
fn declared() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = workspace();
    let members: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let ours = |package: &cargo_metadata::Package| {
        package
            .dependencies
            .iter()
            .map(|d| d.name.to_string())
            .filter(|name| members.contains(name))
            .collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), ours(package))).collect()
}

/// Every arrow in `declared` that `allowed` does not draw, as "a -> b"; a crate without a row allows nothing.
fn forbidden_arrows(
    declared: &BTreeMap<String, BTreeSet<String>>,
    allowed: &[(&str, &[&str])],
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (from, targets) in declared {
        let row = allowed.iter().find(|(name, _)| name == from).map_or(&[][..], |(_, row)| row);
        wrong.extend(
            targets.iter().filter(|to| !row.contains(&to.as_str())).map(|to| format!("{from} -> {to}")),
        );
    }
    wrong
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// Lines of code (not comments) that name `outrigger_xds`.
fn lines_naming_xds(text: &str) -> Vec<usize> {
    // Names of metrics begin so, too.
    let names = |line: &str| line.split("outrigger_xds").skip(1).any(|rest| !rest.starts_with('_'));
    let code = |line: &str| !line.trim_start().starts_with("//") && names(line);
    text.lines().enumerate().filter(|(_, line)| code(line)).map(|(index, _)| index + 1).collect()
}

fn is_xds_seam(relative: &str) -> bool {
    XDS_SEAMS.iter().any(|seam| relative == *seam || (seam.ends_with('/') && relative.starts_with(seam)))
}

#[test]
fn every_crate_depends_only_along_the_arrows() {
    let declared = declared();
    assert_eq!(
        forbidden_arrows(&declared, ARROWS),
        Vec::<String>::new(),
        "arrows that the design does not draw"
    );
    for (name, _) in ARROWS {
        assert!(declared.contains_key(*name), "{name} is gone from the workspace: mend the table");
    }
    for name in declared.keys() {
        assert!(ARROWS.iter().any(|(row, _)| row == name), "{name} has no row in the table of arrows");
    }
}

#[test]
fn an_arrow_outside_the_table_is_found() {
    let mut declared = BTreeMap::new();
    declared.insert("outrigger-proxy".to_owned(), BTreeSet::from(["outrigger-control".to_owned()]));
    declared.insert("unknown".to_owned(), BTreeSet::from(["outrigger-model".to_owned()]));
    let wrong = forbidden_arrows(&declared, ARROWS);
    assert_eq!(wrong, ["outrigger-proxy -> outrigger-control", "unknown -> outrigger-model"]);
}

#[test]
fn only_the_seams_of_the_proxy_name_xds() {
    let src = workspace_root().join("crates/proxy/src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(!files.is_empty(), "no sources under {}", src.display());
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        if !is_xds_seam(&relative) {
            let text = std::fs::read_to_string(&file).unwrap();
            wrong.extend(lines_naming_xds(&text).into_iter().map(|line| format!("{relative}:{line}")));
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "only {XDS_SEAMS:?} may name outrigger_xds");
}

#[test]
fn naming_xds_in_code_is_found_and_in_a_comment_is_not() {
    assert_eq!(lines_naming_xds("// outrigger_xds\nuse outrigger_xds::client;\n"), [2]);
    assert!(is_xds_seam("config_feed/client.rs") && is_xds_seam("app.rs"));
    assert!(!is_xds_seam("http/app.rs") && !is_xds_seam("apparatus.rs"));
}

#[test]
fn the_slim_proxy_carries_nothing_of_the_control_plane() {
    let output = Command::new(cargo())
        .current_dir(workspace_root())
        .args(["tree", "-p", "outrigger-proxy", "-e", "normal", "--locked", "--offline"])
        .args(["--prefix", "none", "--format", "{p}"])
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains("outrigger-proxy") && names.contains("tokio"), "not the proxy's tree: {names:?}");
    let wrong: Vec<_> = NOT_IN_PROXY.iter().filter(|name| names.contains(**name)).collect();
    assert!(
        wrong.is_empty(),
        "in the sidecar: {wrong:?}; `cargo tree -p outrigger-proxy -i NAME` tells through whom"
    );
}
