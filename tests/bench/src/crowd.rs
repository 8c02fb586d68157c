//! Memory of a sidecar that is subscribed to a large mesh: 1,000 services with 10 endpoints each.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrigger_tests::app;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;
use serde::Serialize;
use serde_json::json;

use crate::compare::Args;
use crate::peers::{Site, envoy, outrigger};
use crate::process::{Memory, Process, memory};

const SERVICES: u16 = 1000;
const ENDPOINTS: u16 = 10;

/// Memory of one peer.
#[derive(Serialize)]
pub struct Crowd {
    /// Whose.
    pub peer: String,
    /// Its one sidecar.
    pub memory: Memory,
}

/// The address of an endpoint.
pub fn address(service: u16, endpoint: u16) -> Ipv4Addr {
    let [high, low] = service.to_be_bytes();
    Ipv4Addr::new(10, high, low, 1 + endpoint as u8)
}

/// The peers of a run that can be in a crowd. Who asks for ours alone needs no other program.
fn crowds(peers: &[String]) -> impl Iterator<Item = &str> {
    peers.iter().map(String::as_str).filter(|peer| ["outrigger", "envoy"].contains(peer))
}

/// Measures one after the other.
pub async fn measure(args: &Args) -> Result<Vec<Crowd>> {
    let directory = tempfile::tempdir()?;
    let registry = directory.path().join("instances.yaml");
    std::fs::write(&registry, instances()?)?;
    let binary = args.bin().join("outrigger").display().to_string();
    let mesh = Mesh::start_with(&binary, json!({ "registryFiles": [registry], "sampling": 0.0 })).await;
    let (site, _app) = Site::open(&mesh, args.bin())?;
    site.write_pki().await?;
    let mut all = Vec::new();
    for peer in crowds(&args.peers) {
        let memory = match peer {
            "envoy" => of_envoy(&mesh, &site).await?,
            _ => of_ours(&mesh, &site).await?,
        };
        all.push(Crowd { peer: peer.into(), memory });
    }
    Ok(all)
}

async fn of_ours(mesh: &Mesh, site: &Site<'_>) -> Result<Memory> {
    let sidecar = outrigger::crowded(site, SERVICES).await?;
    settled(&sidecar).await?;
    let memory = memory(sidecar.pid())?;
    // After the measurement: the page itself takes memory.
    let (_, page) = app::get(mesh.address(41, 15000), "/clusters", "").await?;
    let wanted = usize::from(SERVICES * ENDPOINTS);
    ensure!(page.matches("\"inFlight\"").count() >= wanted, "not all endpoints are there");
    Ok(memory)
}

async fn of_envoy(mesh: &Mesh, site: &Site<'_>) -> Result<Memory> {
    let sidecar = envoy::crowded(site, SERVICES, ENDPOINTS)?;
    let admin = mesh.address(42, 15000);
    eventually("Envoy has all of it", || async {
        let (_, page) = app::get(admin, "/stats?filter=^cluster_manager.active_clusters$", "").await?;
        let done = page.contains(&format!("active_clusters: {SERVICES}"));
        if done { Ok(()) } else { Err(std::io::Error::other(page)) }
    })
    .await;
    settled(&sidecar).await?;
    memory(sidecar.pid())
}

/// Waits until a sidecar's memory has not moved for two seconds.
async fn settled(sidecar: &Process) -> Result<()> {
    let mut since = (memory(sidecar.pid())?.resident, Instant::now());
    while since.1.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = memory(sidecar.pid())?.resident;
        if now != since.0 {
            since = (now, Instant::now());
        }
    }
    Ok(())
}

fn instances() -> Result<String> {
    let mut text = String::from("instances:\n");
    for service in 0..SERVICES {
        for endpoint in 0..ENDPOINTS {
            writeln!(
                text,
                "- {{id: s{service}-{endpoint}, service: s{service}, namespace: shop, serviceAccount: s{service}, addresses: [{}], ports: [{{number: 80, protocol: http}}]}}",
                address(service, endpoint)
            )
            .context("text")?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo xtask dist` trains with these, and ships without any foreign program.
    #[test]
    fn a_run_of_ours_alone_asks_for_no_other_program() {
        let peers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(crowds(&peers(&["direct", "outrigger"])).eq(["outrigger"]));
        assert!(crowds(&peers(&["direct", "outrigger", "envoy", "floor"])).eq(["outrigger", "envoy"]));
    }
}
