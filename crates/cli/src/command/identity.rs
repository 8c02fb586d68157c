//! `token create`, and `identity`: issue, revoke, rotate the root.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use outrigger_control::api::types::{
    AuthorityBody, IdentityBody, IdentityRequest, InForce, RevocationRequest, TokenRequest, WaitQuery,
};
use outrigger_control::client::Client;
use outrigger_identity::state_dir::write_private;

use super::Server;
use crate::print::table;

/// Join tokens.
#[derive(Debug, clap::Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: TokenVerb,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Print a join file: address, roots, token
    Create {
        /// Namespace of the identity
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Service account of the identity
        #[arg(long, default_value = "default")]
        service_account: String,
        /// Service that the identity may register; may be repeated
        #[arg(long = "service")]
        services: Vec<String>,
        /// Addresses that the identity's instances may have, beside that from which it calls: 10.1.0.0/16, 10.1.2.3,
        /// NETWORK/10.1.0.0/16; may be repeated
        #[arg(long = "range")]
        ranges: Vec<String>,
        /// Seconds until the token ends
        #[arg(long)]
        ttl_seconds: Option<u64>,
        /// The control plane's address in the join file, `host:port`
        #[arg(long)]
        address: Option<String>,
    },
}

impl Token {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client()?;
        let TokenVerb::Create { namespace, service_account, services, ranges, ttl_seconds, address } =
            self.verb;
        let request =
            TokenRequest { namespace, service_account, services, ranges, ttl_seconds, uses: None, address };
        let join = client.create_token(&request).await?;
        println!("{}", join.to_json());
        eprintln!("this file is a secret: whoever has it can become the workload");
        if is_loopback(&join.address) {
            eprintln!(
                "it names {}, which is this host only; --address names one that others reach",
                join.address
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether no other host reaches `host:port`.
fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => address.starts_with("localhost:"),
    }
}

/// Certificates and whom they are trusted for.
#[derive(Debug, clap::Args)]
pub(crate) struct Identity {
    #[command(subcommand)]
    verb: IdentityVerb,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum IdentityVerb {
    /// Write key.pem, certificate.pem and roots.pem, for a machine without a sidecar
    Issue {
        /// Namespace of the identity
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Service account of the identity
        #[arg(long, default_value = "default")]
        service_account: String,
        /// Seconds until the certificate ends
        #[arg(long)]
        ttl_seconds: Option<u64>,
        /// Where to write
        #[arg(long, default_value = ".")]
        directory: PathBuf,
    },
    /// Cut off an identity with its join tokens, or one certificate; returns when every sidecar refuses it
    Revoke(Whom),
    /// Take a revocation back
    Reinstate(Whom),
    /// List who is revoked
    Revoked,
    /// Make a new root and sign with it; the old one stays trusted until it is forgotten
    RotateRoot,
    /// Trust certificates under old roots no longer; refused while some may be in use
    ForgetOldRoots {
        /// Even then
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Whom {
    /// Namespace of the identity
    #[arg(short, long, default_value = "default", conflicts_with = "serial")]
    namespace: String,
    /// Service account of the identity
    #[arg(long, required_unless_present = "serial", conflicts_with = "serial")]
    service_account: Option<String>,
    /// Serial number of a certificate, hex, as `/certs` of a sidecar shows it
    #[arg(long)]
    serial: Option<String>,
    /// Seconds to wait for the sidecars
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
}

impl Whom {
    fn request(&self) -> RevocationRequest {
        let namespace = self.service_account.is_some().then(|| self.namespace.clone());
        let (service_account, serial) = (self.service_account.clone(), self.serial.clone());
        RevocationRequest { namespace, service_account, serial }
    }
}

impl Identity {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client()?;
        match self.verb {
            IdentityVerb::Issue { namespace, service_account, ttl_seconds, directory } => {
                let request = IdentityRequest { namespace, service_account, ttl_seconds };
                write_identity(&directory, &client.issue_identity(&request).await?)?;
            }
            IdentityVerb::Revoke(whom) => {
                let done = client.revoke(&whom.request()).await?;
                println!("{} is revoked, {} join token(s) with it", done.entry, done.tokens);
                return settle(&client, done.generation, whom.timeout).await;
            }
            IdentityVerb::Reinstate(whom) => {
                let done = client.reinstate(&whom.request()).await?;
                println!("{} is trusted again; it needs a new join token", done.entry);
                return settle(&client, done.generation, whom.timeout).await;
            }
            IdentityVerb::Revoked => {
                let rows = client.revoked().await?;
                let rows = rows.into_iter().map(|row| [row.entry, row.by, row.at.to_string()]);
                print!("{}", table(["REVOKED", "BY", "AT"], rows));
            }
            IdentityVerb::RotateRoot => {
                print_roots(&client.rotate_root().await?);
                eprintln!(
                    "new certificates are signed under the first one; when all others have been renewed, end the rotation \
                     with `outrigger identity forget-old-roots`"
                );
            }
            IdentityVerb::ForgetOldRoots { force } => print_roots(&client.forget_old_roots(force).await?),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_roots(authority: &AuthorityBody) {
    authority.roots.iter().for_each(|root| println!("{root}"));
}

fn write_identity(directory: &Path, issued: &IdentityBody) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (name, text) in
        [("key.pem", &issued.key), ("certificate.pem", &issued.certificate), ("roots.pem", &issued.roots)]
    {
        write_private(&directory.join(name), text.as_bytes())?;
    }
    println!("{} until {}", issued.identity, issued.not_after);
    Ok(())
}

/// Waits until every sidecar has a generation, and says who lacks it.
pub(super) async fn settle(client: &Client, generation: u64, timeout: f64) -> anyhow::Result<ExitCode> {
    let query = WaitQuery { generation: Some(generation), timeout: Some(timeout) };
    let InForce { proxies, of, waiting, complete, .. } = client.wait(&query).await?;
    let waits = if complete { String::new() } else { format!("; waiting for {}", waiting.join(", ")) };
    eprintln!("in force on {proxies}/{of} proxies{waits}");
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
