use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::identity::SpiffeId;
use crate::matcher::{Pattern, StringMatch};
use crate::policy::RbacPolicy;
use crate::route::HeaderMatch;

struct Get(&'static str);

/// A request with one header that may be repeated.
struct Told {
    method: &'static str,
    path: &'static str,
    authority: &'static str,
    header: (&'static str, &'static [&'static str]),
}

const PLAIN: Told = Told { method: "GET", path: "/a", authority: "web.shop", header: ("x-role", &[]) };

impl RequestView for Told {
    fn method(&self) -> &str {
        self.method
    }
    fn path(&self) -> &str {
        self.path
    }
    fn authority(&self) -> &str {
        self.authority
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        let values = if name == self.header.0 { self.header.1 } else { &[] };
        values.iter().map(|value| value.as_bytes())
    }
}

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

fn allowed<R: RequestView>(filters: &[Rbac], peer: Option<&str>, request: Option<&R>) -> bool {
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
    assert!(allowed::<Get>(&[], None, None));
}

#[test]
fn an_allow_filter_denies_whom_it_does_not_name() {
    let filters = [filter(RbacAction::Allow, vec![(Permission::Any, is(WEB))])];
    assert!(allowed::<Get>(&filters, Some(WEB), None));
    assert!(!allowed::<Get>(&filters, Some(EVIL), None));
    assert!(!allowed::<Get>(&filters, None, None));
}

#[test]
fn an_allow_filter_without_policies_denies_all() {
    assert!(!allowed::<Get>(&[filter(RbacAction::Allow, vec![])], Some(WEB), None));
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
    assert!(!allowed::<Get>(&filters, None, None));
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
    assert!(allowed::<Get>(&filters, None, None));
    assert!(!allowed::<Get>(&filters, Some(WEB), None));
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
    let bad = StringMatch { pattern: Pattern::Regex("(".into()), ignore_case: false };
    let error =
        PolicySet::compile(&[filter(RbacAction::Deny, vec![(Permission::Path(bad), Principal::Any)])]);
    assert_eq!(error.unwrap_err().field, "rbac[0].policies[p0].permissions[0]");
}

fn header(name: &str, value: StringMatch) -> Permission {
    Permission::Header(HeaderMatch { name: name.into(), value, invert: false })
}

fn not(permission: Permission) -> Permission {
    Permission::Not(Box::new(permission))
}

fn permits(action: RbacAction, permission: Permission, request: &Told) -> bool {
    allowed(&[filter(action, vec![(permission, Principal::Any)])], None, Some(request))
}

#[test]
fn a_request_without_a_path_meets_no_condition_on_it_that_would_let_it_in() {
    use RbacAction::{Allow, Deny};
    let tunnel = Told { method: "CONNECT", path: "", ..PLAIN };
    for path in [StringMatch::prefix("/public/"), StringMatch::prefix(""), StringMatch::present()] {
        let path = Permission::Path(path);
        assert!(!permits(Allow, path.clone(), &tunnel), "{path:?}");
        assert!(!permits(Allow, not(path.clone()), &tunnel), "not {path:?}");
        assert!(!permits(Deny, path.clone(), &tunnel), "{path:?}");
        assert!(!permits(Deny, not(path.clone()), &tunnel), "not {path:?}");
    }
    let pseudo = header(":path", StringMatch::prefix(""));
    assert!(!permits(Allow, pseudo.clone(), &tunnel) && !permits(Allow, not(pseudo), &tunnel));
    assert!(permits(Allow, header(":method", StringMatch::exact("CONNECT")), &tunnel));
}

#[test]
fn a_repeated_header_hides_nothing_from_what_forbids() {
    use RbacAction::{Allow, Deny};
    let admin = || header("x-role", StringMatch::exact("admin"));
    let with = |values| Told { header: ("x-role", values), ..PLAIN };
    for values in [&["admin"][..], &["user", "admin"], &["admin", "user"], &["a", "b", "admin"]] {
        assert!(!permits(Deny, admin(), &with(values)), "DENY admin: {values:?}");
        assert!(!permits(Allow, not(admin()), &with(values)), "ALLOW all but admin: {values:?}");
    }
    assert!(permits(Allow, admin(), &with(&["admin"])));
    // What permits must hold of all of it, as Envoy has it.
    assert!(!permits(Allow, admin(), &with(&["admin", "user"])));
    assert!(!permits(Deny, not(admin()), &with(&["admin", "user"])));
    assert!(permits(Deny, admin(), &with(&["user", "guest"])));
    let other = || HeaderMatch { name: "x-role".into(), value: StringMatch::exact("admin"), invert: true };
    assert!(!permits(Allow, Permission::Header(other()), &with(&["user", "admin"])));
    assert!(permits(Allow, header("x-role", StringMatch::exact("a,b")), &with(&["a", "b"])));
}

#[test]
fn a_host_is_a_host_with_and_without_its_port_and_dot() {
    use RbacAction::{Allow, Deny};
    let host = |text: &str| {
        header(":authority", StringMatch { pattern: Pattern::Exact(text.into()), ignore_case: true })
    };
    for authority in
        ["web.shop", "web.shop:80", "WEB.shop.", "web.shop.:8080", "web.shop..", "web.shop...:8080"]
    {
        let request = Told { authority, ..PLAIN };
        assert!(!permits(Deny, host("web.shop"), &request), "{authority}");
        assert!(permits(Allow, host("web.shop"), &request), "{authority}");
        assert!(permits(Allow, host("web.shop:80"), &request) == authority.ends_with(":80"), "{authority}");
    }
    let suffix =
        header(":authority", StringMatch { pattern: Pattern::Suffix(".shop".into()), ignore_case: true });
    assert!(!permits(Deny, suffix, &Told { authority: "web.shop.:80", ..PLAIN }));
    assert!(permits(Deny, host("web.shop"), &Told { authority: "web.shop.evil", ..PLAIN }));
}

#[test]
fn methods_are_compared_as_they_are() {
    let get = || header(":method", StringMatch::exact("GET"));
    assert!(!permits(RbacAction::Deny, get(), &PLAIN));
    assert!(!permits(RbacAction::Allow, get(), &Told { method: "get", ..PLAIN }));
}
