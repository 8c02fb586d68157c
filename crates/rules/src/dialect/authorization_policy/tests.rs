use outrigger_model::matcher::StringMatch;

use crate::intent::{AuthorizationAction, Condition, IpKey, TextKey};
use crate::testing::{authorization, object, one_told, told};

fn policy(spec: &str) -> String {
    object("security.istio.io/v1", "AuthorizationPolicy", spec)
}

#[test]
fn sources_operations_and_conditions_arrive() {
    let text = policy(
        "selector: {matchLabels: {app: reviews}}
action: DENY
rules:
- from:
  - source:
      principals: [cluster.local/ns/shop/sa/web, '*/sa/admin']
      notNamespaces: [test*]
      ipBlocks: [10.0.0.0/8, 192.0.2.1]
      remoteIpBlocks: ['2001:db8::/32']
  - source: {serviceAccounts: [web, other/cart]}
  to:
  - operation:
      hosts: [reviews.shop]
      methods: [GET, POST]
      paths: ['/a/*', '*.json', '/v1/{*}/x/{**}', '*']
      ports: ['80', 81]
      notPaths: [/health]
  when:
  - {key: 'request.headers[X-User]', values: ['*']}
  - {key: source.ip, notValues: [10.1.0.0/16]}
  - {key: destination.port, values: ['80']}
  - {key: connection.sni, values: [a.b]}
  - {key: 'request.headers[Host]', values: [Shop.example]}",
    );
    let found = authorization(&text);
    assert_eq!(found.action, AuthorizationAction::Deny);
    let rule = &found.rules[0];
    assert!(rule.needs_http());
    let source = &rule.from[0];
    assert_eq!(source.principals[0], StringMatch::exact("cluster.local/ns/shop/sa/web"));
    assert_eq!(source.principals[1], StringMatch::suffix("/sa/admin"));
    assert_eq!(source.not_namespaces, [StringMatch::prefix("test")]);
    assert_eq!(source.ip_blocks[1].to_string(), "192.0.2.1/32");
    let accounts: Vec<_> =
        rule.from[1].service_accounts.iter().map(|a| (a.namespace.as_str(), a.name.as_str())).collect();
    assert_eq!(accounts, [("shop", "web"), ("other", "cart")]);
    let knows_no_case = |text: &str| StringMatch { ignore_case: true, ..StringMatch::exact(text) };
    assert!(
        matches!(&rule.when[3], Condition::Text { key: TextKey::ConnectionSni, values, .. } if *values == [knows_no_case("a.b")])
    );
    assert!(
        matches!(&rule.when[4], Condition::Text { values, .. } if *values == [knows_no_case("Shop.example")])
    );
    let operation = &rule.to[0];
    assert_eq!(operation.ports, [80, 81]);
    assert_eq!(operation.hosts, [StringMatch { ignore_case: true, ..StringMatch::exact("reviews.shop") }]);
    assert_eq!(operation.paths[0], StringMatch::prefix("/a/"));
    assert_eq!(operation.paths[2], StringMatch::regex("/v1/[^/]+/x(?:/.*)?"));
    assert_eq!(operation.paths[3], StringMatch::present());
    assert!(
        matches!(&rule.when[0], Condition::Text { key: TextKey::RequestHeader(name), .. } if name == "x-user")
    );
    assert!(
        matches!(&rule.when[1], Condition::Ip { key: IpKey::Source, not_values, .. } if not_values.len() == 1)
    );
    assert!(matches!(&rule.when[2], Condition::DestinationPort { values, .. } if values == &[80]));
}

#[test]
fn a_policy_without_rules_allows_nothing_and_one_with_an_empty_rule_everything() {
    let nothing = authorization(&policy("{}"));
    assert_eq!((nothing.action, nothing.rules.len()), (AuthorizationAction::Allow, 0));
    let everything = authorization(&policy("rules: [{}]"));
    assert_eq!(everything.rules.len(), 1);
    assert!(everything.rules[0].from.is_empty() && everything.rules[0].to.is_empty());
}

#[test]
fn an_object_without_a_spec_is_a_policy_too() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny-all}\n";
    assert_eq!(authorization(text).rules, []);
}

#[test]
fn what_is_not_implemented_leaves_an_allow_rule_out_and_widens_a_deny_rule() {
    for field in ["trustDomains: [td]", "notTrustDomains: [td]"] {
        let rules = &format!("rules:\n- from: [{{source: {{{field}, namespaces: [a]}}}}]\n- {{}}");
        let allow = policy(rules);
        assert!(told(&allow).iter().any(|line| line.contains("this rule is left out")));
        assert_eq!(authorization(&allow).rules.len(), 1);
        let deny = authorization(&policy(&format!("action: DENY\n{rules}")));
        assert_eq!(deny.rules.len(), 2);
        assert_eq!(deny.rules[0].from[0].namespaces.len(), 1);
        let condition = "rules:\n- when: [{key: source.serviceAccount, values: [x]}]";
        assert_eq!(authorization(&policy(condition)).rules, []);
    }
}

#[test]
fn what_tokens_say_is_a_condition_of_requests() {
    let text = policy(
        "rules:\n- from: [{source: {requestPrincipals: ['https://a/*'], notRequestPrincipals: ['*/eve']}}]\n  \
         when: [{key: 'request.auth.claims[realm_access][roles]', values: [admin]}, \
         {key: request.auth.audiences, values: [shop]}, {key: request.auth.presenter, notValues: [b]}]",
    );
    assert_eq!(told(&text), [""; 0]);
    let rule = &authorization(&text).rules[0];
    assert_eq!(rule.from[0].request_principals, [StringMatch::prefix("https://a/")]);
    assert_eq!(rule.from[0].not_request_principals, [StringMatch::suffix("/eve")]);
    let claims: Vec<_> = rule
        .when
        .iter()
        .map(|condition| match condition {
            Condition::Text { key: TextKey::Claim(path), .. } => path.join("."),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(claims, ["realm_access.roles", "aud", "azp"]);
    assert!(rule.needs_http() && rule.needs_tokens());
    for bad in ["claims[]", "claims", "claims[a", "claims[a][]", "claim[a]"] {
        let text = policy(&format!("rules: [{{when: [{{key: 'request.auth.{bad}', values: [x]}}]}}]"));
        assert!(one_told(&text).contains("unknown key"), "{bad}");
    }
}

#[test]
fn an_empty_list_is_refused_because_it_would_mean_everybody() {
    for rules in [
        "rules: [{from: []}]",
        "rules: [{from: [{source: {principals: []}}]}]",
        "rules: [{to: [{operation: {}}]}]",
        "rules: [{when: [{key: source.ip, values: []}]}]",
    ] {
        assert!(one_told(&policy(rules)).contains("must not be"), "{rules}");
    }
}

#[test]
fn a_principal_with_its_scheme_is_told_without() {
    let told = one_told(&policy("rules: [{from: [{source: {principals: ['spiffe://td/ns/a/sa/b']}}]}]"));
    assert!(told.ends_with("Did you mean \"td/ns/a/sa/b\"?"), "{told}");
}

#[test]
fn custom_names_whom_it_asks() {
    let text =
        policy("action: CUSTOM\nprovider: {name: opa}\nrules: [{to: [{operation: {paths: [/admin*]}}]}]");
    let found = authorization(&text);
    assert_eq!(found.action.provider(), Some("opa"));
    assert_eq!(found.rules[0].to[0].paths, [StringMatch::prefix("/admin")]);
    for (spec, said) in [
        ("action: CUSTOM\nrules: [{}]", "needs provider.name"),
        ("action: CUSTOM\nprovider: {}\nrules: [{}]", "spec.provider.name is missing"),
        ("action: CUSTOM\nprovider: {name: ''}\nrules: [{}]", "must not be empty"),
        ("action: CUSTOM\nprovider: {nam: opa}\nrules: [{}]", "Did you mean \"name\"?"),
        ("action: CUSTOM\nprovider: {name: opa}", "rules: [{}] to ask about everything"),
        ("action: DENY\nprovider: {name: opa}\nrules: [{}]", "for action CUSTOM only"),
        ("provider: {name: opa}\nrules: [{}]", "for action CUSTOM only"),
    ] {
        let told = told(&policy(spec));
        assert!(told.iter().any(|line| line.contains("error") && line.contains(said)), "{spec}: {told:?}");
    }
}

#[test]
fn what_is_not_implemented_has_custom_ask_about_more() {
    let rules = "rules: [{from: [{source: {trustDomains: ['*'], namespaces: [a]}}]}]";
    let text = policy(&format!("action: CUSTOM\nprovider: {{name: opa}}\n{rules}"));
    assert!(told(&text).iter().any(|line| line.contains("this rule matches more")));
    assert_eq!(authorization(&text).rules[0].from[0].namespaces.len(), 1);
}

#[test]
fn target_refs_are_refused_rather_than_ignored() {
    assert!(one_told(&policy("targetRefs: [{kind: Service, name: a}]\nrules: [{}]")).contains("error"));
}

#[test]
fn audit_is_read_and_told() {
    let text = policy("action: AUDIT\nrules: [{}]");
    assert!(one_told(&text).contains("warning OUT0005"));
    assert_eq!(authorization(&text).action, AuthorizationAction::Audit);
}

#[test]
fn a_misspelt_key_or_block_is_an_error() {
    assert!(
        one_told(&policy("rules: [{when: [{key: source.principle, values: [a]}]}]"))
            .ends_with("\"source.principal\"?")
    );
    assert!(
        one_told(&policy("rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]"))
            .contains("an address or a block")
    );
    assert!(
        one_told(&policy("rules: [{to: [{operation: {paths: ['/{**}/{**}']}}]}]")).contains("path template")
    );
}

#[test]
fn a_star_in_the_middle_is_told() {
    let to = |fields: &str| policy(&format!("action: DENY\nrules: [{{to: [{{operation: {{{fields}}}}}]}}]"));
    let star = one_told(&to("paths: ['/api/*/admin']"));
    assert!(star.contains("warning OUT0117: spec.rules[0].to[0].operation.paths[0]"), "{star}");
    assert!(star.ends_with("Did you mean \"/api/{*}/admin\"?"), "{star}");
    for fields in ["paths: ['/a/*/b*']", "notPaths: ['*/a*/b']", "hosts: ['a.*.com']", "methods: ['P*T']"] {
        assert!(one_told(&to(fields)).contains("warning OUT0117"), "{fields}");
    }
    let from = |fields: &str| policy(&format!("rules: [{{from: [{{source: {{{fields}}}}}]}}]"));
    assert!(one_told(&from("principals: ['td/ns/*/sa/web']")).contains("OUT0117"));
    let when = policy("rules: [{when: [{key: 'request.headers[x]', values: ['v*x']}]}]");
    assert!(one_told(&when).contains("OUT0117"));
    for good in [
        to("paths: ['*', '/a*', '*/a', '/a/{*}/b/{**}'], hosts: ['*.com']"),
        from("principals: ['*/sa/web']"),
    ] {
        assert!(told(&good).is_empty());
    }
}
