//! Socket addresses and address ranges.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::flaw::{Decoded, Flaw, Under, flaw};
use super::value::port;
use crate::wire::core::{self, address, socket_address};

pub(super) fn encode(socket: SocketAddr) -> core::Address {
    core::Address {
        address: Some(address::Address::SocketAddress(core::SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::from(socket.port()))),
            ..Default::default()
        })),
    }
}

pub(super) fn decode(wire: Option<&core::Address>) -> Decoded<SocketAddr> {
    let Some(address) = wire.and_then(|w| w.address.as_ref()) else {
        return Err(Flaw::new("an IP address and a port are required"));
    };
    let address::Address::SocketAddress(socket) = address else {
        return Err(Flaw::new("only a socket_address (IP and port) is supported"));
    };
    numeric(socket).under("socket_address")
}

fn numeric(socket: &core::SocketAddress) -> Decoded<SocketAddr> {
    if socket.protocol != socket_address::Protocol::Tcp as i32 {
        return flaw("protocol", "only TCP is supported");
    }
    let ip: IpAddr = match socket.address.parse() {
        Ok(ip) => ip,
        Err(_) => return flaw("address", format!("\"{}\" is no IP address", socket.address)),
    };
    match &socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(value)) => {
            Ok(SocketAddr::new(ip, port(*value, "port_value")?))
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
