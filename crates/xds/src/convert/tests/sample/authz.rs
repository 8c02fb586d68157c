//! Policies, and filters that ask somebody.

use std::collections::BTreeMap;

use outrigger_model::ext_authz::{
    AuthzBody, AuthzService, CheckSettings, ExtAuthz, HttpAuthz, RouteAuthz, RouteBody,
};
use outrigger_model::policy::{ClaimMatch, ClaimValue, Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::token::{ClaimHeader, JwtAuthn, JwtProvider, Requirement, TokenHeader, TokenRule};
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;

use super::{duration, header_match, name, net, origin, string_match, text, token};

fn permission() -> impl Strategy<Value = Permission> {
    let leaf = prop_oneof![
        Just(Permission::Any),
        header_match().prop_map(Permission::Header),
        string_match().prop_map(Permission::Path),
        any::<u16>().prop_map(Permission::DestinationPort),
        net().prop_map(Permission::DestinationIp),
        string_match().prop_map(Permission::ServerName),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(Permission::And),
            vec(inner.clone(), 1..3).prop_map(Permission::Or),
            inner.prop_map(|p| Permission::Not(Box::new(p))),
        ]
    })
}

fn principal() -> impl Strategy<Value = Principal> {
    let leaf = prop_oneof![
        Just(Principal::Any),
        of(string_match()).prop_map(Principal::Authenticated),
        net().prop_map(Principal::SourceIp),
        header_match().prop_map(Principal::Header),
        claim().prop_map(Principal::Claim),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(Principal::And),
            vec(inner.clone(), 1..3).prop_map(Principal::Or),
            inner.prop_map(|p| Principal::Not(Box::new(p))),
        ]
    })
}

fn claim() -> impl Strategy<Value = ClaimMatch> {
    let leaf = prop_oneof![
        Just(ClaimValue::Present),
        any::<bool>().prop_map(ClaimValue::Bool),
        string_match().prop_map(ClaimValue::Text),
    ];
    let value = leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| ClaimValue::Member(Box::new(one))),
            vec(inner, 2..3).prop_map(ClaimValue::AnyOf),
        ]
    });
    (vec(name(), 2..4), value).prop_map(|(path, value)| ClaimMatch { path, value })
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let named =
        (name(), vec(text(), 0..2)).prop_map(|(name, audiences)| Requirement::Provider { name, audiences });
    let leaf = prop_oneof![
        Just(Requirement::Nothing),
        Just(Requirement::AllowMissing),
        Just(Requirement::AllowMissingOrFailed),
        named,
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 2..4).prop_map(Requirement::Any),
            vec(inner, 2..4).prop_map(Requirement::All),
        ]
    })
}

fn provider() -> impl Strategy<Value = JwtProvider> {
    let header = (token(), text()).prop_map(|(name, prefix)| TokenHeader { name, prefix });
    // Not one that says how a request is sent.
    let told = || token().prop_map(|name| format!("x-{name}"));
    let claim = (told(), text()).prop_map(|(header, claim)| ClaimHeader { header, claim });
    let places = (vec(header, 0..2), vec(text(), 0..2), vec(name(), 0..2));
    let told = (of(told()), any::<[bool; 4]>(), vec(claim, 0..2), text());
    ((text(), text()), vec(text(), 0..2), 1_u32..600, places, told, vec(text(), 0..2), of(origin())).prop_map(
        |((issuer, keys), audiences, clock_skew, places, told, spaced_claims, origin)| JwtProvider {
            audiences,
            clock_skew,
            require_expiration: told.1[0],
            forward: told.1[1],
            headers: places.0,
            params: places.1,
            cookies: places.2,
            payload_header: told.0,
            pad_payload_header: told.1[2],
            claim_headers: told.2,
            payload_name: told.3,
            spaced_claims,
            clear_route_cache: told.1[3],
            origin,
            ..JwtProvider::new(issuer, keys)
        },
    )
}

pub(super) fn tokens() -> impl Strategy<Value = JwtAuthn> {
    let rule =
        (super::route_match(), requirement()).prop_map(|(matches, requires)| TokenRule { matches, requires });
    (btree_map(name(), provider(), 0..3), vec(rule, 0..3), any::<bool>())
        .prop_map(|(providers, rules, bypass_preflight)| JwtAuthn { providers, rules, bypass_preflight })
}

pub(super) fn rbac() -> impl Strategy<Value = Rbac> {
    let policy = (vec(permission(), 1..3), vec(principal(), 1..3), of(origin()))
        .prop_map(|(permissions, principals, origin)| RbacPolicy { permissions, principals, origin });
    let action = prop_oneof![Just(RbacAction::Allow), Just(RbacAction::Deny), Just(RbacAction::Log)];
    (action, btree_map(name(), policy, 0..3)).prop_map(|(action, policies)| Rbac { action, policies })
}

fn service() -> impl Strategy<Value = AuthzService> {
    let pairs = || vec((token().prop_map(|name| format!("x-{name}")), token()), 0..3);
    let some = || vec(string_match(), 0..3);
    // Which of the client's headers none is means "all" where it is empty, too.
    let client = of(vec(string_match(), 1..3));
    let http = ("(/[a-z]{1,5})?", pairs(), some(), some(), client, some()).prop_map(
        |(path_prefix, headers_to_add, set, append, client_headers, on_success)| HttpAuthz {
            path_prefix,
            headers_to_add,
            upstream_headers: set,
            upstream_headers_to_append: append,
            client_headers,
            client_headers_on_success: on_success,
        },
    );
    let grpc = ("[a-z]{0,6}", pairs());
    prop_oneof![
        grpc.prop_map(|(authority, metadata)| AuthzService::Grpc { authority, metadata }),
        http.prop_map(AuthzService::Http),
    ]
}

fn body() -> impl Strategy<Value = AuthzBody> {
    (1_u32..65_536, any::<bool>(), any::<bool>()).prop_map(|(max_bytes, allow_partial, as_bytes)| AuthzBody {
        max_bytes,
        allow_partial,
        as_bytes,
    })
}

pub(super) fn ext_authz() -> impl Strategy<Value = ExtAuthz> {
    let headers = (of(vec(string_match(), 1..3)), vec(string_match(), 0..3));
    let only = of(rbac().prop_map(|rbac| Rbac { action: RbacAction::Deny, ..rbac }));
    (service(), (name(), name()), duration(), any::<[bool; 3]>(), 200_u16..600, of(body()), headers, only)
        .prop_map(
            |(
                service,
                (name, cluster),
                timeout,
                [allow, header, clear],
                status_on_error,
                body,
                headers,
                only,
            )| {
                ExtAuthz {
                    name,
                    timeout,
                    failure_mode_allow: allow,
                    failure_mode_allow_header: header,
                    status_on_error,
                    body,
                    allowed_headers: headers.0,
                    disallowed_headers: headers.1,
                    clear_route_cache: clear,
                    only,
                    ..ExtAuthz::new(service, cluster)
                }
            },
        )
}

pub(super) fn of_route() -> impl Strategy<Value = BTreeMap<String, RouteAuthz>> {
    let body = prop_oneof![
        Just(RouteBody::AsElsewhere),
        Just(RouteBody::Nothing),
        body().prop_map(RouteBody::Other),
    ];
    let asked = (btree_map(name(), token(), 0..3), body)
        .prop_map(|(context, body)| RouteAuthz::Asked(CheckSettings { context, body }));
    btree_map(name(), prop_oneof![Just(RouteAuthz::Off), asked], 0..2)
}
