use super::*;

fn read(text: &str) -> anyhow::Result<Vec<ExtensionProvider>> {
    let all: Vec<ExtensionProvider> = serde_saphyr::from_str(text)?;
    validate(&all)?;
    Ok(all)
}

fn only(text: &str) -> ExtAuthz {
    read(text).unwrap()[0].ext_authz("outbound|9000||opa.shop.svc.cluster.local").unwrap()
}

#[test]
fn every_field_of_the_http_kind_arrives() {
    let found = only(
        "- name: opa
  envoyExtAuthzHttp:
    service: shop/opa.shop.svc.cluster.local
    port: 9000
    timeout: 2.5s
    pathPrefix: /check
    failOpen: true
    clearRouteCache: true
    statusOnError: '503'
    includeRequestHeadersInCheck: [cookie, x-ext-*, '*-id']
    includeAdditionalHeadersInCheck: {X-Key: k}
    includeRequestBodyInCheck: {maxRequestBytes: 1024, allowPartialMessage: true, packAsBytes: true}
    headersToUpstreamOnAllow: [X-User]
    headersToDownstreamOnDeny: [set-cookie]
    headersToDownstreamOnAllow: [x-seen]",
    );
    let header = |pattern| StringMatch { pattern, ignore_case: true };
    let exact = |name: &str| header(Pattern::Exact(name.into()));
    let http = HttpAuthz {
        path_prefix: "/check".into(),
        headers_to_add: vec![("x-key".into(), "k".into())],
        upstream_headers: vec![exact("X-User")],
        upstream_headers_to_append: vec![],
        client_headers: Some(vec![exact("set-cookie")]),
        client_headers_on_success: vec![exact("x-seen")],
    };
    let expected = ExtAuthz {
        timeout: Duration::from_millis(2500),
        failure_mode_allow: true,
        status_on_error: 503,
        body: Some(AuthzBody { max_bytes: 1024, allow_partial: true, as_bytes: true }),
        allowed_headers: Some(vec![
            exact("cookie"),
            header(Pattern::Prefix("x-ext-".into())),
            header(Pattern::Suffix("-id".into())),
        ]),
        clear_route_cache: true,
        ..ExtAuthz::new(AuthzService::Http(http), "outbound|9000||opa.shop.svc.cluster.local")
    };
    assert_eq!(found, expected);
}

#[test]
fn what_is_left_out_is_as_with_istio() {
    let found = only("- name: opa\n  envoyExtAuthzGrpc: {service: opa.shop.svc.cluster.local, port: 9000}");
    let authority = "outbound_.9000_._.opa.shop.svc.cluster.local".to_owned();
    assert_eq!(found.service, AuthzService::Grpc { authority, metadata: vec![] });
    assert_eq!((found.timeout, found.status_on_error, found.failure_mode_allow), (TIMEOUT, 403, false));
    let http = "- name: opa\n  envoyExtAuthzHttp: {service: opa.shop.svc.cluster.local, port: 9000";
    let older = only(&format!("{http}, includeHeadersInCheck: [cookie]}}"));
    assert_eq!(older.allowed_headers.unwrap().len(), 1);
    let AuthzService::Http(service) = only(&format!("{http}}}")).service else { panic!() };
    assert_eq!(service.client_headers, None, "a denial's headers all go to the client");
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    for (fields, said) in [
        ("envoyExtAuthzGrpc: {service: a.b, port: 1, pathPrefix: /x}", "pathPrefix: is a field of"),
        ("envoyExtAuthzGrpc: {service: a.b}", "port: must be"),
        ("envoyExtAuthzHttp: {port: 1}", "service: \"\" is neither"),
        ("envoyExtAuthzHttp: {service: opa, port: 1}", "service: \"opa\" is neither"),
        ("envoyExtAuthzHttp: {service: '*.b', port: 1}", "is neither HOST"),
        ("envoyExtAuthzHttp: {service: a.b, port: 1, timeout: 0s}", "timeout: \"0s\""),
        ("envoyExtAuthzHttp: {service: a.b, port: 1, timeout: soon}", "timeout: \"soon\""),
        ("envoyExtAuthzHttp: {service: a.b, port: 1, pathPrefix: check}", "pathPrefix: \"check\""),
        ("envoyExtAuthzHttp: {service: a.b, port: 1, statusOnError: '99'}", "statusOnError:"),
        (
            "envoyExtAuthzHttp: {service: a.b, port: 1, headersToUpstreamOnAllow: ['*']}",
            "headersToUpstreamOnAllow:",
        ),
        (
            "envoyExtAuthzHttp: {service: a.b, port: 1, includeAdditionalHeadersInCheck: {'a b': c}}",
            "\"a b\"",
        ),
        (
            "envoyExtAuthzHttp: {service: a.b, port: 1, includeRequestBodyInCheck: {maxRequestBytes: 0}}",
            "maxRequestBytes: 0",
        ),
        ("envoyExtAuthzHttp: {service: a.b, port: 1, failedOpen: true}", "failedOpen"),
        ("zipkin: {}", "zipkin"),
    ] {
        let error = format!("{:#}", read(&format!("- name: x\n  {fields}")).unwrap_err());
        assert!(error.contains(said), "{fields}: {error}");
    }
    let both = "- name: x\n  envoyExtAuthzHttp: {service: a.b, port: 1}\n  envoyExtAuthzGrpc: {service: a.b, port: 1}";
    assert!(format!("{:#}", read(both).unwrap_err()).contains("exactly one of"));
    let one = "- name: x\n  envoyExtAuthzHttp: {service: a.b, port: 1}\n";
    let twice = format!("{:#}", read(&format!("{one}{one}")).unwrap_err());
    assert_eq!(twice, "extensionProviders[1] (x): the name occurs twice");
}

#[test]
fn a_service_that_keeps_limits_has_envoys_defaults_and_no_policy_asks_it() {
    let one = |more: &str| {
        read(&format!(
            "[{{name: limiter, envoyRateLimitGrpc: {{service: shop/l.shop.svc.cluster.local, port: 8081{more}}}}}]"
        ))
    };
    let provider = one("").unwrap().remove(0);
    assert!(provider.is_limiter() && provider.ext_authz("c").is_err());
    let found = provider.global_limits("outbound|8081||l", Vec::new()).unwrap();
    assert_eq!(
        (&*found.domain, found.timeout, found.status_on_error),
        ("limiter", Duration::from_millis(20), None)
    );
    assert_eq!((&*found.cluster, &*found.authority), ("outbound|8081||l", "outbound_.8081_._.l"));
    assert_eq!(provider.service(), (Some("shop"), "l.shop.svc.cluster.local", 8081));
    let closed = one(", failOpen: false, statusOnError: 503, domain: d, timeout: 1s").unwrap().remove(0);
    let found = closed.global_limits("c", Vec::new()).unwrap();
    assert_eq!(
        (&*found.domain, found.timeout, found.status_on_error),
        ("d", Duration::from_secs(1), Some(503))
    );
    for (more, wanted) in [
        (", timeout: 61s", "longer than a minute"),
        (", timeout: soon", "no duration"),
        (", domain: ''", "domain"),
        (", statusOnError: 503", "failOpen: false"),
        (", failOpen: false, statusOnError: 42", "statusOnError"),
        (", colour: red", "colour"),
    ] {
        let error = format!("{:#}", one(more).unwrap_err());
        assert!(error.contains(wanted), "{more}: {error}");
    }
    let two = "[{name: l, envoyRateLimitGrpc: {service: a/b, port: 1}, envoyExtAuthzGrpc: {service: a/b, port: 1}}]";
    assert!(read(two).is_err());
}
