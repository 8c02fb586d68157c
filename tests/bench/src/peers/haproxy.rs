//! HAProxy of Debian: the leanest L7 proxy in common use.

use std::fmt::Write;

use anyhow::Result;

use super::{Peer, SIDECAR_CPU, Site, argv, http_version, program};
use crate::Ports;
use crate::process::Process;

const COMMON: &str = "global
    nbthread 1
    maxconn 9800
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
    ssl-default-server-options ssl-min-ver TLSv1.3
    ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
";

/// Starts it.
pub fn start(site: &Site<'_>) -> Result<Peer> {
    let (front, middle) = (site.ports(31, 15101), site.ports(32, 8080));
    let inbound = end(site, "echo", &middle, &site.app, true)?;
    let outbound = end(site, "load", &front, &middle, false)?;
    Ok(Peer { name: "haproxy", front, sidecars: vec![outbound, inbound] })
}

fn end(site: &Site<'_>, name: &str, from: &Ports, to: &Ports, inbound: bool) -> Result<Process> {
    let directory = site.directory.display();
    let tls = format!("ssl crt {directory}/{name}.both ca-file {directory}/roots.pem verify required");
    let mut config = COMMON.to_owned();
    for ((kind, from), (_, to)) in from.all().into_iter().zip(to.all()) {
        let version = http_version(kind);
        let alpn = match version {
            Some(1) => " alpn http/1.1",
            Some(_) => " alpn h2",
            None => "",
        };
        let clear = if version == Some(2) { " proto h2" } else { "" };
        let (bind, server) = if inbound {
            (format!(" {tls}{alpn}"), clear.to_owned())
        } else {
            // Without `sni`: HAProxy would look for it in the certificate, which has only a SPIFFE id.
            (clear.to_owned(), format!(" {tls}{alpn}"))
        };
        writeln!(config, "listen {kind:?}\n    bind {from} backlog 4096{bind}")?;
        if version.is_some() {
            config.push_str("    http-reuse always\n");
            if inbound {
                config.push_str("    http-request deny unless { ssl_c_verify 0 } { path_beg / }\n");
            }
        } else {
            config.push_str("    mode tcp\n");
        }
        writeln!(config, "    server one {to}{server}")?;
    }
    let file = site.write(&format!("haproxy-{name}.cfg"), &config)?;
    let words = argv([&program("haproxy")?, "-db", "-f", &file]);
    Process::start(&format!("haproxy-{name}"), SIDECAR_CPU, &words, &site.directory)
}
