//! What is asked in which mesh of each sample, and what is wanted.

use outrigger_control::instance::Protocol;

/// A sample and its mesh: the workload `web` calls all services that are there, and `front`, where it asks anything.
pub(super) struct Play {
    pub(super) sample: &'static str,
    /// What is written otherwise, since the sample's is too slow or not of this machine.
    pub(super) edits: &'static [(&'static str, &'static str)],
    /// Of all workloads.
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// `SERVICE-VERSION`, which their applications call themselves.
    pub(super) workloads: &'static [&'static str],
    /// Of them the one that says it is not well.
    pub(super) sick: &'static str,
    pub(super) steps: &'static [Step],
}

impl Play {
    /// In the order of their first workloads.
    pub(super) fn services(&self) -> Vec<&'static str> {
        let mut services: Vec<_> = self.workloads.iter().filter_map(|name| name.rsplit_once('-')).collect();
        services.dedup_by_key(|(service, _)| *service);
        services.into_iter().map(|(service, _)| service).collect()
    }
}

/// Requests of one kind.
pub(super) struct Step {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// Method, path and fields, a line each, in which `{n}` is the number of the request; `GRPC PATH`, or `TLS NAME BY WORKLOAD`: of whose
    /// certificate the client thinks well.
    pub(super) ask: &'static str,
    pub(super) times: usize,
    pub(super) at_once: usize,
    /// Asked again until the answers are those that are wanted: what must become known first takes a while.
    pub(super) patient: bool,
    /// A field of the first answer, of which the value is `{kept}` from then on.
    pub(super) keeps: Option<&'static str>,
    pub(super) wanted: &'static [Wanted],
}

/// What is wanted of the answers to a step's requests, as text in lower case.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// All have it.
    Each(&'static str),
    /// None has it.
    Never(&'static str),
    /// At least so many have it, and at most so many: five standard deviations where it is chance.
    Of(&'static str, usize, usize),
    /// They come from so many applications, at least and at most.
    Apps(usize, usize),
}

use Wanted::{Apps, Each, Never, Of};

/// One request of `web`.
const fn ask(to: &'static str, ask: &'static str, wanted: &'static [Wanted]) -> Step {
    Step { from: "web", to, ask, times: 1, at_once: 1, patient: false, keeps: None, wanted }
}

impl Step {
    const fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    const fn at_once(self, at_once: usize) -> Self {
        Self { at_once, ..self }
    }

    const fn from(self, from: &'static str) -> Self {
        Self { from, ..self }
    }

    const fn patient(self) -> Self {
        Self { patient: true, ..self }
    }

    const fn keeping(self, field: &'static str) -> Self {
        Self { keeps: Some(field), ..self }
    }
}

/// A play as its sample is written, of HTTP at port 8080.
const fn of(sample: &'static str, workloads: &'static [&'static str], steps: &'static [Step]) -> Play {
    Play { sample, edits: &[], port: 8080, protocol: Protocol::Http, workloads, sick: "", steps }
}

impl Play {
    const fn at(self, port: u16, protocol: Protocol) -> Self {
        Self { port, protocol, ..self }
    }

    const fn written(self, edits: &'static [(&'static str, &'static str)]) -> Self {
        Self { edits, ..self }
    }

    const fn sick(self, sick: &'static str) -> Self {
        Self { sick, ..self }
    }
}

const OK: Wanted = Each("http/1.1 200 ");
const DENIED: Wanted = Each("http/1.1 403 ");

pub(super) static PLAYS: [Play; 21] = [
    // While it is measured an instance takes five at a time; the others are refused at once.
    of(
        "adaptive-concurrency",
        &["catalog-v1"],
        &[ask(
            "catalog",
            "GET /\nx-answer: all late",
            &[Of("http/1.1 200 ", 5, 11), Of("http/1.1 503 ", 1, 7)],
        )
        .times(12)
        .at_once(12)],
    ),
    of(
        "authorization",
        &["reviews-v1"],
        &[
            ask("reviews", "GET /reviews/1", &[OK]),
            ask("reviews", "DELETE /reviews/1", &[DENIED]),
            ask("reviews", "DELETE /else", &[OK]),
            ask("reviews", "GET /reviews/1", &[DENIED]).from("front"),
        ],
    )
    .at(9080, Protocol::Http),
    of(
        "canary",
        &["catalog-v1", "catalog-v2"],
        &[ask("catalog", "GET /", &[OK, Of("x-app-name: catalog-v2", 10, 70)]).times(400).at_once(8)],
    ),
    of(
        "circuit-breaker",
        &["catalog-v1", "catalog-v2"],
        &[
            ask("catalog", "GET /\nx-answer: catalog-v1 503", &[Of("http/1.1 503 ", 5, 5)]).times(40),
            ask("catalog", "GET /", &[OK, Each("x-app-name: catalog-v2")]).times(10),
        ],
    ),
    of(
        "consistent-hash",
        &["carts-v1", "carts-v2", "carts-v3"],
        &[
            ask("carts", "GET /", &[OK, Each("set-cookie: cart-user="), Each("max-age=3600")]),
            ask("carts", "GET /\nCookie: cart-user=ann", &[OK, Apps(1, 1), Never("set-cookie")]).times(12),
            ask("carts", "GET /\nCookie: cart-user=user-{n}", &[OK, Apps(3, 3)]).times(60),
        ],
    ),
    // Of the times only the least is sure: a busy machine makes others wait as long.
    of(
        "fault",
        &["reviews-v1"],
        &[ask("reviews", "GET /", &[Of("http/1.1 503 ", 1, 42), Of("waited 300 ms", 65, 195)])
            .times(200)
            .at_once(16)],
    )
    .at(9080, Protocol::Http),
    of(
        "grpc-route",
        &["stock-v1", "stock-reserve-v1"],
        &[
            ask(
                "stock",
                "GRPC /shop.Stock/Reserve",
                &[Each("x-app-name: stock-reserve-v1"), Each("x-route: reserve")],
            )
            .times(4),
            ask(
                "stock",
                "GRPC /shop.Stock/Count",
                &[Each("x-app-name: stock-v1"), Never("x-route: reserve")],
            )
            .times(4),
        ],
    )
    .at(7070, Protocol::Grpc),
    of(
        "header-route",
        &["reviews-v1", "reviews-v3"],
        &[
            ask("reviews", "GET /\nend-user: tester", &[OK, Each("x-app-name: reviews-v3")]).times(10),
            ask("reviews", "GET /\nend-user: ann", &[OK, Each("x-app-name: reviews-v1")]).times(10),
        ],
    )
    .at(9080, Protocol::Http),
    of(
        "health-check",
        &["catalog-v1", "catalog-v2"],
        &[ask("catalog", "GET /", &[OK, Each("x-app-name: catalog-v2")]).times(12).patient()],
    )
    .written(&[
        (" interval: 10s", " interval: 200ms"),
        ("noTrafficInterval: 60s", "noTrafficInterval: 200ms"),
    ])
    .sick("catalog-v1"),
    of(
        "hedging",
        &["reviews-v1", "reviews-v2"],
        &[
            ask(
                "reviews",
                "POST /search\nContent-Length: 0\nx-answer: reviews-v1 never",
                &[OK, Each("x-app-name: reviews-v2")],
            )
            .times(10),
            ask("reviews", "GET /page\nx-answer: reviews-v1 never", &[OK, Each("x-app-name: reviews-v2")])
                .times(6),
        ],
    )
    .at(9080, Protocol::Http),
    of(
        "http-route",
        &["catalog-v1", "catalog-next-v1"],
        &[
            ask(
                "catalog",
                "GET /v2/x",
                &[
                    OK,
                    Each("x-app-name: catalog-next-v1"),
                    Each("get /x http/1.1"),
                    Each("x-served-by: next"),
                ],
            )
            .times(4),
            ask("catalog", "GET /", &[OK, Of("x-app-name: catalog-next-v1", 10, 70), Never("x-served-by")])
                .times(400)
                .at_once(8),
            ask(
                "catalog",
                "GET /\nx-answer: all 503",
                &[Each("http/1.1 503 "), Each("x-envoy-attempt-count: 3")],
            ),
        ],
    ),
    of(
        "mtls-strict",
        &["catalog-v1", "stock-v1"],
        &[
            ask("catalog", "GET /", &[OK]),
            ask("stock", "GET /", &[OK]),
            ask("catalog", "GET /", &[Each("closed: ")]).from("outside"),
            ask("stock", "GET /metrics", &[OK]).from("outside"),
        ],
    )
    .at(9102, Protocol::Http),
    of(
        "rate-limit",
        &["catalog-v1"],
        &[
            ask(
                "catalog",
                "POST /orders\nContent-Length: 0\nx-user: ann",
                &[Of("http/1.1 200 ", 5, 5), Of("http/1.1 429 ", 2, 2), Of("retry-after: ", 2, 2)],
            )
            .times(7),
            ask("catalog", "POST /orders\nContent-Length: 0\nx-user: bob", &[OK]).times(5),
            ask("catalog", "GET /orders\nx-user: ann", &[OK]),
        ],
    ),
    of(
        "session",
        &["cart-v1", "cart-v2", "cart-v3", "catalog-v1"],
        &[
            ask("cart", "GET /api/x", &[OK, Apps(2, 3)]).times(40),
            ask("cart", "GET /api/x", &[OK]).keeping("x-cart-session"),
            ask("cart", "GET /api/x\nx-cart-session: {kept}", &[OK, Apps(1, 1)]).times(12),
            ask("cart", "GET /x", &[OK, Each("set-cookie: cart=")]).keeping("set-cookie"),
            ask("cart", "GET /x\nCookie: {kept}", &[OK, Apps(1, 1)]).times(12),
            ask("catalog", "GET /", &[OK, Each("set-cookie: outrigger-session.shop.catalog.all=")]),
        ],
    ),
    of(
        "sidecar",
        &["catalog-v1", "reviews-v1"],
        &[
            ask("catalog", "GET /", &[OK]),
            ask("reviews", "GET /", &[Each("http/1.1 502 "), Each("sidecar shop/web")]),
            ask("reviews", "GET /", &[OK]).from("front"),
        ],
    ),
    of(
        "tcp-route",
        &["database-v1", "database-next-v1"],
        &[ask("database", "GET /", &[OK, Of("x-app-name: database-next-v1", 12, 68)]).times(200).at_once(8)],
    )
    .at(5432, Protocol::Tcp),
    of(
        "timeout-retry",
        &["reviews-v1", "reviews-v2"],
        &[
            ask(
                "reviews",
                "GET /\nx-answer: all 503",
                &[Each("http/1.1 503 "), Each("x-envoy-attempt-count: 4")],
            ),
            ask("reviews", "GET /\nx-answer: all never", &[Each("http/1.1 504 "), Each("waited 2 s")]),
        ],
    )
    .at(9080, Protocol::Http),
    // At a port that needs no privilege.
    of(
        "tls-route",
        &["vault-v1", "vault-next-v1"],
        &[
            ask("vault", "TLS vault.example.com BY vault-v1", &[Of("asked for vault.example.com", 75, 99)])
                .times(100)
                .at_once(8),
            ask(
                "vault",
                "TLS vault.example.com BY vault-next-v1",
                &[Of("asked for vault.example.com", 1, 25)],
            )
            .times(100)
            .at_once(8),
            ask("vault", "TLS www.example.net BY vault-v1", &[Each("closed: "), Never("certificate")]),
        ],
    )
    .at(8443, Protocol::Tls)
    .written(&[("port: 443", "port: 8443")]),
    of(
        "tokens",
        &["catalog-v1"],
        &[
            ask("catalog", "GET /", &[OK, Never("x-user: ")]),
            ask("catalog", "POST /\nContent-Length: 0", &[DENIED]),
            ask(
                "catalog",
                "POST /\nContent-Length: 0\nAuthorization: Bearer {editor}",
                &[OK, Each("x-user: me")],
            )
            .patient(),
            ask("catalog", "POST /\nContent-Length: 0\nAuthorization: Bearer {reader}", &[DENIED]),
            ask("catalog", "GET /\nAuthorization: Bearer {reader}", &[OK]),
            ask("catalog", "GET /\nAuthorization: Bearer rubbish", &[Each("http/1.1 401 ")]),
        ],
    )
    .written(&[("https://accounts.example.com/keys", "http://{keys}/keys")]),
    of(
        "traffic-rules",
        &["reviews-v1", "reviews-v2", "reviews-v3"],
        &[
            ask("reviews", "GET /\nend-user: tester", &[OK, Each("x-app-name: reviews-v3")]).times(10),
            ask(
                "reviews",
                "GET /search",
                &[Of("http/1.1 503 ", 1, 42), Of("waited 300 ms", 65, 195), Never("x-app-name: reviews-v1")],
            )
            .times(200)
            .at_once(16),
            ask(
                "reviews",
                "GET /",
                &[OK, Of("x-app-name: reviews-v2", 10, 70), Never("x-app-name: reviews-v3")],
            )
            .times(400)
            .at_once(8),
        ],
    )
    .at(9080, Protocol::Http),
    of(
        "whole-page",
        &["catalog-v1", "catalog-v2"],
        &[
            ask(
                "catalog",
                "GET /old/x\nHost: catalog",
                &[Each("http/1.1 308 "), Each("location: https://catalog:8443/new/x\r\n")],
            ),
            ask("catalog", "GET /ADMIN", &[DENIED, Each("not from here"), Each("cache-control: no-store")]),
            ask("catalog", "GET /search", &[OK, Each("x-search: 1")]),
            ask(
                "catalog",
                "GET /v1/x\nHost: catalog:8080",
                &[
                    OK,
                    Each("get /api/x http/1.1"),
                    Each("host: api.shop.internal"),
                    Each("x-called: catalog:8080/v1/x"),
                    Each("x-served-by: 127."),
                ],
            ),
            ask("catalog", "GET /", &[OK, Each("set-cookie: shop-user="), Of("x-canary: yes", 10, 70)])
                .times(400)
                .at_once(8),
        ],
    ),
];
