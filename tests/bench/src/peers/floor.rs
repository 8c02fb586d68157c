//! The bare relay pair.

use anyhow::Result;

use super::{Peer, SIDECAR_CPU, Site, argv, path_text};
use crate::Ports;
use crate::process::Process;

/// Starts it.
pub fn start(site: &Site<'_>) -> Result<Peer> {
    let (front, middle) = (site.ports(41, 15101), site.ports(42, 8080));
    let inbound = end(site, "echo", &middle, &site.app, true)?;
    let outbound = end(site, "load", &front, &middle, false)?;
    Ok(Peer { name: "floor", front, sidecars: vec![outbound, inbound] })
}

fn end(site: &Site<'_>, name: &str, from: &Ports, to: &Ports, inbound: bool) -> Result<Process> {
    let pairs: Vec<String> =
        from.all().iter().zip(to.all()).map(|((_, from), (_, to))| format!("{from}={to}")).collect();
    let program = path_text(&std::env::current_exe()?);
    let pki = path_text(&site.directory);
    let mut words = argv([&program, "floor", "--relay", &pairs.join(","), "--pki", &pki, "--name", name]);
    words.extend(inbound.then(|| "--inbound".to_owned()));
    Process::start(&format!("floor-{name}"), SIDECAR_CPU, &words, &site.directory)
}
