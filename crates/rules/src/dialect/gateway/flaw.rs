//! What a route says and cannot be done: a warning for people, a condition for machines.

use crate::finding::code;
use crate::intent::{RouteCondition, RouteFlaw};
use crate::reader::{At, Reader};

/// What a route says and nobody can do, as it is found.
pub(super) type Flaws = Vec<RouteFlaw>;

/// Notes something that cannot be done, for people and for machines.
pub(super) fn flaw(
    reader: &mut Reader<'_>,
    flaws: &mut Flaws,
    at: &At<'_>,
    (condition, reason): (RouteCondition, &str),
    message: String,
) {
    reader.warn(code::NOT_IMPLEMENTED, at, message.clone());
    flaws.push(RouteFlaw { condition, reason: reason.to_owned(), message });
}

/// A kind of object that is referred to and not known.
pub(super) const INVALID_KIND: (RouteCondition, &str) = (RouteCondition::ResolvedRefs, "InvalidKind");
/// A value that cannot be done.
pub(super) const UNSUPPORTED: (RouteCondition, &str) = (RouteCondition::Accepted, "UnsupportedValue");
