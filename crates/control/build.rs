//! Compiles what of etcd's and Nacos' APIs a registry calls with protox, so that no build needs protoc.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let include = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?)
        .join("../../proto");
    let files = ["etcd/v3/kv", "etcd/v3/rpc", "nacos/v2/service"];
    let files = files.map(|file| include.join(format!("{file}.proto")));
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [&include])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
