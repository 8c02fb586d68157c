//! The applications of the demo's shop: small servers that know nothing of the mesh but to forward trace headers.
//!
//! One hidden subcommand runs one of them. Each answer names service and version, so that shares can be counted from outside.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::ValueEnum;

mod grpc;
mod http;
mod reply;
mod stock;
mod web;

pub(crate) use http::Pool;
pub(crate) use reply::Reply;

/// Which application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum App {
    /// HTTP; calls catalog and reviews, and keeps a TCP session to stock.
    Web,
    /// HTTP; calls pricing by gRPC.
    Catalog,
    /// HTTP.
    Reviews,
    /// gRPC.
    Pricing,
    /// A line protocol over TCP in which the server speaks first.
    Stock,
}

/// One application of the demo's shop.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ShopArgs {
    /// Which
    #[arg(value_enum)]
    pub(crate) app: App,
    /// What it answers as its version
    #[arg(long)]
    version: String,
    /// Where it listens
    #[arg(long)]
    listen: SocketAddr,
    /// Where catalog is, `host:port`
    #[arg(long)]
    catalog: Option<String>,
    /// Where reviews is, `host:port`
    #[arg(long)]
    reviews: Option<String>,
    /// Where pricing is, `host:port`
    #[arg(long)]
    pricing: Option<String>,
    /// Where stock is, `host:port`
    #[arg(long)]
    stock: Option<String>,
}

impl ShopArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let parent = outrigger_telemetry::drain::parent_stdin();
        let served = async {
            match self.app {
                App::Web => web::serve(&self).await,
                App::Catalog | App::Reviews => http::serve(&self).await,
                App::Pricing => grpc::serve(self.listen, &self.version).await,
                App::Stock => stock::serve(self.listen).await,
            }
        };
        tokio::select! {
            served = served => served?,
            // The demo is gone, and with it the reason to run.
            ended = parent => ended?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
