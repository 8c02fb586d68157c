//! TLS configurations for servers outside the mesh, made from the files that a cluster names, or from the roots that it has.
//!
//! The files are read when the cluster is compiled: what cannot be read or used is a refused resource, never plain text.

use std::sync::Arc;

use outrigger_identity::handover;
use outrigger_identity::upstream::{UpstreamTls, upstream_client_config};
use outrigger_model::cluster::OutsideTls;
use rustls::ClientConfig;

use crate::protocol::Protocol;

/// One configuration for each protocol that may be wanted.
#[derive(Debug, Clone)]
pub struct OutsideConfigs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
}

impl OutsideConfigs {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(tls: &OutsideTls) -> Result<Self, String> {
        let read = |path: &String| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let client = match &tls.client_files {
            Some((chain, key)) => Some((read(chain)?, read(key)?)),
            None => None,
        };
        let settings = UpstreamTls {
            roots_pem: match &tls.roots_file {
                Some(file) => Some(read(file)?),
                None => tls.roots_pem.clone(),
            },
            subject_alt_names: tls.subject_alt_names.clone(),
            client,
            alpn: Vec::new(),
        };
        let tcp = upstream_client_config(&settings).map_err(|error| error.to_string())?;
        let mut tcp = Arc::unwrap_or_clone(tcp);
        handover::client(&mut tcp);
        let offering = |name: &[u8]| {
            let mut config = tcp.clone();
            config.alpn_protocols = vec![name.to_vec()];
            Arc::new(config)
        };
        Ok(Self { http1: offering(b"http/1.1"), http2: offering(b"h2"), tcp: Arc::new(tcp) })
    }

    /// The configuration for what will be spoken.
    pub fn wanting(&self, want: Protocol) -> &Arc<ClientConfig> {
        match want {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
            Protocol::Tcp => &self.tcp,
        }
    }
}
