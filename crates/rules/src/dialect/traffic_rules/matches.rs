//! What a native match says of the request itself: routes and rate limits ask alike.

use outrigger_model::route::RouteMatch;

use crate::dialect::shared::{
    RequestMatch, Spelling, cookie_matches, header_matches, query_matches, string_match,
};
use crate::reader::{Fields, Reader};

/// What of a match is about the request itself.
pub(super) fn request(reader: &mut Reader<'_>, fields: &Fields<'_>) -> RouteMatch {
    let mut plain = |name| string_match(reader, fields.get(name), Spelling::Native, false);
    let (uri, method, authority) = (plain("path"), plain("method"), plain("authority"));
    let mut headers = header_matches(reader, fields.get("headers"), Spelling::Native, false);
    headers.extend(header_matches(reader, fields.get("withoutHeaders"), Spelling::Native, true));
    let query = query_matches(reader, fields.get("query"), Spelling::Native);
    let cookies = cookie_matches(reader, fields.get("cookies"));
    RequestMatch { uri, method, authority, headers, query, cookies, ..RequestMatch::default() }.build()
}

#[cfg(test)]
mod tests {
    use outrigger_model::matcher::StringMatch;

    use crate::testing::{object, one_told, route};

    fn page(matches: &str) -> String {
        object(
            "outrigger.io/v1",
            "TrafficRules",
            &format!(
                "service: reviews\nroutes:\n- match: {matches}\n  to: [{{subset: a}}]\nsubsets: [{{name: a, labels: {{a: b}}}}]"
            ),
        )
    }

    #[test]
    fn a_header_may_be_a_number_and_a_cookie_is_told_by_its_name() {
        let route =
            route(&page("{headers: {x-n: {range: {start: -1, end: 10}}}, cookies: {User: ann, beta: {}}}"));
        let found = &route.http[0].matches[0].request;
        assert_eq!(found.headers[0].value, StringMatch::range(-1, 10));
        let cookies: Vec<_> =
            found.cookies.iter().map(|cookie| (cookie.name.as_str(), &cookie.value)).collect();
        let (ann, any) = (StringMatch::exact("ann"), StringMatch::present());
        assert_eq!(cookies, [("User", &ann), ("beta", &any)]);
        assert!(!route.http[0].is_catch_all());
    }

    #[test]
    fn a_range_without_a_number_in_it_and_a_cookie_without_a_name_are_errors() {
        for (bad, wanted) in [
            ("{headers: {x-n: {range: {start: 5, end: 5}}}}", "end must be greater"),
            ("{headers: {x-n: {range: {start: 5}}}}", "range needs end"),
            ("{headers: {x-n: {range: {start: a, end: 5}}}}", "must be a whole number"),
            ("{headers: {x-n: {range: 5}}}", "range"),
            ("{cookies: {'a=b': c}}", "not the name of a cookie"),
        ] {
            let told = one_told(&page(bad));
            assert!(told.contains(wanted), "{bad}: {told}");
        }
    }
}
