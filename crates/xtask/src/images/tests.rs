//! Images are read back with tar and sha256sum, and their programs are run in their own roots.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

/// A folder of a test, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xtask-images-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unpacked(archive: &[u8], into: &Path) {
    std::fs::create_dir_all(into).unwrap();
    let file = into.with_extension("tar");
    std::fs::write(&file, archive).unwrap();
    let done = Command::new("tar").arg("-xpf").arg(&file).arg("-C").arg(into).status().unwrap();
    assert!(done.success());
}

/// The blob that a descriptor names, once digest and size are found right.
fn described(layout: &Path, descriptor: &Value, media_type: &str) -> PathBuf {
    assert_eq!(descriptor["mediaType"], media_type);
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = layout.join("blobs/sha256").join(digest);
    let contents = std::fs::read(&path).unwrap();
    assert_eq!(descriptor["size"], contents.len());
    assert_eq!(sha256(&contents).unwrap(), digest);
    path
}

#[test]
fn images_are_read_back_as_they_were_described_and_are_the_same_each_time() {
    let work = Folder::new("whole");
    let programs = work.0.join("programs");
    std::fs::create_dir_all(&programs).unwrap();
    for name in [PROXY, ALL, "outrigger-cni"] {
        std::fs::copy(find("sha256sum").unwrap(), programs.join(name)).unwrap();
    }
    let roots = work.0.join("roots.crt");
    std::fs::write(&roots, "roots").unwrap();
    let missing = assembled(&work.0, &[], &roots).unwrap_err().to_string();
    assert!(missing.contains("outrigger-proxy is not there"), "{missing}");
    let images = assembled(&programs, &["tar"], &roots).unwrap();
    assert_eq!(images, assembled(&programs, &["tar"], &roots).unwrap());
    assert_eq!(images.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [PROXY, ALL]);

    for ((name, archive), count) in images.iter().zip([2, 3]) {
        let layout = work.0.join(format!("{name}-layout"));
        unpacked(archive, &layout);
        assert_eq!(json_of(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
        let manifest = json_of(&layout.join("index.json"))["manifests"][0].clone();
        let named = format!("{name}:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(manifest["annotations"]["org.opencontainers.image.ref.name"], named.as_str());
        let manifest = json_of(&described(&layout, &manifest, MANIFEST));
        let config = json_of(&described(&layout, &manifest["config"], CONFIG));
        assert_eq!(config["config"]["Entrypoint"], json!([name]));
        assert_eq!(config["config"]["User"], "1337:1337");
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!((layers.len(), config["rootfs"]["diff_ids"].as_array().unwrap().len()), (count, count));
        let root = work.0.join(format!("{name}-root"));
        for (layer, id) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
            assert_eq!(&layer["digest"], id);
            unpacked(&std::fs::read(described(&layout, layer, LAYER)).unwrap(), &root);
        }
        let program = root.join(BIN).join(name).metadata().unwrap();
        assert_eq!((program.permissions().mode() & 0o7777, program.mtime()), (0o755, 0));
        assert_eq!(root.join(BIN).join("outrigger-cni").exists(), count == 3);
        assert_eq!(std::fs::read(root.join(ROOTS)).unwrap(), b"roots");
        let state = root.join("var/lib/outrigger").metadata().unwrap();
        assert_eq!(state.permissions().mode() & 0o7777, 0o700);
        if state.uid() != UID {
            eprintln!("SKIPPED: only root gives files to others and changes roots");
            // As `require` of the other tests has it.
            assert!(
                std::env::var_os("OUTRIGGER_REQUIRE").is_none_or(|wanted| wanted != "all"),
                "root is missing"
            );
            continue;
        }
        // All that they need is there, and nothing of the machine's.
        for program in ["/usr/sbin/tar", &format!("/{BIN}/{PROXY}")] {
            let run = Command::new("chroot").arg(&root).args([program, "--version"]).output().unwrap();
            assert!(run.status.success(), "{program}: {}", String::from_utf8_lossy(&run.stderr));
        }
    }
}

#[test]
fn what_would_not_run_is_told_from_what_needs_no_libraries() {
    let program = std::fs::read(find("sha256sum").unwrap()).unwrap();
    assert!(needs_loader(&program).unwrap());
    // The same with nothing to load it: no header names a loader.
    let number = |at: usize, bytes: usize| {
        program[at..at + bytes].iter().rev().fold(0_usize, |number, byte| (number << 8) | usize::from(*byte))
    };
    let (first, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let mut alone = program.clone();
    for header in (0..count).map(|n| first + n * size).filter(|at| program[*at..*at + 4] == [3, 0, 0, 0]) {
        alone[header] = 0;
    }
    assert!(!needs_loader(&alone).unwrap());
    let mut another = program.clone();
    another[18] ^= 1;
    for (what, word) in [
        (&b"#!/bin/sh\n"[..], "no program of this machine"),
        (&another[..], "no program of this machine"),
        (&program[..60], "is cut off"),
    ] {
        let error = needs_loader(what).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_name_without_room_is_refused() {
    let mut tree = Tree::default();
    tree.file(&"x".repeat(101), 0o644, "");
    assert!(tree.written().unwrap_err().to_string().contains("101 bytes"));
}
