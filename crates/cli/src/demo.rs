//! The demo: a control plane, a shop, one real sidecar per workload, a load, and rules pushed while it runs.
//!
//! Everything is this same binary, executed again; children end when their standard input does, so that nothing outlives the
//! demo, however it ends.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use outrigger_telemetry::drain;

use crate::command::traces;
use crate::waterfall;

mod bounds;
mod hosts;
mod load;
mod mesh;
mod steps;
mod switch;
mod tour;

use hosts::Hosts;
use load::Load;
use mesh::Mesh;

/// Run a shop in a mesh and push rules to it while it is under load.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Demo {
    /// Exit non-zero when an effect is missed
    #[arg(long)]
    assert: bool,
    /// Stay up after the tour
    #[arg(long)]
    keep: bool,
    /// Only these steps of the tour, by name, or `none`
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    steps: Vec<String>,
    /// Send spans to this OTLP/gRPC endpoint as well; default: 127.0.0.1:4317 if something listens there
    #[arg(long, value_name = "URL", conflicts_with = "intercept")]
    otlp: Option<String>,
    /// In network namespaces with real interception, the applications calling each other by name as if there were no mesh
    /// (root, nftables, iproute2)
    #[arg(long)]
    intercept: bool,
    /// The namespaces are there, and this is the load's
    #[arg(long, hide = true, requires = "intercept")]
    inside: Option<String>,
}

/// Throws a switch of an application.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Switch {
    address: SocketAddr,
    setting: String,
}

impl Switch {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        println!("{}", switch::throw(self.address, &self.setting).await?);
        Ok(ExitCode::SUCCESS)
    }
}

impl Demo {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let inside = match (&self.inside, self.intercept) {
            (None, true) => return hosts::with_hosts(&mesh::hosts(), mesh::LOAD).await,
            (inside, _) => inside.as_deref().map(Hosts::adopt),
        };
        let interrupted = tokio::signal::ctrl_c();
        let orphaned = async {
            match &inside {
                Some(_) => drain::parent_stdin().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = self.tour(inside.as_ref()) => done,
            ended = orphaned => {
                // Who made the namespaces is gone and cannot remove them.
                inside.iter().for_each(Hosts::remove);
                ended.map(|()| ExitCode::FAILURE).context("standard input")
            }
            signal = interrupted => {
                signal?;
                eprintln!("stopped");
                Ok(ExitCode::from(130))
            }
        }
    }

    async fn tour(&self, hosts: Option<&Hosts>) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let steps = tour::choose(&self.steps)?;
        let otlp = match &self.otlp {
            Some(url) => Some(url.clone()),
            None if self.intercept => None,
            None => listening_collector().await,
        };
        let mut mesh = Mesh::start(otlp, hosts).await?;
        println!(
            "✔ control plane {}   ✔ {n}/{n} sidecars ready, mTLS STRICT (SPIFFE, 24 h certificates)   {:.1} s",
            mesh.address(mesh::CONTROL, mesh::XDS),
            started.elapsed().as_secs_f64(),
            n = mesh.sidecars(),
        );
        let load = Load::start(&mesh.load_entry());
        let warm = load.window(Duration::from_secs(3), "warming up").await;
        println!(
            "✔ load {} requests/s through web, catalog, reviews, pricing, stock: success {:.1} %, p50 {:.1} ms",
            load::RATE,
            100.0 * load::success(&warm),
            load::latency(&warm, 0.5).as_secs_f64() * 1e3,
        );
        let mut missed = tour::run(&mesh, &load, &steps).await?;
        if let Err(error) = show_trace(&mesh).await {
            missed.push(format!("trace: {error:#}"));
        }
        if let Some(dead) = mesh.first_dead_child() {
            missed.push(format!("{dead} has ended during the tour"));
        }
        for miss in &missed {
            println!("✘ {miss}");
        }
        println!("{}", verdict(steps.len(), missed.len(), started.elapsed()));
        if self.keep {
            // Elsewhere these places are gone with the last line.
            mesh.print_places();
            println!("\nstaying up; Ctrl-C ends it");
            std::future::pending::<()>().await;
        }
        Ok(if self.assert && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// The last line. It claims no more than was looked at.
fn verdict(steps: usize, missed: usize, took: Duration) -> String {
    let took = took.as_secs_f64();
    match (steps, missed) {
        (0, 0) => format!("no step was taken, so no effect was looked for; {took:.0} s in all"),
        (1, 0) => format!("✔ the effect of the one step was seen, {took:.0} s in all"),
        (_, 0) => format!("✔ the effects of all {steps} steps were seen, {took:.0} s in all"),
        (..) => format!("✘ {missed} missed, {took:.0} s in all"),
    }
}

async fn listening_collector() -> Option<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], 4317));
    let connect = tokio::net::TcpStream::connect(address);
    let connected = tokio::time::timeout(Duration::from_millis(200), connect).await;
    matches!(connected, Ok(Ok(_))).then(|| format!("http://{address}"))
}

/// Services that a whole trace of the shop has.
const HOPS: [&str; 5] = ["load.shop", "web.shop", "catalog.shop", "reviews.shop", "pricing.shop"];

/// Prints the newest whole trace.
async fn show_trace(mesh: &Mesh) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let found = traces::fetch(&mesh.query_url(), "/api/traces?service=web.shop&limit=40").await?;
        let whole = found.iter().find(|t| HOPS.iter().all(|hop| t.spans.iter().any(|s| s.service == *hop)));
        if let Some(trace) = whole {
            println!("\n{}", waterfall::render(trace));
            return Ok(());
        }
        if Instant::now() > deadline {
            let most = found.iter().map(|t| t.spans.len()).max().unwrap_or_default();
            return Err(anyhow::anyhow!("{} traces, the largest of {most} spans", found.len()))
                .context(format!("no trace has all of {HOPS:?}"));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_claims_no_more_than_it_looked_at() {
        let took = Duration::from_secs(9);
        let none = verdict(0, 0, took);
        assert!(!none.contains('✔') && none.contains("no step"), "{none}");
        assert_eq!(verdict(7, 0, took), "✔ the effects of all 7 steps were seen, 9 s in all");
        assert_eq!(verdict(7, 2, took), "✘ 2 missed, 9 s in all");
    }
}
