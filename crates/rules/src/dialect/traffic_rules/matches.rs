//! What a native match says of the request itself: routes and rate limits ask alike.

use outrigger_model::route::RouteMatch;

use crate::dialect::shared::{RequestMatch, Spelling, header_matches, query_matches, string_match};
use crate::reader::{Fields, Reader};

/// What of a match is about the request itself.
pub(super) fn request(reader: &mut Reader<'_>, fields: &Fields<'_>) -> RouteMatch {
    let mut plain = |name| string_match(reader, fields.get(name), Spelling::Native, false);
    let (uri, method, authority) = (plain("path"), plain("method"), plain("authority"));
    let mut headers = header_matches(reader, fields.get("headers"), Spelling::Native, false);
    headers.extend(header_matches(reader, fields.get("withoutHeaders"), Spelling::Native, true));
    let query = query_matches(reader, fields.get("query"), Spelling::Native);
    RequestMatch { uri, method, authority, headers, query, ..RequestMatch::default() }.build()
}
