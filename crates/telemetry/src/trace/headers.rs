//! The trace context of a request, in whichever notation: W3C, or else B3.

use super::b3;
use super::context::{Format, Incoming, TRACEPARENT, TraceContext, trim};

/// Reads the trace context of a request. `values` yields all values of a header by its lower-case name.
///
/// `traceparent` wins where it is present, even if invalid: the app has spoken W3C. B3 is looked at only without it.
pub fn extract<'a, I>(values: impl Fn(&'static str) -> I) -> Incoming
where
    I: Iterator<Item = &'a [u8]>,
{
    let mut traceparents = values(TRACEPARENT);
    let Some(first) = traceparents.next() else {
        return b3::extract(values);
    };
    // More than one traceparent is an error (W3C §3.2.1): which is the parent?
    let parsed = if traceparents.next().is_some() { None } else { TraceContext::parse(trim(first)) };
    match parsed {
        Some(context) => Incoming::Context { format: Format::W3c, context, sampled: Some(context.sampled()) },
        None => Incoming::Invalid(Format::W3c),
    }
}
