//! The operator's verbs, one file per group; all go through the management API.

use std::path::PathBuf;

use anyhow::{Context, bail};
use outrigger_control::client::Client;

pub(crate) mod analyze;
pub(crate) mod identity;
pub(crate) mod rules;
pub(crate) mod status;
pub(crate) mod traces;

/// The management socket of a control plane that was started in this directory.
pub(crate) const DEFAULT_SERVER: &str = "unix:outrigger-data/outrigger.sock";

/// Where the control plane is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Server {
    /// The management socket, `unix:/path` or a path
    #[arg(
        long,
        env = "OUTRIGGER_SERVER",
        default_value = DEFAULT_SERVER,
        global = true
    )]
    server: String,
}

impl Server {
    /// A client for it.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        if self.server.starts_with("https://") {
            bail!(
                "--server: this command reaches the control plane by its socket; use unix:/path/outrigger.sock"
            );
        }
        let path = PathBuf::from(self.server.strip_prefix("unix:").unwrap_or(&self.server));
        path.try_exists().ok().filter(|there| *there).with_context(|| {
            format!(
                "there is no management socket at {}; is the control plane running, and is --server right?",
                path.display()
            )
        })?;
        Ok(Client::socket(path))
    }
}

/// Who applies, for the history.
pub(crate) fn author() -> Option<String> {
    std::env::var("USER").ok().filter(|user| !user.is_empty())
}
