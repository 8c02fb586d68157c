#![forbid(unsafe_code)]
//! The CNI plugin `outrigger-cni`, and its place in the configuration of a node.
//!
//! A container runtime starts the plugin for each Pod, behind the plugins that make its network. The plugin knows nothing of the cluster: it
//! asks the agent of its node (`outrigger cni`) over a socket, which looks the Pod up and makes the rules of interception in the Pod's
//! network namespace. So what lies on the host is one small static program without credentials, and needs no `nft` there.
//!
//! ```text
//! runtime ─ stdin, CNI_* ─▶ plugin (spec) ─ a line of JSON (ask) ─▶ agent: control/src/cni
//!                                                                   └ conflist: what it makes of the node's configuration
//! ```

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use crate::spec::Environment;

pub mod ask;
pub mod conflist;
pub mod plugin;
pub mod spec;

/// The plugin's name: its binary, its `type` in a configuration.
pub const NAME: &str = "outrigger-cni";

/// Does what the runtime that has started this process asks for.
pub fn main() -> ExitCode {
    let environment = Environment::read(|name| std::env::var_os(name)?.into_string().ok());
    if environment.command.is_empty() {
        let version = env!("CARGO_PKG_VERSION");
        let said = format!(
            "{NAME} {version}: a CNI plugin, which container runtimes start; `outrigger cni` installs it\n"
        );
        let _ = io::stderr().lock().write_all(said.as_bytes());
        return ExitCode::FAILURE;
    }
    let mut input = Vec::new();
    let read = io::stdin().lock().take(plugin::MOST).read_to_end(&mut input);
    let (text, done) = plugin::run(&environment, read.map(|_| input.as_slice()));
    // The runtime reads errors there, too.
    let written = io::stdout().lock().write_all(text.as_bytes());
    if done && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
