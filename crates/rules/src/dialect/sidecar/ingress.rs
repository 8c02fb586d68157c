//! `ingress`: what comes in, and where the application takes it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{not_bound, port};
use crate::dialect::destination_rule::policy::pool;
use crate::finding::quote;
use crate::intent::{AppAddress, Ingress};
use crate::reader::{At, Fields, Reader, Table};

const INGRESS: Table = Table::new(
    "an ingress listener",
    &["port", "bind", "captureMode", "defaultEndpoint", "tls", "connectionPool"],
);
const TLS: Table = Table::new(
    "server TLS settings",
    &[
        "mode",
        "httpsRedirect",
        "serverCertificate",
        "privateKey",
        "caCertificates",
        "caCrl",
        "subjectAltNames",
        "credentialName",
        "credentialNames",
        "caCertCredentialName",
        "tlsCertificates",
        "verifyCertificateSpki",
        "verifyCertificateHash",
        "minProtocolVersion",
        "maxProtocolVersion",
        "cipherSuites",
        "alpnProtocols",
        "ecdhCurves",
        "insecureSkipVerify",
    ],
);

const CAPTURED: &str = "nothing is opened for it; what comes to the workload's own addresses at this port is taken, as sidecars are told \
                        to take it by their bootstrap file or by interception";

pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<Ingress> {
    let mut all: Vec<Ingress> = Vec::new();
    let mut ports = HashSet::new();
    for item in reader.list(at) {
        let Some(read) = one(reader, &item) else { continue };
        match ports.insert(read.port) {
            true => all.push(read),
            false => {
                reader.error(&item, format!("{}: the port {} has a listener already", item.path, read.port))
            }
        }
    }
    all
}

fn one(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Ingress> {
    let fields = reader.fields(at, &INGRESS)?;
    not_bound(reader, fields.get("captureMode"), CAPTURED);
    let bind = bind(reader, &fields);
    let app = app(reader, &fields);
    if let Some(at) = fields.get("tls") {
        reader.fields(&at, &TLS);
        let message = format!(
            "{} is not implemented by Outrigger, and without it the port would be open to plain text: give it a PeerAuthentication, or \
             let the application end its own TLS",
            at.path
        );
        reader.error(&at, message);
    }
    let pool = fields.get("connectionPool").and_then(|at| pool(reader, &at));
    let Some(port_at) = fields.get("port") else {
        reader.missing(&fields, "port");
        return None;
    };
    let (number, protocol) = port(reader, &port_at)?;
    let number = u16::try_from(number).ok().filter(|number| *number > 0);
    if number.is_none() {
        reader.error(&port_at, format!("{}.number must be from 1 to 65535", port_at.path));
    }
    Some(Ingress { port: number?, protocol, bind, app, pool, place: at.place() })
}

/// One of the workload's own addresses; the unspecified one is all of them.
fn bind(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<IpAddr> {
    let at = fields.get("bind")?;
    let text = reader.text(Some(at.clone()))?;
    if text.is_empty() {
        return None;
    }
    let Ok(address) = text.parse::<IpAddr>() else {
        let message =
            format!("{} must be an address, not {}: nothing comes in by socket files", at.path, quote(&text));
        reader.error(&at, message);
        return None;
    };
    if is_localhost(address) {
        reader.not_implemented(&at, CAPTURED);
        return None;
    }
    Some(address).filter(|address| !address.is_unspecified())
}

/// Of all loopback addresses Istio takes these.
fn is_localhost(address: IpAddr) -> bool {
    address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

fn app(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<AppAddress> {
    let at = fields.get("defaultEndpoint")?;
    let text = reader.text(Some(at.clone()))?;
    if text.is_empty() {
        return None;
    }
    if text.starts_with("unix://") {
        let message = format!(
            "{} is a socket file, and sidecars of Outrigger connect to none: let the application listen on 127.0.0.1",
            at.path
        );
        reader.error(&at, message);
        return None;
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => {}
        Ok(address) if is_localhost(address.ip()) => return Some(AppAddress::Loopback(address)),
        Ok(address) if address.ip().is_unspecified() => {
            return Some(AppAddress::Instance(address.port()));
        }
        _ => {}
    }
    let message = format!(
        "{} must be 127.0.0.1:PORT or [::1]:PORT (loopback), or 0.0.0.0:PORT or [::]:PORT (the workload's own address), not {}",
        at.path,
        quote(&text)
    );
    reader.error(&at, message);
    None
}
