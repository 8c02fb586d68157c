//! Conditions on what tokens say: matchers of the metadata that the filter for tokens leaves.

use outrigger_model::policy::{ClaimMatch, ClaimValue};

use super::extension::JWT;
use super::flaw::{Decoded, Under, each, flaw};
use super::matcher;
use crate::wire::matcher::{
    ListMatcher, MetadataMatcher, OrMatcher, ValueMatcher, list_matcher, metadata_matcher, value_matcher,
};

/// Values inside each other.
const DEEPEST: usize = 8;

pub(super) fn encode(claim: &ClaimMatch) -> MetadataMatcher {
    let segment = |key: &String| metadata_matcher::PathSegment {
        segment: Some(metadata_matcher::path_segment::Segment::Key(key.clone())),
    };
    MetadataMatcher {
        filter: JWT.to_owned(),
        path: claim.path.iter().map(segment).collect(),
        value: Some(encode_value(&claim.value)),
        invert: false,
    }
}

fn encode_value(value: &ClaimValue) -> ValueMatcher {
    use value_matcher::MatchPattern;
    let pattern = match value {
        ClaimValue::Present => MatchPattern::PresentMatch(true),
        ClaimValue::Text(text) => MatchPattern::StringMatch(matcher::encode(text)),
        ClaimValue::Bool(is) => MatchPattern::BoolMatch(*is),
        ClaimValue::Member(one) => MatchPattern::ListMatch(Box::new(ListMatcher {
            match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(encode_value(one)))),
        })),
        ClaimValue::AnyOf(all) => {
            MatchPattern::OrMatch(OrMatcher { value_matchers: all.iter().map(encode_value).collect() })
        }
    };
    ValueMatcher { match_pattern: Some(pattern) }
}

/// A claim, and whether it is to be another.
pub(super) fn decode(wire: &MetadataMatcher) -> Decoded<(ClaimMatch, bool)> {
    if wire.filter != JWT {
        return flaw("filter", format!("only metadata of {JWT} are known here"));
    }
    let segment = |one: &metadata_matcher::PathSegment| match &one.segment {
        Some(metadata_matcher::path_segment::Segment::Key(key)) => Ok(key.clone()),
        None => flaw("key", "is required"),
    };
    let path = each(&wire.path, "path", segment)?;
    if path.len() < 2 {
        return flaw("path", "must have the name of a payload and a claim");
    }
    let Some(value) = &wire.value else { return flaw("value", "is required") };
    Ok((ClaimMatch { path, value: decode_value(value, 0).under("value")? }, wire.invert))
}

fn decode_value(wire: &ValueMatcher, depth: usize) -> Decoded<ClaimValue> {
    use value_matcher::MatchPattern;
    if depth == DEEPEST {
        return flaw("", format!("is more than {DEEPEST} deep"));
    }
    Ok(match &wire.match_pattern {
        Some(MatchPattern::PresentMatch(true)) => ClaimValue::Present,
        Some(MatchPattern::StringMatch(text)) => {
            ClaimValue::Text(matcher::decode(text).under("string_match")?)
        }
        Some(MatchPattern::BoolMatch(is)) => ClaimValue::Bool(*is),
        Some(MatchPattern::ListMatch(list)) => match &list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(one)) => {
                ClaimValue::Member(Box::new(decode_value(one, depth + 1).under("list_match.one_of")?))
            }
            None => return flaw("list_match.one_of", "is required"),
        },
        Some(MatchPattern::OrMatch(any)) => ClaimValue::AnyOf(
            each(&any.value_matchers, "value_matchers", |one| decode_value(one, depth + 1))
                .under("or_match")?,
        ),
        _ => return flaw("", "only texts, truth values, lists, alternatives and presence are supported"),
    })
}
