//! Findings that somebody does not want to hear of: `analyze --suppress CODE=OBJECT`, and the annotation of an object, both as istioctl
//! has them. What is suppressed is not said, and refuses nothing. An object that cannot be read, is there twice, or takes what is
//! another's is told whatever stands in it: nobody can silence what he does to others.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::finding::{Finding, code};

/// The annotation: codes with commas between them, or `*`.
pub const ANNOTATION: &str = "galley.istio.io/analyze-suppress";

pub(crate) type Annotations = BTreeMap<String, String>;

/// One code of one object, or of many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    code: String,
    object: String,
}

impl FromStr for Suppression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not CODE=OBJECT, such as \"IST0101=VirtualService catalog.shop\"; * stands for anything"
            )
        };
        let (code, object) = text.split_once('=').ok_or_else(wrong)?;
        if code.is_empty() || object.is_empty() || object.contains('=') {
            return Err(wrong());
        }
        Ok(Self { code: code.to_owned(), object: object.to_owned() })
    }
}

impl Suppression {
    /// Its code.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Whether a finding has such a code.
    pub fn is_known(&self) -> bool {
        code::ALL.iter().any(|(known, _)| *known == self.code)
    }

    /// Whether it is about a finding. Objects are called `Kind name.namespace`, as istioctl calls them, or `Kind namespace/name`.
    pub fn covers(&self, finding: &Finding) -> bool {
        let Some(object) = &finding.object else { return false };
        let is = |name: &str| glob(&self.object, name);
        self.code == finding.code && (is(object) || friendly(object).is_some_and(|name| is(&name)))
    }
}

/// `Kind namespace/name` as `Kind name.namespace`.
fn friendly(object: &str) -> Option<String> {
    let (kind, rest) = object.split_once(' ')?;
    let (namespace, name) = rest.split_once('/')?;
    Some(format!("{kind} {name}.{namespace}"))
}

/// Whether a text is like a pattern, in which `*` stands for anything.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Codes that an annotation names.
pub(crate) fn named(annotations: &Annotations) -> impl Iterator<Item = &str> {
    let said = annotations.get(ANNOTATION).map_or("", String::as_str);
    said.split(',').map(str::trim).filter(|code| !code.is_empty())
}

fn is_named(annotations: &Annotations, finding: &Finding) -> bool {
    named(annotations).any(|code| code == "*" || code == finding.code)
}

/// What was found in reading an object, without what its annotation suppresses. Why it is refused is always told.
pub(crate) fn of_reading(annotations: &Annotations, findings: &mut Vec<Finding>) {
    if annotations.contains_key(ANNOTATION) {
        findings.retain(|finding| finding.is_error() || !is_named(annotations, finding));
    }
}

/// What was found in looking at objects together, without what their annotations suppress.
/// They come by the ids of their objects.
pub(crate) fn of_analysis(annotated: &BTreeMap<String, &Annotations>, findings: &mut Vec<Finding>) {
    if annotated.is_empty() {
        return;
    }
    findings.retain(|finding| {
        let of = finding.object.as_ref().and_then(|object| annotated.get(object));
        let is_of_others =
            matches!(&*finding.code, code::DUPLICATE_OBJECT | code::CONFLICT | code::DUPLICATE_DESTINATION);
        (finding.is_error() && is_of_others) || !of.is_some_and(|annotations| is_named(annotations, finding))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{objects, told, virtual_service};
    use crate::{analyze, parse};

    #[test]
    fn a_star_stands_for_anything_and_nothing_else_does() {
        for (pattern, text, fits) in [
            ("VirtualService a.shop", "VirtualService a.shop", true),
            ("VirtualService a.shop", "VirtualService a.shops", false),
            ("VirtualService *.shop", "VirtualService a.b.shop", true),
            ("*", "", true),
            ("* a.*", "Sidecar a.x", true),
            ("a*b*a", "aba", true),
            ("a*b*a", "aa", false),
            ("a*a", "a", false),
            ("", "a", false),
            ("a.c", "abc", false),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn a_suppression_is_a_code_and_an_object_by_either_name() {
        let text =
            virtual_service("hosts: [reviews]\nhttp:\n- route: [{destination: {host: reviews, subset: v9}}]");
        let [finding] = &*analyze(&objects(&text), None) else { panic!() };
        for (said, covers) in [
            ("IST0101=VirtualService reviews.shop", true),
            ("IST0101=VirtualService shop/reviews", true),
            ("IST0101=VirtualService *.shop", true),
            ("IST0101=*", true),
            ("IST0101=VirtualService *.bank", false),
            ("IST0109=*", false),
            ("IST01*=*", false),
        ] {
            assert_eq!(said.parse::<Suppression>().unwrap().covers(finding), covers, "{said}");
        }
        for wrong in ["IST0101", "=a", "IST0101=", "a=b=c"] {
            assert!(wrong.parse::<Suppression>().unwrap_err().contains("CODE=OBJECT"), "{wrong}");
        }
        assert!("IST0101=*".parse::<Suppression>().unwrap().is_known());
        assert!(!"IST9999=*".parse::<Suppression>().unwrap().is_known());
    }

    fn annotated(text: &str, codes: &str) -> String {
        let annotations = format!("namespace: shop, annotations: {{{ANNOTATION}: '{codes}'}}");
        text.replace("namespace: shop", &annotations)
    }

    #[test]
    fn an_annotation_suppresses_codes_of_its_own_object() {
        let route = "hosts: [reviews]\nhttp:\n- route: [{destination: {host: reviews, subset: v9}}]";
        let text = virtual_service(route);
        for (codes, left) in [("IST0101", 0), ("IST0109, IST0101", 0), ("*", 0), ("IST0109", 1), ("", 1)] {
            assert_eq!(analyze(&objects(&annotated(&text, codes)), None).len(), left, "{codes}");
        }
        let other = annotated(&text, "*").replace("name: reviews", "name: other").replace("v9", "v8");
        let mut both = analyze(&objects(&format!("{text}---\n{other}")), None);
        // Which routes the host is not the other's own matter.
        both.retain(|finding| finding.code != code::CONFLICT);
        assert!(
            both.iter().all(|finding| finding.object.as_deref() == Some("VirtualService shop/reviews")),
            "{both:?}"
        );
        assert!(!both.is_empty());
    }

    #[test]
    fn what_refuses_an_object_is_told_whatever_it_says() {
        let spec =
            "hosts: [reviews]\nhttp:\n- match: [{statPrefix: a}]\n  route: [{destination: {host: reviews}}]";
        let text = virtual_service(spec);
        assert_eq!((told(&text).len(), told(&annotated(&text, "OUT0005")).len()), (1, 0));
        let wrong = annotated(&text.replace("statPrefix", "statPrefx"), "*");
        assert!(parse("rules.yaml", &wrong).has_errors(), "{wrong}");
        let twice = format!("{0}---\n{0}", annotated(&text, "*"));
        let found = analyze(&objects(&twice), None);
        assert!(found.iter().any(|finding| finding.code == code::DUPLICATE_OBJECT), "{found:?}");
    }

    #[test]
    fn an_annotation_with_a_code_that_nobody_has_is_told() {
        let text = virtual_service("hosts: [reviews]\nhttp:\n- route: [{destination: {host: reviews}}]");
        assert!(told(&annotated(&text, "IST0103, OUT0005")).is_empty(), "istioctl has more codes");
        let found = told(&annotated(&text, "OUT9999"));
        assert!(
            found[0].contains("warning OUT0006: metadata.annotations") && found[0].contains("OUT9999"),
            "{found:?}"
        );
    }

    /// Two that route one host, of which the first by name has it.
    #[test]
    fn nobody_silences_what_he_does_to_others() {
        let of = |namespace: &str, note: &str| {
            format!(
                "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: pay, namespace: {namespace}, annotations: {{{ANNOTATION}: '{note}'}}}}
spec:
  hosts: [pay.shop.svc.cluster.local]
  http: [{{route: [{{destination: {{host: pay.shop.svc.cluster.local}}}}]}}]
---
"
            )
        };
        let text = of("shop", "") + &of("aaa", "*");
        let found = analyze(&parse("", &text).objects, None);
        assert!(found.iter().any(|one| one.is_error() && one.code == code::CONFLICT), "{found:?}");
        let text = of("shop", "*") + &of("aaa", "");
        assert!(analyze(&parse("", &text).objects, None).iter().any(Finding::is_error));
    }
}
