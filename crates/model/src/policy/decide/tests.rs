use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::identity::SpiffeId;
use crate::matcher::StringMatch;
use crate::policy::RbacPolicy;
use crate::route::HeaderMatch;

struct Get(&'static str);

impl RequestView for Get {
    fn method(&self) -> &str {
        "GET"
    }
    fn path(&self) -> &str {
        self.0
    }
    fn authority(&self) -> &str {
        "web.shop"
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        std::iter::empty()
    }
}

fn filter(action: RbacAction, policies: Vec<(Permission, Principal)>) -> Rbac {
    let policies = policies.into_iter().enumerate().map(|(i, (permission, principal))| {
        let policy = RbacPolicy { permissions: vec![permission], principals: vec![principal], origin: None };
        (format!("p{i}"), policy)
    });
    Rbac { action, policies: policies.collect::<BTreeMap<_, _>>() }
}

fn allowed(filters: &[Rbac], peer: Option<&str>, request: Option<&Get>) -> bool {
    let set = PolicySet::compile(filters).unwrap();
    let peer = peer.map(|uri| SpiffeId::parse(uri).unwrap());
    let source: SocketAddr = "10.0.0.9:5000".parse().unwrap();
    let connection = ConnectionView {
        peer: peer.as_ref(),
        source,
        destination: "10.0.0.1:8080".parse().unwrap(),
        server_name: None,
    };
    set.decide(&connection, request).is_allow()
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const EVIL: &str = "spiffe://cluster.local/ns/shop/sa/evil";

fn is(uri: &str) -> Principal {
    Principal::Authenticated(Some(StringMatch::exact(uri)))
}

#[test]
fn no_policy_allows_everything() {
    assert!(allowed(&[], None, None));
}

#[test]
fn an_allow_filter_denies_whom_it_does_not_name() {
    let filters = [filter(RbacAction::Allow, vec![(Permission::Any, is(WEB))])];
    assert!(allowed(&filters, Some(WEB), None));
    assert!(!allowed(&filters, Some(EVIL), None));
    assert!(!allowed(&filters, None, None));
}

#[test]
fn an_allow_filter_without_policies_denies_all() {
    assert!(!allowed(&[filter(RbacAction::Allow, vec![])], Some(WEB), None));
}

#[test]
fn a_deny_filter_goes_before_an_allow_filter() {
    let filters = [
        filter(RbacAction::Deny, vec![(Permission::Path(StringMatch::prefix("/admin")), is(WEB))]),
        filter(RbacAction::Allow, vec![(Permission::Any, is(WEB))]),
    ];
    assert!(allowed(&filters, Some(WEB), Some(&Get("/a"))));
    assert!(!allowed(&filters, Some(WEB), Some(&Get("/admin/x?y"))));
}

#[test]
fn what_asks_for_http_never_holds_without_it() {
    let method = HeaderMatch { name: ":method".into(), value: StringMatch::exact("GET"), invert: false };
    let filters = [filter(RbacAction::Allow, vec![(Permission::Header(method), Principal::Any)])];
    assert!(allowed(&filters, None, Some(&Get("/"))));
    assert!(!allowed(&filters, None, None));
}

#[test]
fn addresses_ports_and_negations_compose() {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let permission = Permission::And(vec![
        Permission::DestinationPort(8080),
        Permission::Not(Box::new(Permission::DestinationIp(net("10.0.0.2/32")))),
    ]);
    let principal = Principal::And(vec![
        Principal::SourceIp(net("10.0.0.0/24")),
        Principal::Not(Box::new(Principal::Authenticated(None))),
    ]);
    let filters = [filter(RbacAction::Allow, vec![(permission, principal)])];
    assert!(allowed(&filters, None, None));
    assert!(!allowed(&filters, Some(WEB), None));
}

#[test]
fn the_denial_names_its_policy() {
    let set =
        PolicySet::compile(&[filter(RbacAction::Deny, vec![(Permission::Any, Principal::Any)])]).unwrap();
    let address = "10.0.0.1:1".parse().unwrap();
    let connection = ConnectionView { peer: None, source: address, destination: address, server_name: None };
    let Decision::Deny(denial) = set.decide_connection(&connection) else { panic!("it must be denied") };
    assert_eq!(denial.to_string(), "denied by policy p0");
}

#[test]
fn a_bad_matcher_is_named_by_its_path() {
    let bad = StringMatch { pattern: crate::matcher::Pattern::Regex("(".into()), ignore_case: false };
    let error =
        PolicySet::compile(&[filter(RbacAction::Deny, vec![(Permission::Path(bad), Principal::Any)])]);
    assert_eq!(error.unwrap_err().0, "rbac[0].policies[p0].permissions[0]");
}
