//! Policies about what tokens say.

use super::*;

fn policy(action: &str) -> String {
    let spec = format!(
        "selector: {{matchLabels: {{app: reviews}}}}\naction: {action}\n\
         rules: [{{from: [{{source: {{requestPrincipals: ['*']}}}}]}}]"
    );
    object("security.istio.io/v1", "AuthorizationPolicy", &spec)
}

fn tokens(labels: &str) -> String {
    let spec = format!("selector: {{matchLabels: {{{labels}}}}}\njwtRules: [{{issuer: 'https://a'}}]");
    object("security.istio.io/v1", "RequestAuthentication", &spec)
}

#[test]
fn a_policy_for_tokens_that_nobody_looks_at_is_told() {
    assert!(
        only(&policy("ALLOW")).contains("no RequestAuthentication is for its workloads, so what it wants")
    );
    assert!(only(&policy("DENY")).contains("every request counts as one without a token"));
    assert!(
        found(&both(&policy("ALLOW"), &tokens("app: stock"))).iter().any(|told| told.contains("OUT0006"))
    );
    silent(&both(&policy("ALLOW"), &tokens("app: reviews, version: v2")));
    silent(&tokens("app: reviews"));
    assert!(only(&tokens("app: nobody")).contains("IST0127"));
}

#[test]
fn tokens_of_workloads_without_http_are_told() {
    let told = only(&tokens("app: stock"));
    assert!(told.contains("warning IST0119") && told.contains("speak no HTTP"), "{told}");
    silent(&tokens("version: v1"));
}
