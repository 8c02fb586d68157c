//! The operator's verbs, one file per group; all go through the management API.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use outrigger_control::client::Client;

pub(crate) mod analyze;
pub(crate) mod describe;
pub(crate) mod explain;
pub(crate) mod identity;
pub(crate) mod inject;
pub(crate) mod install;
pub(crate) mod instance;
pub(crate) mod rules;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod traces;

/// Where the control plane puts its socket if nobody says: by default in the present directory, as a service of the system.
const SOCKETS: [&str; 3] = [
    "outrigger-data/outrigger.sock",
    "/var/lib/outrigger-control/outrigger.sock",
    "/var/lib/outrigger/outrigger.sock",
];

/// Where the control plane is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Server {
    /// The management socket, `unix:/path` or a path [default: outrigger.sock in outrigger-data,
    /// /var/lib/outrigger-control or /var/lib/outrigger]
    #[arg(long, env = "OUTRIGGER_SERVER", global = true)]
    server: Option<String>,
}

impl Server {
    /// The one of this name; without a name that of the usual places.
    pub(crate) fn named(server: String) -> Self {
        Self { server: Some(server).filter(|server| !server.is_empty()) }
    }

    /// A client for it.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let named = self.server.as_deref().map(|server| server.strip_prefix("unix:").unwrap_or(server));
        if named.is_some_and(|server| server.starts_with("https://")) {
            bail!(
                "--server: this command reaches the control plane by its socket; use unix:/path/outrigger.sock"
            );
        }
        let places = named.map_or(SOCKETS.to_vec(), |path| vec![path]);
        // One that may not be looked at is there: what then fails says why.
        let found = places.iter().find(|path| !matches!(Path::new(path).try_exists(), Ok(false)));
        let path = found.map(PathBuf::from).with_context(|| {
            format!(
                "there is no management socket at {}; is the control plane running, and is --server right?",
                places.join(" or ")
            )
        })?;
        Ok(Client::socket(path))
    }
}

/// Who applies, for the history.
pub(crate) fn author() -> Option<String> {
    std::env::var("USER").ok().filter(|user| !user.is_empty())
}
