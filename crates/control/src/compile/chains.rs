//! What all listeners are made of.

use std::net::SocketAddr;

use outrigger_model::listener::{
    ChainMatch, Codec, Direction, FilterChain, HttpConnection, Listener, RouteSource, Terminal, Tracing,
    TransportMatch,
};

use super::lens::Lens;

/// The HTTP connection manager of every chain that the control plane makes.
pub(super) fn http(lens: &Lens<'_>, routes: RouteSource) -> HttpConnection {
    let mut http = HttpConnection::new(routes);
    http.codec = Codec::Auto;
    http.tracing = Some(Tracing { random_sampling: lens.settings().sampling });
    http.path = lens.settings().path;
    http
}

pub(super) fn chain(name: &str, matches: ChainMatch, terminal: Terminal) -> FilterChain {
    FilterChain { matches, ..FilterChain::new(name, terminal) }
}

pub(super) fn listener(name: &str, addresses: Vec<SocketAddr>, chains: Vec<FilterChain>) -> Listener {
    Listener { addresses, chains, ..Listener::new(name, Direction::Outbound) }
}

/// HTTP by its first bytes. An application's own TLS may offer http/1.1 as well: what is inside of it is not ours to see.
pub(super) fn detected() -> ChainMatch {
    ChainMatch {
        transport: TransportMatch::Plain,
        application_protocols: vec!["http/1.1".into(), "h2c".into()],
        ..ChainMatch::default()
    }
}
