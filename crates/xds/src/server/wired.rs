//! A resource as it travels, the same for all of its clients: put together once, and from then on only copied.

use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::Version;
use crate::Encoded;

/// `resources` of a `DeltaDiscoveryResponse`.
const RESOURCES: u32 = 2;
/// Of a `Resource`.
const VERSION: u32 = 1;
const BODY: u32 = 2;
const NAME: u32 = 3;
/// Of an `Any`.
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;

/// One of the `resources` of a response, with tag and length; what is in its `Any` is at the end.
#[derive(Debug, Default)]
pub(super) struct Wired {
    bytes: Box<[u8]>,
    value: usize,
}

impl Wired {
    pub(super) fn new(name: &str, version: Version, encoded: &Encoded) -> Self {
        let version = version.to_string();
        let Encoded { type_url, value } = encoded;
        let any = length(TYPE_URL, type_url.len()) + length(VALUE, value.len());
        let resource = length(NAME, name.len()) + length(VERSION, version.len()) + length(BODY, any);
        let mut bytes = Vec::with_capacity(length(RESOURCES, resource));
        head(RESOURCES, resource, &mut bytes);
        text(NAME, name, &mut bytes);
        text(VERSION, &version, &mut bytes);
        head(BODY, any, &mut bytes);
        text(TYPE_URL, type_url, &mut bytes);
        head(VALUE, value.len(), &mut bytes);
        let at = bytes.len();
        bytes.extend_from_slice(value);
        Self { bytes: bytes.into(), value: at }
    }

    /// For a response.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The resource's own.
    pub(super) fn value(&self) -> &[u8] {
        &self.bytes[self.value..]
    }
}

/// Bytes of a field of so many bytes.
pub(super) fn length(tag: u32, bytes: usize) -> usize {
    key_len(tag) + encoded_len_varint(bytes as u64) + bytes
}

/// Begins a field of so many bytes.
fn head(tag: u32, bytes: usize, into: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, into);
    encode_varint(bytes as u64, into);
}

/// A whole field.
pub(super) fn text(tag: u32, text: &str, into: &mut impl BufMut) {
    head(tag, text.len(), into);
    into.put_slice(text.as_bytes());
}
