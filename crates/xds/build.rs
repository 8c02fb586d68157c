//! Compiles our own protobuf with protox, so that no build needs protoc. It imports nothing of Envoy's.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let include = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?)
        .join("../../proto");
    let files = ["destination", "host", "barrier", "nack", "global_limit", "rate_limit", "revoked"]
        .map(|f| include.join(format!("outrigger/v1/{f}.proto")));
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [&include])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .build_client(false)
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
