//! `manifest`, `install`, `uninstall`: what is in a cluster, for kubectl. Nothing is asked of the cluster here.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use outrigger_control::inject::Release;
use outrigger_control::install::{NAMESPACE, Values, definitions, manifest, uninstalled};

use super::rules::read;

/// Print what is installed into a cluster of Kubernetes, as `helm template` of the chart does: `outrigger install | kubectl apply
/// --server-side -f -`.
#[derive(Debug, clap::Args)]
pub(crate) struct Manifest {
    #[command(flatten)]
    wishes: Wishes,
    /// The definitions of our own kinds of rules
    #[arg(long, value_enum, default_value = "with")]
    crds: Definitions,
}

/// Print what `kubectl delete --ignore-not-found -f -` takes to undo an installation, whatever it was made with: optional parts are named, too. The definitions stay, and with them the rules, unless `--crds`.
#[derive(Debug, clap::Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    wishes: Wishes,
    /// Also the definitions of our own kinds, and so all rules of these kinds
    #[arg(long)]
    crds: bool,
}

#[derive(Debug, clap::Args)]
struct Wishes {
    /// The namespace of the control plane
    #[arg(short, long, default_value = NAMESPACE)]
    namespace: String,
    /// Beside an installation of revision `default` in the same namespace: the same as `--set revision=NAME`
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// A file of values, as in deploy/helm/values.yaml
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One value, such as `image=registry/outrigger:0.1.0` or `resources.limits.memory=2Gi`
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// The Kubernetes of the API server, such as `1.29` [default: 1.30 or newer]
    #[arg(long, value_name = "VERSION")]
    kubernetes_version: Option<Release>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Definitions {
    With,
    None,
    Only,
}

impl Manifest {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(warning) = self.wishes.second() {
            eprintln!("{warning}");
        }
        if self.crds != Definitions::Only
            && let Some(warning) = self.wishes.values()?.hint()
        {
            eprintln!("{warning}");
        }
        if self.crds != Definitions::None {
            print!("{}", definitions()?);
        }
        if self.crds == Definitions::With {
            println!("---");
        }
        if self.crds != Definitions::Only {
            print!("{}", self.wishes.made(manifest)?);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Uninstall {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        print!("{}", self.wishes.made(uninstalled)?);
        eprintln!(
            "note: Pods keep their sidecars. Without a control plane their certificates end within a day (certificateTtlSeconds), and one that starts anew on \
             another node never gets ready: `kubectl get pods -A -l outrigger.io/rev` has to be empty first (docs/kubernetes.md, \"Taking it out\")"
        );
        if self.crds {
            print!("---\n{}", definitions()?);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Wishes {
    /// What a second installation in one cluster would do to the first, where this may be one.
    fn second(&self) -> Option<String> {
        (self.namespace != NAMESPACE).then(|| {
            format!(
                "warning: one namespace for a cluster: where there is an installation in another one than {}, this takes its ClusterRoleBinding and its webhooks over, or \
                 has, as another revision, an authority whose sidecars those of the first do not trust (docs/kubernetes.md, \"Revisions\")",
                self.namespace
            )
        })
    }

    fn made(&self, by: fn(&str, &Values) -> Result<String, String>) -> anyhow::Result<String> {
        by(&self.namespace, &self.values()?).map_err(|error| anyhow!(error))
    }

    fn values(&self) -> anyhow::Result<Values> {
        let mut values = Values::defaults().map_err(|error| anyhow!(error))?;
        values.render_for(self.kubernetes_version);
        for file in &self.files {
            values
                .merge(&read(file)?)
                .map_err(|error| anyhow!(error))
                .with_context(|| file.display().to_string())?;
        }
        if let Some(revision) = &self.revision {
            values.set(&format!("revision={revision}")).map_err(|error| anyhow!("--revision: {error}"))?;
        }
        for words in &self.set {
            values.set(words).map_err(|error| anyhow!("--set: {error}"))?;
        }
        Ok(values)
    }
}
