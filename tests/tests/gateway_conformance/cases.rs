//! What the suite's `.go` files expect, case by case. Requests without a host go to `echo`, as there.

/// A case: what is applied, and what is asked then.
pub struct Case {
    /// As the suite calls it.
    pub name: &'static str,
    /// Of `tests/mesh`.
    pub file: Option<&'static str>,
    pub calls: &'static [Call],
}

/// One request and what must come of it.
pub struct Call {
    /// The pod that asks.
    pub from: &'static str,
    /// Whom it asks; `POD` is the address of echo-v2's pod.
    pub to: &'static str,
    pub path: &'static str,
    pub host: &'static str,
    pub grpc: bool,
    pub headers: &'static [(&'static str, &'static str)],
    pub status: u16,
    pub backend: Option<&'static str>,
    pub arrives_as: Option<&'static str>,
    pub sent: &'static [(&'static str, &'static str)],
    pub not_sent: &'static [&'static str],
    pub answered: &'static [(&'static str, &'static str)],
    pub not_answered: &'static [&'static str],
    pub location: Option<&'static str>,
}

/// A case of weights: 70 to 30.
pub struct Shares {
    pub name: &'static str,
    pub file: &'static str,
    pub call: Call,
}

const GET: Call = Call {
    from: "echo-v1",
    to: "echo:80",
    path: "/",
    host: "echo",
    grpc: false,
    headers: &[],
    status: 200,
    backend: None,
    arrives_as: None,
    sent: &[],
    not_sent: &[],
    answered: &[],
    not_answered: &[],
    location: None,
};

const fn v1(path: &'static str) -> Call {
    Call { path, backend: Some("echo-v1"), ..GET }
}

const fn v2(path: &'static str) -> Call {
    Call { path, backend: Some("echo-v2"), ..GET }
}

const fn absent(path: &'static str) -> Call {
    Call { path, status: 404, ..GET }
}

const fn moved(path: &'static str, status: u16, location: &'static str) -> Call {
    Call { path, status, location: Some(location), ..GET }
}

const SET: &[(&str, &str)] = &[("x-header-set", "set")];
const NOT_SET: &[&str] = &["x-header-set"];

pub const CASES: &[Case] = &[
    Case { name: "MeshBasic", file: None, calls: &[GET] },
    Case {
        name: "MeshConsumerRoute",
        file: Some("mesh-consumer-route.yaml"),
        calls: &[
            Call {
                from: "consumer",
                to: "echo-v1.gateway-conformance-mesh:80",
                host: "echo-v1.gateway-conformance-mesh",
                answered: SET,
                ..v1("/")
            },
            Call {
                to: "echo-v1:80",
                host: "echo-v1.gateway-conformance-mesh",
                not_answered: NOT_SET,
                ..v1("/")
            },
        ],
    },
    Case {
        name: "MeshFrontendHostname",
        file: Some("mesh-frontend.yaml"),
        calls: &[
            Call { to: "echo-v2:80", host: "echo-v1", answered: SET, ..v2("/") },
            Call { to: "echo-v1:80", host: "echo-v2", not_answered: NOT_SET, ..v1("/") },
        ],
    },
    Case {
        name: "MeshFrontend",
        file: Some("mesh-frontend.yaml"),
        calls: &[
            Call { to: "echo-v2:80", host: "echo-v2", answered: SET, ..v2("/") },
            Call { to: "POD", not_answered: NOT_SET, ..v2("/") },
        ],
    },
    Case {
        name: "MeshPorts",
        file: Some("mesh-ports.yaml"),
        calls: &[
            Call { to: "echo-v1:80", host: "echo-v1", answered: &[("x-header-set", "v1")], ..v1("/") },
            Call { to: "echo-v1:8080", host: "echo-v1:8080", not_answered: NOT_SET, ..v1("/") },
            Call { to: "echo-v2:80", host: "echo-v2", answered: &[("x-header-set", "v2")], ..v2("/") },
            Call { to: "echo-v2:8080", host: "echo-v2:8080", answered: &[("x-header-set", "v2")], ..v2("/") },
        ],
    },
    Case { name: "MeshTrafficSplit", file: Some("mesh-split.yaml"), calls: &[v1("/v1"), v2("/v2")] },
    Case {
        name: "MeshHTTPRouteMatching",
        file: Some("httproute-matching.yaml"),
        calls: &[
            v1("/"),
            v1("/example"),
            Call { headers: &[("version", "one")], ..v1("/") },
            v2("/v2"),
            v2("/v2/example"),
            Call { headers: &[("version", "two")], ..v2("/") },
            v2("/v2/"),
            // No whole element.
            v1("/v2example"),
            v1("/foo/v2/example"),
        ],
    },
    Case {
        name: "MeshHTTPRouteNamedRule",
        file: Some("httproute-named-rule.yaml"),
        calls: &[v1("/named"), v2("/unnamed")],
    },
    Case {
        name: "MeshHTTPRouteQueryParamMatching",
        file: Some("httproute-query-param-matching.yaml"),
        calls: &[
            v1("/?animal=whale"),
            v2("/?animal=dolphin"),
            v1("/?animal=whale&otherparam=irrelevant"),
            v2("/?animal=dolphin&color=yellow"),
            absent("/?color=blue"),
            absent("/?animal=dog"),
            absent("/?animal=whaledolphin"),
            absent("/"),
            v1("/path1?animal=whale"),
            Call { headers: &[("version", "one")], ..v2("/?animal=whale") },
            v1("/path3?animal=shark"),
            Call { headers: &[("version", "three")], ..v1("/path4?animal=kraken") },
            absent("/?animal=shark"),
            absent("/path4?animal=kraken"),
            v1("/path5?animal=hydra"),
        ],
    },
    Case {
        name: "MeshHTTPRoute303Redirect",
        file: Some("httproute-303-redirect.yaml"),
        calls: &[moved("/redirect", 303, "http://echo/redirect")],
    },
    Case {
        name: "MeshHTTPRoute307Redirect",
        file: Some("httproute-307-redirect.yaml"),
        calls: &[moved("/temporary", 307, "http://echo/temporary")],
    },
    Case {
        name: "MeshHTTPRoute308Redirect",
        file: Some("httproute-308-redirect.yaml"),
        calls: &[moved("/permanent", 308, "http://echo/permanent")],
    },
    Case {
        name: "MeshHTTPRouteRedirectHostAndStatus",
        file: Some("httproute-redirect-host-and-status.yaml"),
        calls: &[
            moved("/hostname-redirect", 302, "http://example.org/hostname-redirect"),
            moved("/host-and-status", 301, "http://example.org/host-and-status"),
        ],
    },
    Case {
        name: "MeshHTTPRouteRedirectPath",
        file: Some("httproute-redirect-path.yaml"),
        calls: &[
            moved("/original-prefix/lemon", 302, "http://echo/replacement-prefix/lemon"),
            moved("/full/path/original", 302, "http://echo/full-path-replacement"),
            moved("/path-and-host", 302, "http://example.org/replacement-prefix"),
            moved("/path-and-status", 301, "http://echo/replacement-prefix"),
            moved("/full-path-and-host", 302, "http://example.org/replacement-full"),
            moved("/full-path-and-status", 301, "http://echo/replacement-full"),
        ],
    },
    Case {
        name: "MeshHTTPRouteRedirectPort",
        file: Some("httproute-redirect-port.yaml"),
        calls: &[
            moved("/port", 302, "http://echo:8083/port"),
            moved("/port-and-host", 302, "http://example.org:8083/port-and-host"),
            moved("/port-and-status", 301, "http://echo:8083/port-and-status"),
            moved("/port-and-host-and-status", 302, "http://example.org:8083/port-and-host-and-status"),
        ],
    },
    Case {
        name: "MeshHTTPRouteSchemeRedirect",
        file: Some("httproute-redirect-scheme.yaml"),
        calls: &[
            moved("/scheme", 302, "https://echo/scheme"),
            moved("/scheme-and-host", 302, "https://example.org/scheme-and-host"),
            moved("/scheme-and-status", 301, "https://echo/scheme-and-status"),
            moved("/scheme-and-host-and-status", 302, "https://example.org/scheme-and-host-and-status"),
        ],
    },
    Case {
        name: "MeshHTTPRouteRequestHeaderModifier",
        file: Some("httproute-request-header-modifier.yaml"),
        calls: HEADERS,
    },
    Case {
        name: "MeshHTTPRouteBackendRequestHeaderModifier",
        file: Some("httproute-request-header-modifier-backend.yaml"),
        calls: HEADERS,
    },
    Case { name: "MeshHTTPRouteRewritePath", file: Some("httproute-rewrite-path.yaml"), calls: REWRITES },
    Case {
        name: "MeshHTTPRouteSimpleSameNamespace",
        file: Some("httproute-simple-same-namespace.yaml"),
        calls: &[v1("/")],
    },
];

const HEADERS: &[Call] = &[
    Call {
        headers: &[("Some-Other-Header", "val")],
        sent: &[("some-other-header", "val"), ("x-header-set", "set-overwrites-values")],
        ..v1("/set")
    },
    Call {
        headers: &[("Some-Other-Header", "val"), ("X-Header-Set", "some-other-value")],
        sent: &[("some-other-header", "val"), ("x-header-set", "set-overwrites-values")],
        ..v1("/set")
    },
    Call {
        headers: &[("Some-Other-Header", "val")],
        sent: &[("some-other-header", "val"), ("x-header-add", "add-appends-values")],
        ..v1("/add")
    },
    Call {
        headers: &[("Some-Other-Header", "val"), ("X-Header-Add", "some-other-value")],
        sent: &[("some-other-header", "val"), ("x-header-add", "some-other-value,add-appends-values")],
        ..v1("/add")
    },
    Call { headers: &[("X-Header-Remove", "val")], not_sent: &["x-header-remove"], ..v1("/remove") },
    Call {
        headers: &[
            ("X-Header-Set-2", "set-val-2"),
            ("X-Header-Add-2", "add-val-2"),
            ("X-Header-Remove-2", "remove-val-2"),
            ("Another-Header", "another-header-val"),
        ],
        sent: &[
            ("x-header-set-1", "header-set-1"),
            ("x-header-set-2", "header-set-2"),
            ("x-header-add-1", "header-add-1"),
            ("x-header-add-2", "add-val-2,header-add-2"),
            ("x-header-add-3", "header-add-3"),
            ("another-header", "another-header-val"),
        ],
        not_sent: &["x-header-remove-1", "x-header-remove-2"],
        ..v1("/multiple")
    },
    Call {
        headers: &[
            ("x-header-set", "original-val-set"),
            ("x-header-add", "original-val-add"),
            ("x-header-remove", "original-val-remove"),
            ("Another-Header", "another-header-val"),
        ],
        sent: &[
            ("x-header-set", "header-set"),
            ("x-header-add", "original-val-add,header-add"),
            ("another-header", "another-header-val"),
        ],
        not_sent: &["x-header-remove"],
        ..v1("/case-insensitivity")
    },
];

const EDITED: Call = Call {
    headers: &[
        ("X-Header-Remove", "remove-val"),
        ("X-Header-Add-Append", "append-val-1"),
        ("X-Header-Set", "set-val"),
    ],
    sent: &[
        ("x-header-add", "header-val-1"),
        ("x-header-add-append", "append-val-1,header-val-2"),
        ("x-header-set", "set-overwrites-values"),
    ],
    not_sent: &["x-header-remove"],
    backend: Some("echo-v1"),
    ..GET
};

const REWRITES: &[Call] = &[
    Call { arrives_as: Some("/one/two"), ..v1("/prefix/one/two") },
    Call { arrives_as: Some("/three"), ..v1("/strip-prefix/three") },
    Call { arrives_as: Some("/"), ..v1("/strip-prefix") },
    Call { arrives_as: Some("/one"), ..v1("/full/one/two") },
    Call { path: "/full/rewrite-path-and-modify-headers/test", arrives_as: Some("/test"), ..EDITED },
    Call { path: "/prefix/rewrite-path-and-modify-headers/one", arrives_as: Some("/prefix/one"), ..EDITED },
];

pub const SHARES: &[Shares] = &[
    Shares { name: "MeshHTTPRouteWeight", file: "httproute-weight.yaml", call: GET },
    Shares {
        name: "MeshGRPCRouteWeight",
        file: "grpcroute-weight.yaml",
        call: Call {
            to: "echo:7070",
            host: "echo:7070",
            path: "/proto.EchoTestService/Echo",
            grpc: true,
            ..GET
        },
    },
];
