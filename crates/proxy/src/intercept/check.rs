//! Whether the rules are in force where no sidecar runs yet, for which [`super::probe`] is too early: it stands in at the sidecar's ports,
//! and must meet itself.
//!
//! For what starts before a sidecar and must not go on without the rules, such as a Pod whose rules are a CNI plugin's. It takes the options
//! of `apply`, so that whoever makes the rules finds them here.

use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Options, outbound_ports, probe};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);
/// For a connection on this host.
const PATIENCE: Duration = Duration::from_millis(500);

/// What to wait for, and how long.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Check {
    /// As they were applied, or are to be
    #[command(flatten)]
    pub options: Options,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub timeout: u64,
}

/// Says whether the rules are there, as soon as they are.
///
/// # Errors
/// What it takes to find out is not to be had.
pub fn run(check: &Check) -> anyhow::Result<bool> {
    let end = Instant::now() + Duration::from_secs(check.timeout);
    let listeners = stand_in(check.options.outbound_port)?;
    let addresses = probe::reachable();
    loop {
        anyhow::ensure!(
            !addresses.is_empty(),
            "there is no loopback address to ask from: is lo up in this Pod?"
        );
        let missing =
            addresses.iter().find_map(|address| meet(*address, &listeners).err().map(|why| (address, why)));
        let Some((address, why)) = missing else { return Ok(true) };
        if Instant::now() >= end {
            writeln!(
                io::stderr(),
                "error: connections of this Pod are not intercepted: a connection to {address} was not brought to the sidecar's ports \
                 within {} s ({why}). The CNI plugin of this node did not run for this Pod: see the DaemonSet outrigger-cni. Nothing else \
                 starts meanwhile; the node's agent makes the rules, and this is tried again",
                check.timeout
            )?;
            return Ok(false);
        }
        thread::sleep(PAUSE);
    }
}

/// Listens where the rules bring connections to; where somebody else does, that is the sidecar, and as good.
fn stand_in(port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        for port in outbound_ports(port).0 {
            match TcpListener::bind(SocketAddr::new(address, port)) {
                Ok(listener) => {
                    listener.set_nonblocking(true)?;
                    listeners.push(listener);
                }
                Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(listeners)
}

fn meet(address: SocketAddr, listeners: &[TcpListener]) -> Result<(), String> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| error.to_string())?;
    let own = stream.local_addr().map_err(|error| error.to_string())?;
    // What is not met here was taken by whoever listens there already.
    let met =
        |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).any(|(_, peer)| peer == own);
    match listeners.iter().any(met) || listeners.is_empty() {
        true => Ok(()),
        false => Err("somebody else answers there".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_brought_to_the_stand_in_is_met_and_who_meets_nobody_is_told_so() {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        own.set_nonblocking(true).unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let (here, there) = (own.local_addr().unwrap(), other.local_addr().unwrap());
        assert_eq!(meet(here, &[own.try_clone().unwrap()]), Ok(()));
        assert_eq!(meet(there, &[own]).unwrap_err(), "somebody else answers there");
        drop(other);
        assert!(meet(there, &[]).unwrap_err().contains("refused"));
    }
}
