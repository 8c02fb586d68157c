//! The images of `deploy/docker/Dockerfile`, written without an engine: OCI layouts in tar archives, which `podman load`, `docker load` (25 or
//! newer), `ctr images import` and `skopeo copy oci-archive:…` take.
//!
//! ```text
//! base: nft, ip, the libraries of all programs, public roots │ outrigger-proxy │ outrigger, outrigger-cni
//! └───────────────────── outrigger-proxy.tar ────────────────┴──────────────── ┘                        │
//! └───────────────────────────────────── outrigger.tar ─────────────────────────────────────────────────┘
//! ```
//!
//! There is no image below them, no shell and no package manager: the base is what the programs need of the machine that this runs on, by the
//! word of its loader. The same files give the same bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::MetadataCommand;
use serde_json::{Value, json};

use crate::{cargo, find, workspace_root};
use tar::Tree;

mod tar;

/// The user of sidecars.
const UID: u32 = 1337;
const PROXY: &str = "outrigger-proxy";
const ALL: &str = "outrigger";
/// What `intercept apply` runs.
const TOOLS: [&str; 2] = ["nft", "ip"];
const BIN: &str = "usr/local/bin";
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Builds the programs as the Dockerfile does, unless a folder with them is named, and writes both images.
pub fn images(programs: Option<&str>) -> Result<()> {
    let root = workspace_root()?;
    let target = PathBuf::from(MetadataCommand::new().no_deps().exec()?.target_directory);
    let programs = match programs {
        Some(folder) => PathBuf::from(folder),
        None => built(&root, &target)?,
    };
    let out = target.join("images");
    std::fs::create_dir_all(&out)?;
    for (name, archive) in assembled(&programs, &TOOLS, &Path::new("/").join(ROOTS))? {
        let file = out.join(format!("{name}.tar"));
        std::fs::write(&file, &archive)?;
        println!("{}: {:.1} MB", file.display(), archive.len() as f64 / 1e6);
    }
    Ok(())
}

/// A folder with all three.
fn built(root: &Path, target: &Path) -> Result<PathBuf> {
    let profile = ["build", "--locked", "--profile", "dist"];
    cargo(root, &[&profile[..], &["-p", "outrigger-proxy"]].concat(), &[])?;
    // As the Dockerfile has it.
    cargo(root, &[&profile[..], &["-p", "outrigger-cli", "--features", "jemalloc"]].concat(), &[])?;
    // What is put on hosts, whose libc may be another: libc inside. With a target named, flags do not reach build scripts.
    let triple = crate::dist::said_by_rustc("host: ")?;
    let flags = [("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")];
    cargo(root, &[&profile[..], &["-p", "outrigger-cni", "--target", &triple]].concat(), &flags)?;
    let folder = target.join("dist");
    std::fs::copy(target.join(triple).join("dist/outrigger-cni"), folder.join("outrigger-cni"))?;
    Ok(folder)
}

/// Both images by name, as archives.
fn assembled(programs: &Path, tools: &[&str], roots: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let program = |name: &str| {
        let path = programs.join(name);
        ensure!(
            path.is_file(),
            "{} is not there; without a folder named this task builds it",
            path.display()
        );
        Ok(path)
    };
    let (proxy, more) = (program(PROXY)?, [program(ALL)?, program("outrigger-cni")?]);
    let base = base(&[&[&proxy], &more.each_ref()[..]].concat(), tools, roots)?;
    let layers = [base, own(&[&proxy])?, own(&more.each_ref())?];
    let layers = layers.iter().map(Tree::written).collect::<Result<Vec<_>>>()?;
    Ok(vec![(PROXY, image(PROXY, PROXY, &layers[..2])?), (ALL, image(ALL, ALL, &layers)?)])
}

/// Everything but our programs.
fn base(programs: &[&PathBuf], tools: &[&str], roots: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.folder("tmp", 0o1777, 0);
    tree.folder("var/lib/outrigger", 0o700, UID);
    tree.folder(BIN, 0o755, 0);
    tree.file("etc/passwd", 0o644, format!("root:x:0:0:root:/:/\noutrigger:x:{UID}:{UID}::/:/\n"));
    tree.file("etc/group", 0o644, format!("root:x:0:\noutrigger:x:{UID}:\n"));
    tree.file("etc/nsswitch.conf", 0o644, "hosts: files dns\n");
    tree.file(ROOTS, 0o644, read(roots).context("the public roots (ca-certificates)")?);
    for tool in tools {
        let path =
            find(tool).with_context(|| format!("{tool} is not on PATH; install it (nftables, iproute2)"))?;
        tree.file(&format!("usr/sbin/{tool}"), 0o755, read(&path)?);
        libraries(&mut tree, &path)?;
    }
    for program in programs {
        libraries(&mut tree, program)?;
    }
    Ok(tree)
}

/// Our programs.
fn own(programs: &[&PathBuf]) -> Result<Tree> {
    let mut tree = Tree::default();
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        tree.file(&format!("{BIN}/{name}"), 0o755, read(program)?);
    }
    Ok(tree)
}

/// What the loader finds for a program, at the places where it finds it. One that has libc inside needs none.
fn libraries(tree: &mut Tree, program: &Path) -> Result<()> {
    if !needs_loader(&read(program)?).with_context(|| program.display().to_string())? {
        return Ok(());
    }
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ldd {}: {}", program.display(), why.trim());
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines() {
        ensure!(!line.contains("not found"), "{}: {}", program.display(), line.trim());
        let Some(place) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        if !tree.has(place) && !place.ends_with(':') {
            tree.file(place, 0o755, read(Path::new(place))?);
        }
    }
    Ok(())
}

/// Whether a program names a loader (`PT_INTERP`). Of what would not run here it is not asked: ldd says of that what it says of one that
/// needs no libraries.
fn needs_loader(program: &[u8]) -> Result<bool> {
    const INTERPRETER: u64 = 3;
    let own = read(Path::new("/proc/self/exe"))?;
    // Magic, class and byte order; the machine.
    let is_own = [0..6_usize, 18..20].into_iter().all(|part| program.get(part.clone()) == own.get(part));
    ensure!(is_own, "is no program of this machine (ELF for {})", std::env::consts::ARCH);
    let number = |at: u64, bytes: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let part = program.get(at..at.checked_add(bytes)?)?;
        Some(part.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    };
    // 64 bits, the lowest byte first, as both machines are that images are written for.
    let kinds = || -> Option<Vec<u64>> {
        let (first, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count).map(|n| number(first.checked_add(n * size)?, 4)).collect()
    };
    Ok(kinds().context("is cut off")?.contains(&INTERPRETER))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// An OCI layout of one image, in an archive.
fn image(name: &str, entry_point: &str, layers: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut layout = Tree::default();
    let descriptors =
        layers.iter().map(|layer| blob(&mut layout, LAYER, layer)).collect::<Result<Vec<_>>>()?;
    // A layer that is not compressed is known by one digest.
    let diff_ids: Vec<&Value> = descriptors.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": architecture()?, "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": format!("{UID}:{UID}"), "Entrypoint": [entry_point],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(&mut layout, CONFIG, config.to_string().as_bytes())?;
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors});
    let mut manifest = blob(&mut layout, MANIFEST, manifest.to_string().as_bytes())?;
    let tag = env!("CARGO_PKG_VERSION");
    manifest["annotations"] = json!({
        "org.opencontainers.image.ref.name": format!("{name}:{tag}"),
        "io.containerd.image.name": format!("docker.io/library/{name}:{tag}"),
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
    layout.file("index.json", 0o644, index.to_string());
    layout.file("oci-layout", 0o644, json!({"imageLayoutVersion": "1.0.0"}).to_string());
    layout.written()
}

/// Puts contents by their digest, and describes them.
fn blob(layout: &mut Tree, media_type: &str, contents: &[u8]) -> Result<Value> {
    let digest = sha256(contents)?;
    layout.file(&format!("blobs/sha256/{digest}"), 0o644, contents);
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": contents.len()}))
}

/// By coreutils, so that this task has no cryptography to compile.
fn sha256(contents: &[u8]) -> Result<String> {
    use std::io::Write;
    use std::process::Stdio;

    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("sha256sum")?;
    if let Some(mut stdin) = sum.stdin.take() {
        stdin.write_all(contents)?;
    }
    let output = sum.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let digest = said.split(' ').next().unwrap_or_default();
    ensure!(output.status.success() && digest.len() == 64, "sha256sum: {}", output.status);
    Ok(digest.to_owned())
}

/// As OCI calls it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is written for {other}"),
    }
}

#[cfg(test)]
mod tests;
