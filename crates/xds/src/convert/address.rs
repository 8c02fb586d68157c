//! Socket addresses and address ranges.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use outrigger_model::endpoint::NamedAddress;

use super::flaw::{Decoded, Flaw, Under, flaw};
use super::value::port;
use crate::wire::core::{self, address, socket_address};

/// What an endpoint may be found at: an address, or a name where DNS is asked.
pub(super) trait Place: Sized {
    /// Address or name, and port.
    fn parts(&self) -> (String, u16);
    /// What a text and a port mean.
    fn from_parts(text: &str, port: u16) -> Decoded<Self>;
}

impl Place for SocketAddr {
    fn parts(&self) -> (String, u16) {
        (self.ip().to_string(), self.port())
    }

    fn from_parts(text: &str, port: u16) -> Decoded<Self> {
        match text.parse::<IpAddr>() {
            Ok(ip) => Ok(Self::new(ip, port)),
            Err(_) => flaw("address", format!("\"{text}\" is no IP address")),
        }
    }
}

impl Place for NamedAddress {
    fn parts(&self) -> (String, u16) {
        (self.host.clone(), self.port)
    }

    fn from_parts(text: &str, port: u16) -> Decoded<Self> {
        let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if host.parse::<IpAddr>().is_err() && (host.len() > 253 || !host.split('.').all(label)) {
            return flaw("address", format!("{text:?} is no name that DNS could know"));
        }
        Ok(Self { host, port })
    }
}

pub(super) fn encode(place: &impl Place) -> core::Address {
    let (text, port) = place.parts();
    core::Address {
        address: Some(address::Address::SocketAddress(core::SocketAddress {
            address: text,
            port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::from(port))),
            ..Default::default()
        })),
    }
}

pub(super) fn decode<A: Place>(wire: Option<&core::Address>) -> Decoded<A> {
    let Some(address) = wire.and_then(|w| w.address.as_ref()) else {
        return Err(Flaw::new("an IP address and a port are required"));
    };
    let address::Address::SocketAddress(socket) = address else {
        return Err(Flaw::new("only a socket_address (IP and port) is supported"));
    };
    read(socket).under("socket_address")
}

fn read<A: Place>(socket: &core::SocketAddress) -> Decoded<A> {
    if socket.protocol != socket_address::Protocol::Tcp as i32 {
        return flaw("protocol", "only TCP is supported");
    }
    match &socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(value)) => {
            A::from_parts(&socket.address, port(*value, "port_value")?)
        }
        Some(socket_address::PortSpecifier::NamedPort(_)) => {
            flaw("named_port", "only a port_value is supported")
        }
        None => flaw("port_value", "is required"),
    }
}

pub(super) fn encode_range(net: &IpNet) -> core::CidrRange {
    core::CidrRange {
        address_prefix: net.addr().to_string(),
        prefix_len: crate::wire::uint(u32::from(net.prefix_len())),
    }
}

pub(super) fn decode_range(wire: &core::CidrRange) -> Decoded<IpNet> {
    let ip: IpAddr = match wire.address_prefix.parse() {
        Ok(ip) => ip,
        Err(_) => return flaw("address_prefix", format!("\"{}\" is no IP address", wire.address_prefix)),
    };
    // Envoy: an absent length is 0, which matches every address of the family.
    let length = wire.prefix_len.map_or(0, |v| v.value);
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(ip, length).ok())
        .map_or_else(|| flaw("prefix_len", format!("{length} is too long for {ip}")), Ok)
}
