//! The typed details of a NACK: which resources of a response were refused, by field path and reason.

use prost::Message;

use crate::wire::own::NackDetails;
pub(crate) use crate::wire::own::nack_details::Entry;
use crate::wire::rpc;

const TYPE_URL: &str = "type.googleapis.com/outrigger.v1.NackDetails";
/// `google.rpc.Code.INVALID_ARGUMENT`.
#[cfg(feature = "client")]
const INVALID_ARGUMENT: i32 = 3;

/// The status of a NACK that names each refused resource.
#[cfg(feature = "client")]
pub(crate) fn status(mut entries: Vec<Entry>) -> rpc::Status {
    entries.truncate(MOST);
    let texts: Vec<_> = entries
        .iter()
        .take(8) // the details have more; this is for people who read the other side's log
        .map(|e| match e.field.as_str() {
            "" => format!("\"{}\": {}", e.name, e.reason),
            field => format!("\"{}\": {field}: {}", e.name, e.reason),
        })
        .collect();
    let details = NackDetails { entries };
    rpc::Status {
        code: INVALID_ARGUMENT,
        message: texts.join("; "),
        details: vec![crate::wire::protobuf::Any {
            type_url: TYPE_URL.to_owned(),
            value: details.encode_to_vec(),
        }],
    }
}

/// No more of them are named, nor looked at, whatever a client names.
const MOST: usize = 256;

/// The refused resources that a NACK names; empty if the client does not speak our details.
#[cfg(feature = "server")]
pub(crate) fn entries(status: &rpc::Status) -> Vec<Entry> {
    status
        .details
        .iter()
        .filter(|any| any.type_url == TYPE_URL)
        .filter_map(|any| NackDetails::decode(any.value.as_slice()).ok())
        .flat_map(|details| details.entries)
        .take(MOST)
        .collect()
}
