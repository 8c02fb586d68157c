//! Edits of the header map of an HTTP/2 message.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::http::h1::EditError;

fn name_and_value(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), EditError> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| EditError::Name)?;
    Ok((name, HeaderValue::from_bytes(value).map_err(|_| EditError::Value)?))
}

pub(super) fn set_in(map: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), EditError> {
    let (name, value) = name_and_value(name, value)?;
    map.try_insert(name, value).map(|_| ()).map_err(|_| EditError::TooLarge)
}

pub(super) fn append_in(map: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), EditError> {
    let (name, value) = name_and_value(name, value)?;
    map.try_append(name, value).map(|_| ()).map_err(|_| EditError::TooLarge)
}

pub(super) fn remove_prefix_in(map: &mut HeaderMap, prefix: &str) -> bool {
    let gone: Vec<HeaderName> =
        map.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
    gone.iter().for_each(|name| while map.remove(name).is_some() {});
    !gone.is_empty()
}
