//! `service`: list, get, register, deregister.
//!
//! A service is there while instances of it are; one that has none, or more to say than they do, is described by a ServiceEntry, which
//! `register` writes.

use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use outrigger_control::api::services::ServiceBody;
use outrigger_control::client::Client;
use outrigger_control::instance::State;

use super::Server;
use super::instance::word;
use super::rules::Delete;
use crate::print::{Output, show, table};

mod register;

use register::Register;

/// Services.
#[derive(Debug, clap::Args)]
pub(crate) struct Services {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List services: those of instances, and those that are described
    List {
        /// Only this namespace
        #[arg(short, long)]
        namespace: Option<String>,
        /// A table, JSON or YAML
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show one service; its rules are shown by `describe service`
    Get {
        /// As reviews, reviews.shop, shop/reviews, or a whole host
        service: String,
        /// A table, JSON or YAML
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Describe a service that nobody registers instances of, by a ServiceEntry
    Register(Box<Register>),
    /// Take back what `register` described
    Deregister {
        /// Name of the ServiceEntry
        name: String,
        /// Its namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Return when every affected proxy has forgotten it
        #[arg(long)]
        wait: bool,
        /// Although rules need it
        #[arg(long)]
        force: bool,
    },
}

impl Services {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List { namespace, output } => {
                let mut all = self.server.client()?.services().await?;
                all.retain(|body| namespace.as_ref().is_none_or(|wanted| *wanted == body.namespace));
                show(output, &all, || overview(&all))?;
                Ok(ExitCode::SUCCESS)
            }
            Verb::Get { service, output } => {
                let body = find(&self.server.client()?, &service).await?;
                show(output, &body, || details(&body))?;
                Ok(ExitCode::SUCCESS)
            }
            Verb::Register(register) => register.run(self.server).await,
            Verb::Deregister { name, namespace, wait, force } => {
                let server = self.server.clone();
                let described = Delete::new("ServiceEntry", name.clone(), namespace.clone(), self.server);
                match described.waiting(wait).forced(force).run().await {
                    Err(error) if is_registered(&server, &name, &namespace).await => bail!(
                        "{error}; {name} is a service by its instances: `outrigger instance list --service {name} -n {namespace}`"
                    ),
                    done => done,
                }
            }
        }
    }
}

/// Whether instances make it a service.
async fn is_registered(server: &Server, name: &str, namespace: &str) -> bool {
    let Ok(client) = server.client() else { return false };
    let all = client.services().await.unwrap_or_default();
    all.iter().any(|body| body.name == name && body.namespace == namespace && !body.instances.is_empty())
}

async fn find(client: &Client, named: &str) -> anyhow::Result<ServiceBody> {
    let all = client.services().await?;
    let mut found: Vec<ServiceBody> = all.into_iter().filter(|body| is(body, named)).collect();
    match found.as_slice() {
        [_] => Ok(found.remove(0)),
        [] => bail!("there is no service \"{named}\"; `outrigger service list` shows those that there are"),
        several => {
            let hosts: Vec<&str> = several.iter().map(|body| &*body.host).collect();
            bail!("\"{named}\" may be {}; name one of them", hosts.join(", "))
        }
    }
}

fn is(body: &ServiceBody, named: &str) -> bool {
    let ServiceBody { host, namespace, name, .. } = body;
    let own = !name.is_empty();
    let whole =
        |pair: Option<(&str, &str)>| pair.is_some_and(|(one, other)| one == name && other == namespace);
    // What `register` was told to call it.
    let entry = |by: &String| {
        let (kind, of) = by.split_once(' ').unwrap_or_default();
        let (its, name) = of.split_once('/').unwrap_or_default();
        kind == "ServiceEntry"
            && [name.to_owned(), format!("{its}/{name}"), format!("{name}.{its}")]
                .iter()
                .any(|is| is == named)
    };
    host == named
        || body.described_by.iter().any(entry)
        || own && (name == named || whole(named.split_once('.')))
        || own && whole(named.split_once('/').map(|(namespace, name)| (name, namespace)))
}

/// Which instances there are, as `2 of 3`.
fn instances(body: &ServiceBody) -> String {
    let running = body.instances.values().filter(|state| **state == State::Running).count();
    match body.instances.len() {
        0 => "none".to_owned(),
        all if all == running => all.to_string(),
        all => format!("{running} of {all}"),
    }
}

fn ports(body: &ServiceBody) -> String {
    let ports = body.ports.iter().map(|(number, protocol)| format!("{number}/{}", word(protocol)));
    ports.collect::<Vec<_>>().join(", ")
}

/// The registries of its instances, and who describes it.
fn from(body: &ServiceBody) -> String {
    let all = body.registries.iter().chain(&body.described_by);
    all.map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn overview(all: &[ServiceBody]) -> String {
    let row = |body: &ServiceBody| {
        let addresses: Vec<String> = body.virtual_addresses.iter().map(ToString::to_string).collect();
        [
            body.host.clone(),
            body.namespace.clone(),
            ports(body),
            instances(body),
            addresses.join(", "),
            from(body),
        ]
    };
    let header = ["SERVICE", "NAMESPACE", "PORTS", "INSTANCES", "ADDRESSES", "FROM"];
    table(header, all.iter().map(row))
}

fn details(body: &ServiceBody) -> String {
    let mut rows = vec![("namespace".to_owned(), body.namespace.clone()), ("ports".to_owned(), ports(body))];
    rows.extend(body.virtual_addresses.iter().map(|ip| ("virtual address".to_owned(), ip.to_string())));
    rows.extend(body.registries.iter().map(|from| ("registry".to_owned(), from.clone())));
    rows.extend(body.described_by.iter().map(|by| ("described by".to_owned(), by.clone())));
    let of = |(id, state): (&String, &State)| ("instance".to_owned(), format!("{id} ({})", word(state)));
    rows.extend(body.instances.iter().map(of));
    table(["SERVICE", &body.host], rows.into_iter().map(|(name, value)| [name, value]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_by_each_of_its_names_and_no_other() {
        let reviews = ServiceBody {
            host: "reviews.shop.svc.cluster.local".into(),
            namespace: "shop".into(),
            name: "reviews".into(),
            ..ServiceBody::default()
        };
        for named in ["reviews", "reviews.shop", "shop/reviews", "reviews.shop.svc.cluster.local"] {
            assert!(is(&reviews, named), "{named}");
        }
        for other in ["review", "reviews.bank", "bank/reviews", "reviews/shop", "shop.reviews", ""] {
            assert!(!is(&reviews, other), "{other}");
        }
        let outside = ServiceBody { host: "pay.example.com".into(), ..ServiceBody::default() };
        assert!(is(&outside, "pay.example.com") && !is(&outside, "") && !is(&outside, "."));
        let described = ServiceBody { described_by: vec!["ServiceEntry shop/pay".into()], ..outside };
        for named in ["pay", "shop/pay", "pay.shop"] {
            assert!(is(&described, named), "{named}");
        }
        assert!(!is(&described, "shop") && !is(&described, "ServiceEntry"));
    }
}
