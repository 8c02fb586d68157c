//! TLS of clients towards a destination.

use serde::{Deserialize, Serialize};

/// TLS of a client towards a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTls {
    /// Which kind.
    pub mode: ClientTlsMode,
    /// Server name; `None` = the host, or the mesh's form.
    pub sni: Option<String>,
    /// Accepted names of the server; empty = the expected identity.
    pub subject_alt_names: Vec<String>,
    /// CA file for `Simple` and `Mutual`.
    pub ca_certificates: Option<String>,
    /// Certificate file for `Mutual`.
    pub client_certificate: Option<String>,
    /// Key file for `Mutual`.
    pub private_key: Option<String>,
    /// The roots themselves for `Simple`, PEM.
    #[serde(default)]
    pub roots_pem: Option<String>,
}

/// `tls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClientTlsMode {
    /// Plain text.
    Disable,
    /// TLS, server verified.
    Simple,
    /// TLS with a client certificate from files.
    Mutual,
    /// The mesh's own mTLS.
    IstioMutual,
}
