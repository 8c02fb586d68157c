//! Requests are weighed before they are decoded: a name of no bytes is two on the wire and many in memory.

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;

use super::LONGEST_NAME;
use crate::wire::discovery;

/// Fields of a message: as many names as may be subscribed to, given up and had, of one kind.
const MOST_FIELDS: usize = 65_536;
/// Bytes of what a client says of itself; Envoy lists all its extensions.
const LONGEST_NODE: usize = 512 << 10;
/// Bytes of a refusal.
const LONGEST_REFUSAL: usize = 1 << 20;
/// A version of a name besides it, and the frame around both.
const MORE: usize = 512;

/// A request that can be weighed.
pub(super) trait Weighed: Message + Default + 'static {
    /// The field that says who the client is.
    const NODE: u32;
    /// The field of a refusal.
    const REFUSAL: u32;
}

impl Weighed for discovery::DeltaDiscoveryRequest {
    const NODE: u32 = 1;
    const REFUSAL: u32 = 7;
}

impl Weighed for discovery::DiscoveryRequest {
    const NODE: u32 = 2;
    const REFUSAL: u32 = 6;
}

/// Weighs a message, and decodes it.
#[allow(clippy::result_large_err)] // tonic's own type
pub(super) fn weighed<M: Weighed>(message: Bytes) -> Result<M, Status> {
    weigh(&message, M::NODE, M::REFUSAL)?;
    M::decode(message)
        .map_err(|error| Status::invalid_argument(format!("the request cannot be read: {error}")))
}

/// Looks at a request's outermost fields.
#[allow(clippy::result_large_err)] // tonic's own type
fn weigh(mut message: &[u8], node: u32, refusal: u32) -> Result<(), Status> {
    let unreadable = |error| Status::invalid_argument(format!("the request cannot be read: {error}"));
    let mut fields = 0;
    while message.has_remaining() {
        fields += 1;
        if fields > MOST_FIELDS {
            let why = format!("a request has at most {MOST_FIELDS} names and fields");
            return Err(Status::resource_exhausted(why));
        }
        let (field, kind) = decode_key(&mut message).map_err(unreadable)?;
        if kind != WireType::LengthDelimited {
            skip_field(kind, field, &mut message, DecodeContext::default()).map_err(unreadable)?;
            continue;
        }
        let length = decode_varint(&mut message).map_err(unreadable)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= message.len());
        let Some(length) = length else {
            return Err(Status::invalid_argument("the request cannot be read: a field is longer than it"));
        };
        let most = match field {
            field if field == node => LONGEST_NODE,
            field if field == refusal => LONGEST_REFUSAL,
            _ => LONGEST_NAME + MORE,
        };
        if length > most {
            let why = format!("field {field} of a request has {length} bytes, the most are {most}");
            return Err(Status::resource_exhausted(why));
        }
        message.advance(length);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::wire::core;

    fn weight<M: Weighed>(message: &M) -> Result<(), Code> {
        weigh(&message.encode_to_vec(), M::NODE, M::REFUSAL).map_err(|status| status.code())
    }

    fn subscribe(names: Vec<String>) -> discovery::DeltaDiscoveryRequest {
        let node = core::Node { id: "n".repeat(100_000), ..Default::default() };
        discovery::DeltaDiscoveryRequest {
            node: Some(node),
            resource_names_subscribe: names,
            ..Default::default()
        }
    }

    #[test]
    fn names_are_bounded_in_number_and_length_and_what_an_envoy_says_of_itself_fits() {
        let whole = (0..20_000).map(|n| format!("outbound|8080||service-{n}.shop.svc.cluster.local"));
        let mut all = subscribe(whole.collect());
        let names = all.resource_names_subscribe.clone();
        all.initial_resource_versions = names.into_iter().map(|name| (name, "0".repeat(32))).collect();
        assert_eq!(weight(&all), Ok(()), "a client that comes back with all that it may have");
        assert_eq!(weight(&subscribe(vec!["x".repeat(2000)])), Err(Code::ResourceExhausted));
        assert_eq!(weight(&subscribe(vec![String::new(); MOST_FIELDS])), Err(Code::ResourceExhausted));
        let whole_set = discovery::DiscoveryRequest {
            node: subscribe(Vec::new()).node,
            resource_names: vec!["x".repeat(2000)],
            ..Default::default()
        };
        assert_eq!(weight(&whole_set), Err(Code::ResourceExhausted));
        assert_eq!(weigh(&[0x1a, 0xff, 0xff, 0x03], 1, 7).unwrap_err().code(), Code::InvalidArgument);
    }
}
