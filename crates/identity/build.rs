//! Compiles the CSR service with protox, so that no build needs protoc.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let include = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?)
        .join("../../proto");
    let file = include.join("istio/v1/auth/ca.proto");
    println!("cargo:rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&include])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .client_mod_attribute("istio.v1.auth", "#[cfg(feature = \"csr\")]")
        .server_mod_attribute("istio.v1.auth", "#[cfg(feature = \"ca\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
