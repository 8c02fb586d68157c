//! Inbound listeners: one per address and port of the client's own registration, with its mTLS mode and authorization, one per
//! address and port that `portLevelMtls` names, and one per address for all other ports (port 0), which interception brings
//! as well.

use std::net::SocketAddr;

use outrigger_model::listener::{
    ChainMatch, Direction, FilterChain, HttpFilter, Listener, RouteSource, ServerTls, TcpProxy, Terminal,
    TransportMatch,
};
use outrigger_model::route::{
    Forward, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
};
use outrigger_rules::intent::MtlsMode;

use super::authorization;
use super::chains::{chain, http};
use super::inbound_limits;
use super::ingress::{self, OTHER_PORTS};
use super::lens::Lens;
use super::names;
use super::{tokens, upgrade};
use crate::instance::{Instance, Protocol};

/// The names of all inbound listeners of a client.
pub(super) fn names_for(lens: &Lens<'_>) -> Vec<String> {
    let Some(own) = lens.own() else { return Vec::new() };
    let served = ingress::ports(lens, own);
    let unregistered = lens.mtls_ports(own).filter(|port| !served.contains(port));
    let at = |port: u16| own.addresses.iter().map(move |ip| SocketAddr::new(*ip, port));
    served
        .iter()
        .copied()
        .chain(unregistered)
        .chain([OTHER_PORTS])
        .flat_map(at)
        .map(names::inbound_listener)
        .collect()
}

/// The inbound listener of a name; `None` unless the address and port are the client's own.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<Listener> {
    let address = names::parse_inbound_listener(name)?;
    let own = lens.own()?;
    if !own.addresses.contains(&address.ip()) {
        return None;
    }
    let protocol = match address.port() {
        // Nothing is known of them but that they are the workload's: bytes, under the same mTLS mode and authorization.
        OTHER_PORTS => Protocol::Tcp,
        port => match ingress::protocol(lens, own, address) {
            Some(protocol) => protocol,
            // Not registered, but a policy gives it a mode of its own, or it is known at another address.
            None => {
                let mut named = lens.mtls_ports(own).chain(ingress::ports(lens, own));
                named.find(|named| *named == port).map(|_| Protocol::Tcp)?
            }
        },
    };
    Some(Listener {
        addresses: vec![address],
        chains: chains(lens, own, address, protocol),
        ..Listener::new(name, Direction::Inbound)
    })
}

const HTTP_ALPN: [&str; 2] = ["istio-http/1.1", "istio-h2"];
const DETECTED_HTTP: [&str; 2] = ["http/1.1", "h2c"];

fn chains(lens: &Lens<'_>, own: &Instance, address: SocketAddr, protocol: Protocol) -> Vec<FilterChain> {
    let mode = lens.mtls_mode(own, address.port());
    let cluster = ingress::cluster_name(lens, address);
    let web = || web(lens, own, address.port(), &cluster);
    let tcp = || Terminal::Tcp(TcpProxy::new(vec![WeightedCluster::only(cluster.clone())]));
    let on = |transport, protocols: &[&str]| ChainMatch {
        transport,
        application_protocols: protocols.iter().map(|p| (*p).to_owned()).collect(),
        ..ChainMatch::default()
    };
    let mut chains = Vec::new();
    if mode != MtlsMode::Disable {
        // Under STRICT all TLS is the mesh's; under PERMISSIVE only what says so by its ALPN, the rest is the app's own.
        let (mesh_http, mesh_tcp): (&[&str], &[&str]) = match mode {
            MtlsMode::Strict => (&[], &[]),
            _ => (&["istio-http/1.1", "istio-h2", "istio"], &["istio"]),
        };
        match protocol {
            Protocol::Tls | Protocol::Tcp => {
                chains.push(mesh(chain("mtls-tcp", on(TransportMatch::Tls, mesh_tcp), tcp())))
            }
            Protocol::Auto => {
                chains.push(mesh(chain("mtls-http", on(TransportMatch::Tls, &HTTP_ALPN), web())));
                chains.push(mesh(chain("mtls-tcp", on(TransportMatch::Tls, mesh_tcp), tcp())));
            }
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
                chains.push(mesh(chain("mtls-http", on(TransportMatch::Tls, mesh_http), web())));
            }
        }
    }
    if mode != MtlsMode::Strict {
        match protocol {
            Protocol::Tls | Protocol::Tcp => {
                chains.push(chain("plain-tcp", on(TransportMatch::Plain, &[]), tcp()))
            }
            Protocol::Auto => {
                chains.push(chain("plain-http", on(TransportMatch::Plain, &DETECTED_HTTP), web()));
                chains.push(chain("plain-tcp", on(TransportMatch::Plain, &[]), tcp()));
            }
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
                chains.push(chain("plain-http", on(TransportMatch::Plain, &[]), web()));
            }
        }
        chains.push(chain("app-tls", on(TransportMatch::Tls, &[]), tcp()));
    }
    let said = ingress::protocol(lens, own, address).is_some();
    let opaque = said && matches!(protocol, Protocol::Tls | Protocol::Tcp);
    for chain in &mut chains {
        if matches!(chain.terminal, Terminal::Tcp(_)) {
            chain.authorization = authorization::of_connections(lens, own, opaque);
        }
    }
    chains
}

fn mesh(mut chain: FilterChain) -> FilterChain {
    let alpn = match chain.terminal {
        Terminal::Http(_) => vec!["istio-h2", "istio-http/1.1", "h2", "http/1.1", "istio"],
        Terminal::Tcp(_) => vec!["istio"],
    };
    chain.tls = Some(ServerTls::Mesh { alpn: alpn.into_iter().map(str::to_owned).collect() });
    chain
}

fn web(lens: &Lens<'_>, own: &Instance, port: u16, cluster: &str) -> Terminal {
    let route = Route {
        name: "default".into(),
        matches: RouteMatch::any(),
        // The client's sidecar owns timeouts and retries; here nothing is tried again.
        action: RouteAction::Forward(Forward {
            clusters: vec![WeightedCluster::only(cluster)],
            ..Forward::default()
        }),
        ..Route::default()
    };
    let mut routes = vec![route];
    upgrade::add(&mut routes, &upgrade::inbound(lens, own, port));
    let host =
        VirtualHost { name: format!("inbound|{port}"), domains: vec!["*".into()], routes, retry: None };
    let routes = RouteSource::Inline(RouteConfig { name: cluster.to_owned(), virtual_hosts: vec![host] });
    let mut http = http(lens, routes);
    // What tokens say, policies look at.
    http.filters = tokens::compile(lens, own).map(Box::new).map(HttpFilter::Tokens).into_iter().collect();
    http.filters.extend(authorization::of_requests(lens, own));
    // What is denied does not count.
    http.filters.extend(inbound_limits::compile(lens, own));
    Terminal::Http(Box::new(http))
}
