//! Names the rule that a head broke when `httparse` refused it. Not on the fast path; the rules themselves are in `strict`.

use super::fields::is_tchar;
use super::grammar::{is_method, is_target};
use super::strict::Refusal;

/// Which rule a head broke that `httparse` refused. Off the fast path, so it looks at everything again.
pub(super) fn head(head: &[u8], error: httparse::Error, is_request: bool) -> Refusal {
    if error == httparse::Error::TooManyHeaders {
        return Refusal::TooManyFields;
    }
    let mut lines = head.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    if let Some(refusal) = bad_byte(first) {
        return refusal;
    }
    if is_request && let Some(refusal) = request_line(first) {
        return refusal;
    }
    if matches!(error, httparse::Error::Version | httparse::Error::Status) {
        let version = first.starts_with(b"HTTP/") && error == httparse::Error::Version;
        return if version { Refusal::Version } else { Refusal::StatusLine };
    }
    lines.find_map(field_line).unwrap_or(if is_request { Refusal::RequestLine } else { Refusal::StatusLine })
}

fn request_line(line: &[u8]) -> Option<Refusal> {
    let mut parts = line.split(|&b| b == b' ');
    let (method, target, version) = (parts.next()?, parts.next(), parts.next());
    let (Some(target), Some(version), None) = (target, version, parts.next()) else {
        return Some(Refusal::RequestLine);
    };
    match () {
        () if target.is_empty() || version.is_empty() => Some(Refusal::RequestLine),
        () if !is_method(method) => Some(Refusal::Method),
        () if !is_target(target) => Some(Refusal::Target),
        () if version == b"HTTP/1.1" || version == b"HTTP/1.0" => None,
        () if version.starts_with(b"HTTP/") => Some(Refusal::Version),
        () => Some(Refusal::RequestLine),
    }
}

fn bad_byte(line: &[u8]) -> Option<Refusal> {
    line.iter().find_map(|&byte| match byte {
        b'\r' => Some(Refusal::BareCr),
        b'\t' => None,
        0..=0x1f | 0x7f => Some(Refusal::ControlByte),
        _ => None,
    })
}

fn field_line(line: &[u8]) -> Option<Refusal> {
    if line.is_empty() {
        return None;
    }
    if matches!(line[0], b' ' | b'\t') {
        return Some(Refusal::ObsFold);
    }
    if let Some(refusal) = bad_byte(line) {
        return Some(refusal);
    }
    let Some(colon) = line.iter().position(|&b| b == b':') else { return Some(Refusal::FieldName) };
    let name = &line[..colon];
    if name.last().is_some_and(|&b| b == b' ' || b == b'\t') {
        return Some(Refusal::SpaceBeforeColon);
    }
    (name.is_empty() || !name.iter().all(|&b| is_tchar(b))).then_some(Refusal::FieldName)
}
