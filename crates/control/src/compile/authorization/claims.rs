//! What tokens say, as conditions on claims, which Envoys take as well.

use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::policy::{ClaimMatch, ClaimValue, Principal};

/// The name of the payload, as [`RequestAuthentication`](outrigger_rules::intent::TokensIntent) gives it.
const PAYLOAD: &str = "payload";

/// A claim; of a list one must match.
pub(super) fn claim(path: &[String], value: &StringMatch) -> Principal {
    let whole = std::iter::once(PAYLOAD.to_owned()).chain(path.iter().cloned()).collect();
    let text = ClaimValue::Text(some(value));
    let value = ClaimValue::AnyOf(vec![text.clone(), ClaimValue::Member(Box::new(text))]);
    Principal::Claim(ClaimMatch { path: whole, value })
}

/// `ISSUER/SUBJECT`. Either may have slashes, so each of them may be the one between.
pub(super) fn principal(value: &StringMatch) -> Principal {
    let both = |issuer: StringMatch, subject: StringMatch| {
        Principal::And(vec![text("iss", issuer), text("sub", subject)])
    };
    let mut any = Vec::new();
    match &value.pattern {
        Pattern::Exact(whole) => {
            any.extend(
                splits(whole).map(|(iss, sub)| both(StringMatch::exact(iss), StringMatch::exact(sub))),
            );
        }
        Pattern::Prefix(start) => {
            any.push(both(StringMatch::prefix(start.as_str()), StringMatch::present()));
            any.extend(
                splits(start).map(|(iss, sub)| both(StringMatch::exact(iss), StringMatch::prefix(sub))),
            );
        }
        Pattern::Suffix(end) => {
            any.push(both(StringMatch::present(), StringMatch::suffix(end.as_str())));
            any.extend(splits(end).map(|(iss, sub)| both(StringMatch::suffix(iss), StringMatch::exact(sub))));
        }
        // No dialect has others.
        Pattern::Contains(_) | Pattern::Regex(_) | Pattern::Present | Pattern::Range(..) => {
            any.push(both(StringMatch::present(), StringMatch::present()))
        }
    }
    Principal::Or(any)
}

fn splits(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices('/').map(|(at, _)| (&text[..at], &text[at + 1..]))
}

/// Of one text.
fn text(claim: &str, value: StringMatch) -> Principal {
    let path = vec![PAYLOAD.to_owned(), claim.to_owned()];
    Principal::Claim(ClaimMatch { path, value: ClaimValue::Text(some(&value)) })
}

/// What is there is not empty, as with Istio.
fn some(value: &StringMatch) -> StringMatch {
    match value.pattern {
        Pattern::Present => StringMatch::regex("(?s).+"),
        _ => value.clone(),
    }
}
