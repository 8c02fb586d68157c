//! Bodies of fuzz targets, as plain functions: stable tests replay seeded mutations, the fuzzer does the long runs.

use outrigger_model::resource::ResourceKind;

use crate::{ClientKind, decode, encode, type_url};

/// Decodes arbitrary bytes as a resource; the first byte chooses the kind. Never panics.
///
/// What was taken must survive being encoded for our own proxy and decoded again: an error there is a bug of ours.
///
/// # Panics
/// When a resource that was taken once is refused or changed the second time.
pub fn fuzz_decode(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let kind = ResourceKind::ALL[usize::from(*first) % ResourceKind::ALL.len()];
    let Ok(resource) = decode(type_url(kind), bytes) else { return };
    for client in ClientKind::ALL {
        let encoded = encode(&resource, client);
        if client == ClientKind::Outrigger {
            let again = decode(encoded.type_url, &encoded.value);
            assert_eq!(
                again.as_ref(),
                Ok(&resource),
                "a resource that was taken must survive its own encoding"
            );
        }
    }
}

#[cfg(test)]
mod tests;
