//! What a filter of ext_authz is to be asked about. Envoy has no conditions on filters, so it is said as Istio says `CUSTOM`: an RBAC
//! filter before it judges by shadow rules, which enforce nothing, and leaves the name of the policy that matched in the metadata
//! of the request, where the filter looks for it.

use outrigger_model::matcher::StringMatch;
use outrigger_model::policy::{Rbac, RbacAction};

use super::extension::HTTP_RBAC;
use super::flaw::{Decoded, Flaw, Under, flaw};
use super::{matcher, policy};
use crate::kind::ClientKind;
use crate::wire::http_rbac;
use crate::wire::matcher::metadata_matcher::{PathSegment, path_segment::Segment};
use crate::wire::matcher::{MetadataMatcher, ValueMatcher, value_matcher::MatchPattern};
use crate::wire::protobuf::Value;
use crate::wire::rbac;

/// Under which the RBAC filter leaves the name, behind its own prefix.
const POLICY: &str = "shadow_effective_policy_id";

/// The shadow rules of an RBAC filter.
pub(super) struct Shadow {
    key: String,
    rules: rbac::Rbac,
    /// Among the RBAC filters of the connection.
    index: usize,
}

/// The RBAC filter before the one that asks, and what that one looks for. Each pair has a prefix of its own: what one filter leaves
/// stays for the next.
pub(super) fn encode(only: &Rbac, position: usize, kind: ClientKind) -> (http_rbac::Rbac, MetadataMatcher) {
    let prefix = format!("outrigger_ext_authz_{position}_");
    let key = format!("{prefix}{POLICY}");
    let rbac = http_rbac::Rbac {
        shadow_rules: Some(policy::encode(only, kind)),
        shadow_rules_stat_prefix: prefix,
        ..Default::default()
    };
    let wanted = MetadataMatcher {
        filter: HTTP_RBAC.to_owned(),
        path: vec![PathSegment { segment: Some(Segment::Key(key)) }],
        value: Some(ValueMatcher { match_pattern: Some(MatchPattern::PresentMatch(true)) }),
        invert: false,
    };
    (rbac, wanted)
}

/// What an RBAC filter leaves for those behind it. Decoded only where somebody looks for it: most shadow rules are trials.
pub(super) fn of(wire: &http_rbac::Rbac, index: usize) -> Option<Shadow> {
    // A matcher goes before the rules.
    let rules = wire.shadow_rules.as_ref().filter(|_| wire.shadow_matcher.is_none())?;
    let key = format!("{}{POLICY}", wire.shadow_rules_stat_prefix);
    Some(Shadow { key, rules: rules.clone(), index })
}

/// The policies that a filter looks for. Whatever else it may look for is refused: taken for "always" it would bother the service with
/// what is not its business, taken for "never" it would let everybody in.
pub(super) fn decode(wire: &MetadataMatcher, shadows: &[Shadow], origins: Option<&Value>) -> Decoded<Rbac> {
    if wire.filter != HTTP_RBAC {
        return flaw("filter", format!("only {HTTP_RBAC} is supported"));
    }
    if wire.invert {
        return flaw("invert", "is not supported");
    }
    let [PathSegment { segment: Some(Segment::Key(key)) }] = wire.path.as_slice() else {
        return flaw("path", "must be one key");
    };
    let wanted = match wire.value.as_ref().and_then(|value| value.match_pattern.as_ref()) {
        Some(MatchPattern::PresentMatch(true)) => StringMatch::present(),
        Some(MatchPattern::StringMatch(text)) => matcher::decode(text).under("value.string_match")?,
        _ => return flaw("value", "only string_match and present_match are supported"),
    };
    let wanted = wanted.compile().map_err(Flaw::new).under("value.string_match")?;
    let mut of_key = shadows.iter().rev().filter(|shadow| shadow.key == *key);
    // The last to leave a name is read.
    let Some(shadow) = of_key.next() else {
        return flaw("path", format!("no shadow rules of an RBAC filter before it set {key}"));
    };
    let is_wanted = |name: &String| wanted.matches(name.as_bytes());
    if !shadow.rules.policies.keys().all(is_wanted) {
        return flaw("value", "must match either all policies of the RBAC filter before it or none");
    }
    if of_key.any(|before| before.rules.policies.keys().any(is_wanted)) {
        return flaw("path", format!("several RBAC filters before it set {key}"));
    }
    let rbac = policy::decode(&shadow.rules, origins, shadow.index);
    let rbac = rbac.under(format_args!("(the shadow rules that set {key})"))?;
    Ok(Rbac { action: RbacAction::Deny, ..rbac })
}

#[cfg(test)]
mod tests {
    use outrigger_model::policy::{Permission, Principal, RbacPolicy};

    use super::*;
    use crate::wire::matcher::{StringMatcher, string_matcher};

    fn policies(names: &[&str]) -> Rbac {
        let policy = RbacPolicy {
            permissions: vec![Permission::Path(StringMatch::prefix("/admin"))],
            principals: vec![Principal::Any],
            origin: None,
        };
        let policies = names.iter().map(|name| ((*name).to_owned(), policy.clone())).collect();
        Rbac { action: RbacAction::Deny, policies }
    }

    /// As istiod of today names policies, and what it has a provider's filter look for.
    fn istio(provider: &str) -> (http_rbac::Rbac, MetadataMatcher) {
        let name = format!("istio-ext-authz-{provider}-ns[shop]-policy[ask]-rule[0]");
        let (mut rbac, mut wanted) = encode(&policies(&[&name]), 0, ClientKind::Envoy);
        rbac.shadow_rules_stat_prefix = "istio_ext_authz_".into();
        let key = Segment::Key("istio_ext_authz_shadow_effective_policy_id".into());
        wanted.path = vec![PathSegment { segment: Some(key) }];
        let prefix = format!("istio-ext-authz-{provider}-");
        let prefix = Some(string_matcher::MatchPattern::Prefix(prefix));
        let prefix = StringMatcher { match_pattern: prefix, ..Default::default() };
        wanted.value = Some(ValueMatcher { match_pattern: Some(MatchPattern::StringMatch(prefix)) });
        (rbac, wanted)
    }

    #[test]
    fn a_pair_of_filters_is_one_that_asks_about_what_the_other_matches() {
        let only = policies(&["a", "b"]);
        let (rbac, wanted) = encode(&only, 3, ClientKind::Outrigger);
        assert!(rbac.rules.is_none(), "nothing is enforced by it");
        let shadows: Vec<_> = of(&rbac, 0).into_iter().collect();
        assert_eq!(decode(&wanted, &shadows, None).ok(), Some(only));
    }

    #[test]
    fn two_providers_of_istio_are_told_apart_by_the_names_of_their_policies() {
        let ((first, asks_first), (second, asks_second)) = (istio("one"), istio("two"));
        let names = |wanted: &MetadataMatcher, before: &[&http_rbac::Rbac]| {
            let shadows: Vec<_> = before.iter().enumerate().filter_map(|(i, rbac)| of(rbac, i)).collect();
            decode(wanted, &shadows, None).unwrap().policies.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names(&asks_first, &[&first]), ["istio-ext-authz-one-ns[shop]-policy[ask]-rule[0]"]);
        let of_second = names(&asks_second, &[&first, &second]);
        assert_eq!(of_second, ["istio-ext-authz-two-ns[shop]-policy[ask]-rule[0]"]);
    }

    #[test]
    fn what_would_be_asked_about_other_requests_is_refused() {
        let (rbac, wanted) = encode(&policies(&["a", "b"]), 0, ClientKind::Envoy);
        let shadows: Vec<_> = of(&rbac, 0).into_iter().collect();
        let refused = |edit: &dyn Fn(&mut MetadataMatcher)| {
            let mut wanted = wanted.clone();
            edit(&mut wanted);
            decode(&wanted, &shadows, None).unwrap_err().field
        };
        assert_eq!(refused(&|wanted| wanted.filter = "envoy.filters.http.jwt_authn".into()), "filter");
        assert_eq!(refused(&|wanted| wanted.invert = true), "invert");
        assert_eq!(refused(&|wanted| wanted.path.clear()), "path");
        assert_eq!(refused(&|wanted| wanted.value = None), "value");
        let a = StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::Exact("a".into())),
            ..Default::default()
        };
        let a = MatchPattern::StringMatch(a);
        let one = move |wanted: &mut MetadataMatcher| {
            wanted.value = Some(ValueMatcher { match_pattern: Some(a.clone()) });
        };
        assert_eq!(refused(&one), "value", "which of two matches first, only Envoy's order says");
        assert_eq!(decode(&wanted, &[], None).unwrap_err().field, "path");
        let twice = [of(&rbac, 0).unwrap(), of(&rbac, 1).unwrap()];
        assert_eq!(decode(&wanted, &twice, None).unwrap_err().field, "path");
        let tree = http_rbac::Rbac { shadow_matcher: Some(Default::default()), ..rbac };
        assert!(of(&tree, 0).is_none(), "its rules are not read");
    }
}
