//! `token create` and `identity issue`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use outrigger_control::api::types::{IdentityRequest, TokenRequest};
use outrigger_identity::state_dir::write_private;

use super::Server;

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

/// Certificates for machines without a sidecar.
#[derive(Debug, clap::Args)]
pub(crate) struct Identity {
    #[command(subcommand)]
    verb: IdentityVerb,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum IdentityVerb {
    /// Write key.pem, certificate.pem and roots.pem
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
}

impl Identity {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.server.client()?;
        let IdentityVerb::Issue { namespace, service_account, ttl_seconds, directory } = self.verb;
        let issued =
            client.issue_identity(&IdentityRequest { namespace, service_account, ttl_seconds }).await?;
        std::fs::create_dir_all(&directory)?;
        for (name, text) in
            [("key.pem", &issued.key), ("certificate.pem", &issued.certificate), ("roots.pem", &issued.roots)]
        {
            write_private(&directory.join(name), text.as_bytes())?;
        }
        println!("{} until {}", issued.identity, issued.not_after);
        Ok(ExitCode::SUCCESS)
    }
}
