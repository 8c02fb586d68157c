//! `instance`: register, heartbeat, drain, deregister, list, get.

use std::process::ExitCode;

use clap::Subcommand;
use outrigger_control::api::types::InstanceBody;
use outrigger_control::client::{Client, ClientError};
use outrigger_control::instance::State;

use super::Server;
use super::identity::settle;
use crate::print::{Output, show, table};

pub(super) mod register;

use register::Register;

/// Registrations.
#[derive(Debug, clap::Args)]
pub(crate) struct Registrations {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Register an instance, or replace its registration
    Register(Box<Register>),
    /// Renew leases: instances that were registered with --ttl end without it
    Heartbeat {
        /// Ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Take instances out: no new calls reach them, those under way go on (state maintenance)
    Drain {
        /// Ids
        #[arg(required = true)]
        ids: Vec<String>,
        /// Take them back in
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// End registrations
    Deregister {
        /// Ids
        #[arg(required = true)]
        ids: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List instances, those of registries too
    List {
        /// Only this service
        #[arg(long)]
        service: Option<String>,
        /// Only this namespace
        #[arg(short, long)]
        namespace: Option<String>,
        /// A table, JSON or YAML
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show one instance, as `register -f` takes it
    Get {
        /// Id
        id: String,
        /// A table, JSON or YAML
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Whether to return only when everybody knows.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Wait {
    /// Return when every sidecar knows of it
    #[arg(long)]
    wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 30.0, requires = "wait")]
    timeout: f64,
}

impl Wait {
    async fn settle(self, client: &Client, generation: u64) -> anyhow::Result<ExitCode> {
        if self.wait { settle(client, generation, self.timeout).await } else { Ok(ExitCode::SUCCESS) }
    }
}

impl Registrations {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client()?;
        match self.verb {
            Verb::Register(register) => register.run(&client).await,
            Verb::Heartbeat { ids } => {
                for id in ids {
                    client.heartbeat(&id).await?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Verb::Drain { ids, undo, wait } => {
                let wanted = if undo { State::Running } else { State::Maintenance };
                let mut last = 0;
                for id in ids {
                    last = client.set_state(&id, wanted).await?.generation;
                    // Back in, it is what is true of it; of somebody revoked there is nothing to see.
                    let state = match client.instance(&id).await {
                        Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => wanted,
                        shown => shown?.instance.state,
                    };
                    println!("{id} is {}", word(&state));
                }
                wait.settle(&client, last).await
            }
            Verb::Deregister { ids, wait } => {
                let mut last = 0;
                for id in ids {
                    last = client.deregister(&id).await?.generation;
                    println!("{id} deregistered");
                }
                wait.settle(&client, last).await
            }
            Verb::List { service, namespace, output } => {
                let mut all = client.instances().await?;
                let wanted = |is: &str, wanted: &Option<String>| wanted.as_ref().is_none_or(|w| w == is);
                all.retain(|body| {
                    wanted(&body.instance.service, &service) && wanted(&body.instance.namespace, &namespace)
                });
                show(output, &all, || overview(&all))?;
                Ok(ExitCode::SUCCESS)
            }
            Verb::Get { id, output } => get(&client, &id, output).await,
        }
    }
}

async fn get(client: &Client, id: &str, output: Output) -> anyhow::Result<ExitCode> {
    let body = client.instance(id).await.map_err(|error| match error.status() {
        Some(http::StatusCode::NOT_FOUND) => {
            anyhow::anyhow!("{error}; `outrigger instance list` shows those that there are")
        }
        _ => ClientError::into(error),
    })?;
    show(output, &body, || details(&body))?;
    Ok(ExitCode::SUCCESS)
}

/// As the API writes it: `running`.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().map(str::to_owned).unwrap_or_default()
}

fn ports(body: &InstanceBody) -> String {
    let port = |port: &outrigger_control::instance::Port| format!("{}/{}", port.number, word(&port.protocol));
    body.instance.ports.iter().map(port).collect::<Vec<_>>().join(", ")
}

fn addresses(body: &InstanceBody) -> String {
    body.instance.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn overview(all: &[InstanceBody]) -> String {
    let row = |body: &InstanceBody| {
        let instance = &body.instance;
        [
            instance.id.clone(),
            format!("{}/{}", instance.namespace, instance.service),
            instance.version.clone().unwrap_or_default(),
            addresses(body),
            ports(body),
            word(&instance.state),
            body.registry.clone(),
        ]
    };
    let header = ["INSTANCE", "SERVICE", "VERSION", "ADDRESSES", "PORTS", "STATE", "REGISTRY"];
    table(header, all.iter().map(row))
}

fn details(body: &InstanceBody) -> String {
    let instance = &body.instance;
    let map = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
    };
    let lease = instance.ttl_seconds.map_or_else(|| "none".to_owned(), |ttl| format!("{ttl} s"));
    let rows = [
        ("state", word(&instance.state)),
        ("service", format!("{}/{}", instance.namespace, instance.service)),
        ("version", instance.version.clone().unwrap_or_default()),
        ("addresses", addresses(body)),
        ("network", instance.network.clone()),
        ("ports", ports(body)),
        ("runs as", format!("{}/{}", instance.namespace, instance.service_account)),
        ("sidecar", if instance.sidecar { "yes" } else { "no" }.to_owned()),
        ("weight", instance.weight.to_string()),
        ("zone", [&*instance.region, &*instance.zone].join(" ").trim().to_owned()),
        ("labels", map(&instance.labels)),
        ("metadata", map(&instance.metadata)),
        ("lease", lease),
        ("registry", body.registry.clone()),
        ("registered by", body.by.clone().unwrap_or_else(|| "an operator, or the registry".to_owned())),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    table(["INSTANCE", &instance.id], rows.map(|(name, value)| [name.to_owned(), value]))
}
