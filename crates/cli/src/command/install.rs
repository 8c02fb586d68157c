//! `manifest`: what is installed into a cluster.

use std::process::ExitCode;

use outrigger_control::install::definitions;

/// Print what is installed into a cluster of Kubernetes.
#[derive(Debug, clap::Args)]
pub(crate) struct Manifest {
    /// Only the definitions of our own kinds of rules
    #[arg(long, required = true)]
    crds: bool,
}

impl Manifest {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        print!("{}", definitions()?);
        Ok(ExitCode::SUCCESS)
    }
}
