//! Resources of Envoy's in its own JSON, as protobuf: its `.proto` files are in the crate that has its types.

use std::path::PathBuf;

use cargo_metadata::MetadataCommand;
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;

/// Files that name all others that a test needs.
const FILES: [&str; 20] = [
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/filters/http/adaptive_concurrency/v3/adaptive_concurrency.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/path/rewrite/uri_template/v3/uri_template_rewrite.proto",
    "envoy/extensions/path/match/uri_template/v3/uri_template_match.proto",
    "envoy/extensions/filters/http/stateful_session/v3/stateful_session.proto",
    "envoy/extensions/http/stateful_session/cookie/v3/cookie.proto",
    "envoy/extensions/http/stateful_session/header/v3/header.proto",
];

/// A file that says `common.ratelimit.v3` for what it does not write out: among files that have a nearer `common`, another would be
/// meant. It is compiled for itself.
const APART: [&str; 1] = ["envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto"];

/// The known types.
pub struct Protos(DescriptorPool);

impl Protos {
    /// Compiles the files of the crate `envoy-types`.
    ///
    /// # Panics
    /// Where the crate's sources are not on this machine.
    pub fn load() -> Self {
        let metadata = MetadataCommand::new()
            .other_options(["--offline".to_owned()])
            .exec()
            .expect("cargo knows this workspace");
        let package = metadata.packages.iter().find(|package| package.name == "envoy-types");
        let manifest = package.map(|package| PathBuf::from(&package.manifest_path));
        let protos = manifest.expect("a dependency of this package").with_file_name("proto");
        let roots =
            ["data-plane-api", "googleapis", "protoc-gen-validate", "xds", "cel-spec/proto", "client_model"]
                .map(|name| protos.join(name));
        let mut pool = DescriptorPool::new();
        for files in [&FILES[..], &APART] {
            let mut compiler = protox::Compiler::new(&roots).expect("folders");
            compiler.include_imports(true).open_files(files).expect("Envoy's own files");
            pool.add_file_descriptor_set(compiler.file_descriptor_set()).expect("each file is the same");
        }
        Self(pool)
    }

    /// A message of the type, such as `envoy.config.cluster.v3.Cluster`.
    ///
    /// # Panics
    /// Where the text is no such message.
    pub fn encode(&self, name: &str, json: &Value) -> Vec<u8> {
        let descriptor = self.0.get_message_by_name(name).unwrap_or_else(|| panic!("{name} is no type"));
        let message = DynamicMessage::deserialize(descriptor, json);
        message.unwrap_or_else(|error| panic!("{name}: {error}: {json:#}")).encode_to_vec()
    }
}
