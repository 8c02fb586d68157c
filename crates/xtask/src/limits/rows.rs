//! What each row of the tables is tied to: the beginning of its first cell, and for each number of its second, in their order,
//! a file under `crates` and a place in it.
//!
//! A place is an expression of the file's constants (`MAX_HEAD`, `SETS * WAYS`), or a snippet of its code with a hole where
//! the number stands (`{}`) and `…` for what does not matter. It must be unique in the file. No place repeats the value.

pub type Row = (&'static str, &'static [(&'static str, &'static [&'static str])]);

pub const ROWS: &[Row] = &[
    // The sidecar.
    (
        "memory that is handed out",
        &[("proxy/src/memory/limit.rs", &["(self.limit / {} / self.workers)", "LEAST"])],
    ),
    ("bytes that nobody takes", &[("proxy/src/memory.rs", &["self.budget / {} }"])]),
    ("one connection's part", &[("proxy/src/memory.rs", &["most_each: budget.of_worker() / {},"])]),
    (
        "connections of a worker",
        &[
            ("proxy/src/memory/limit.rs", &["(self.of_worker() / ({})).min(most)"]),
            ("proxy/src/listen/accept.rs", &["MAX_CONNECTIONS"]),
        ],
    ),
    ("limit of open files", &[("telemetry/src/descriptors.rs", &["MOST"])]),
    ("descriptors for admin pages", &[("proxy/src/descriptors.rs", &["(limit / {}).min(KEPT)", "KEPT"])]),
    (
        "passthrough connections",
        &[("proxy/src/loops.rs", &["(all / {}).clamp(", "(all / …).clamp({}, MOST as usize)", "MOST"])],
    ),
    ("streams of an HTTP/2 connection", &[("proxy/src/http/window.rs", &["MAX_STREAMS"])]),
    (
        "receive window",
        &[(
            "proxy/src/http/window.rs",
            &[
                "= [(…, {}), (",
                "= [({}, …), (",
                "= [(…), (…, {}), (usize::MAX",
                "= [(…), ({}, …), (usize::MAX",
                "(usize::MAX, {})]",
            ],
        )],
    ),
    ("bytes read in a turn", &[("proxy/src/http/turn.rs", &["READ"])]),
    (
        "a head",
        &[
            ("model/src/listener.rs", &["max_request_headers_kb: {}, request_headers_timeout: Duration::"]),
            (
                "proxy/src/http/h1.rs",
                &[
                    "MAX_HEAD",
                    "fields: {}, trailers: …, chunk_line: …, chunk_extensions: …, }",
                    "OWN_BYTES",
                    "OWN_FIELDS",
                    "head: MAX_HEAD, start_line: {}, fields:",
                ],
            ),
        ],
    ),
    (
        "trailers",
        &[(
            "proxy/src/http/h1.rs",
            &[
                "head: MAX_HEAD, …, trailers: {}, chunk_line:",
                "head: MAX_HEAD, …, chunk_line: {}, chunk_extensions:",
                "head: MAX_HEAD, …, chunk_extensions: {}, }",
            ],
        )],
    ),
    (
        "options of `Connection`",
        &[
            ("proxy/src/http/h1/strict.rs", &["MOST_OPTIONS"]),
            ("proxy/src/http/h1/grammar.rs", &["LONGEST_HOST"]),
        ],
    ),
    ("small DATA frames", &[]),
    ("interim responses", &[("proxy/src/http/h1/parse.rs", &["MAX_INTERIM"])]),
    (
        "resets under way to an upstream",
        &[("proxy/src/upstream/pool/h2/cancel.rs", &["AT_ONCE", "WAITING", "IN_ALL", "PATIENCE"])],
    ),
    ("resets of a client", &[("proxy/src/http/server/h2.rs", &["MAX_UNSEEN_RESETS"])]),
    (
        "first bytes, TLS handshake",
        &[("proxy/src/detect.rs", &["MAX_PEEK"]), ("proxy/src/conn.rs", &["HANDSHAKE_TIMEOUT"])],
    ),
    (
        "head of a request, HTTP/2 preface",
        &[
            (
                "model/src/listener.rs",
                &["_kb: …, request_headers_timeout: {}, stream_idle_timeout: Duration::"],
            ),
            ("proxy/src/http/server/h2.rs", &["PREFACE"]),
        ],
    ),
    ("records of TLS", &[("proxy/src/stream/tls/records.rs", &["MOST_QUIET", "MOST_MESSAGE"])]),
    ("wait for a connection's place", &[]),
    (
        "what goes along to a service that authorizes",
        &[
            ("model/src/ext_authz.rs", &["MOST_BODY"]),
            ("proxy/src/http/chain/visit.rs", &["MOST_ANSWER"]),
            (
                "model/src/ext_authz.rs",
                &["timeout: {}, failure_mode_allow: false", "status_on_error: {}, body: None"],
            ),
        ],
    ),
    (
        "what a service that counts answers",
        &[
            ("proxy/src/http/chain/visit.rs", &["MOST_ANSWER"]),
            ("control/src/provider/limits.rs", &["TIMEOUT", "LONGEST"]),
        ],
    ),
    (
        "tokens of a request",
        &[
            ("model/src/token/find.rs", &["MOST"]),
            ("model/src/token/verify.rs", &["LONGEST"]),
            ("proxy/src/http/filter/tokens.rs", &["2 * HALF"]),
            ("model/src/token/keys.rs", &["MOST_KEYS"]),
        ],
    ),
    (
        "copies for mirrors",
        &[
            ("proxy/src/http/body.rs", &["REPLAY_LIMIT"]),
            ("proxy/src/http/mirror/copies.rs", &["MOST_COPIES", "(all / {} / workers.max(", "MOST_BYTES"]),
            ("proxy/src/http/mirror.rs", &["PATIENCE"]),
        ],
    ),
    (
        "bodies that are kept for retries and hedges",
        &[
            ("proxy/src/http/body.rs", &["REPLAY_LIMIT"]),
            (
                "proxy/src/memory.rs",
                &["all > self.inner.budget / {})", "held > self.inner.most_each / {} ||"],
            ),
        ],
    ),
    (
        "requests that a worker remembers",
        &[("proxy/src/recent.rs", &["FAILED", "OTHERS"]), ("proxy/src/http/context/ended.rs", &["TEXT"])],
    ),
    (
        "rate limits of a workload",
        &[
            ("model/src/rate_limit.rs", &["MOST_LIMITS", "MOST_PARTS"]),
            // A sliding window and the hash of its value are 64 bytes, the largest that is kept of one.
            ("proxy/src/runtime/rate.rs", &["SETS * WAYS", "64 * SETS * WAYS"]),
        ],
    ),
    (
        "requests under way by `adaptiveConcurrency`",
        &[
            ("model/src/concurrency.rs", &["MOST_CONCURRENCY"]),
            ("proxy/src/runtime/concurrency/samples.rs", &["BUCKETS: usize = {} * STEPS", "STEPS"]),
            ("model/src/rate_limit.rs", &["MOST_LIMITS"]),
        ],
    ),
    (
        "names that an identity has in metrics",
        &[
            ("proxy/src/metrics/guests.rs", &["NAMES", "KEPT"]),
            ("proxy/src/introduction.rs", &["MAX_NAME", "MAX_LABEL"]),
            ("proxy/src/metrics/guests.rs", &["IDENTITIES"]),
        ],
    ),
    (
        "series, metrics page",
        &[("proxy/src/metrics.rs", &["MAX_SERIES"]), ("telemetry/src/metrics/page.rs", &["BUDGET"])],
    ),
    (
        "a log line that strangers cause",
        &[("telemetry/src/logging/throttle.rs", &["BURST", "EVERY", "WIDER"])],
    ),
    (
        "`upgrades` of a port",
        &[
            ("control/src/instance.rs", &["MOST_UPGRADES"]),
            ("rules/src/dialect/traffic_rules/upgrades.rs", &["MOST"]),
            ("model/src/route.rs", &["text.len() <= {} && text.splitn("]),
        ],
    ),
    ("names that the sidecar resolves", &[("proxy/src/resolve/lookup.rs", &["MOST_LOOKUPS", "MOST"])]),
    (
        "checks; what one says",
        &[
            ("proxy/src/bootstrap/register.rs", &["MOST"]),
            ("proxy/src/checks.rs", &["REASON"]),
            ("proxy/src/checks/script.rs", &["MOST_READ", "MOST_OUTPUT"]),
        ],
    ),
    (
        "health checks of endpoints",
        &[("proxy/src/health.rs", &["MOST_UNDER_WAY"]), ("proxy/src/health/ask.rs", &["MOST"])],
    ),
    ("a file that a rule names", &[("proxy/src/upstream/outside.rs", &["MOST"])]),
    (
        "the application's page of metrics",
        &[("proxy/src/app_metrics.rs", &["MOST", "MOST_HELD", "AT_ONCE", "MOST_PATIENCE"])],
    ),
    (
        "connections of a port of pages",
        &[
            ("telemetry/src/admin/server.rs", &["connections: {}, body: …, header_timeout: Duration::"]),
            ("telemetry/src/admin/crowd.rs", &["(self.most / {}).max(1)", "(self.most * {} / 4)"]),
            (
                "telemetry/src/admin/server.rs",
                &[
                    "header_timeout: {}, body_timeout: Duration::",
                    "connections: …, body: {}, header_timeout: Duration::",
                    "body_timeout: {}, handler_timeout: Duration::",
                    "handler_timeout: {}, connection_age: Duration::",
                    ", connection_age: {}, }",
                ],
            ),
        ],
    ),
    ("subscriptions, DNS", &[]),
    // The control plane.
    (
        "keys that are fetched",
        &[
            ("control/src/keys.rs", &["MOST", "AT_ONCE", "SHARE"]),
            ("control/src/keys/fetch.rs", &["MOST_BYTES"]),
            ("rules/src/dialect/request_authentication.rs", &["TIMEOUT"]),
            (
                "control/src/keys.rs",
                &["PATIENCE: (Duration, Duration) = ({}, …);", "PATIENCE: (Duration, Duration) = (…, {});"],
            ),
        ],
    ),
    (
        "TLS handshake, first request",
        &[
            ("identity/src/incoming.rs", &["HANDSHAKE_TIMEOUT"]),
            ("control/src/app/grpc.rs", &["FIRST_REQUEST", "ANSWER", "IDLE"]),
        ],
    ),
    (
        "ping of an open connection",
        &[("control/src/app/grpc.rs", &["KEEPALIVE_INTERVAL", "KEEPALIVE_TIMEOUT"])],
    ),
    (
        "shares of the descriptors",
        &[(
            "control/src/app/gate.rs",
            &[
                "saturating_sub(OWN) / {})",
                "xds: limits(({} * part)",
                "xds: limits((…), ({} * part)",
                "let socket = small({});",
                "injector: small({}),",
                "management: small({}),",
                "otlp: small({}),",
                "query: small({}),",
                "(parts * part).min({});",
                "limits(all / {}, all - all",
                "OWN",
            ],
        )],
    ),
    (
        "strangers (who",
        &[(
            "control/src/app/gate.rs",
            &["xds: limits((…), (…).min({})),", "strangers_per_source: (strangers / {})", "all * {} / 4"],
        )],
    ),
    (
        "members of the xDS port",
        &[(
            "control/src/app/gate.rs",
            &["xds: limits((…).min({}), (", "(self.members / {}).max(", "members_per_source: (members / {})"],
        )],
    ),
    (
        "without a certificate",
        &[
            (
                "control/src/app/grpc.rs",
                &[
                    "const STRANGER: Self = Self { …, streams: {}, only",
                    "const STRANGER: Self = Self { stream_window: {}, connection",
                    "max_header_list_size({})",
                ],
            ),
            ("identity/src/csr.rs", &["MAX_CSR_BYTES"]),
        ],
    ),
    (
        "with a certificate of the mesh",
        &[
            ("control/src/app/grpc.rs", &["const MEMBER: Self = Self { …, streams: {}, only"]),
            ("xds/src/server/door.rs", &["MAX_REQUEST"]),
            ("xds/src/server/weight.rs", &["MOST_FIELDS", "LONGEST_NODE", "LONGEST_REFUSAL"]),
            ("xds/src/server/service.rs", &["FIRST_REQUEST"]),
        ],
    ),
    (
        "management API",
        &[
            ("control/src/app/http.rs", &["HEAD_TIMEOUT", "max_buf_size({})", "CONNECTION_AGE"]),
            ("control/src/api.rs", &["MAX_BODY", "MAX_WAIT"]),
        ],
    ),
    (
        "wrong tokens",
        &[("control/src/tokens/guesses.rs", &["BURST", "NETWORK", "v6.to_bits() >> {})", "EACH", "SOURCES"])],
    ),
    (
        "a registration; those",
        &[
            ("control/src/instance.rs", &["MAX_BYTES", "MAX_ADDRESSES", "MAX_WEIGHT"]),
            ("control/src/registry/api.rs", &["MAX_PER_IDENTITY"]),
            ("control/src/keeper/draft/instances.rs", &["MAX_PORTS"]),
            ("control/src/instance.rs", &["MAX_OF_POD"]),
            ("control/src/registry/kubernetes/cluster.rs", &["MOST_OTHERS"]),
        ],
    ),
    (
        "what callers' metrics have",
        &[(
            "control/src/compile/endpoints.rs",
            &["LONGEST: (usize, usize) = ({},", "LONGEST: (usize, usize) = (…, {});"],
        )],
    ),
    (
        "names per kind of a client",
        &[
            ("xds/src/server/engine.rs", &["MAX_NAMES"]),
            ("xds/src/server.rs", &["LONGEST_NAME", "ROOM"]),
            ("control/src/xds_source.rs", &["LONGEST_WORD"]),
            ("control/src/status.rs", &["LONGEST_REASON", "MOST_NACKS"]),
        ],
    ),
    (
        "service accounts' tokens",
        &[("control/src/service_accounts.rs", &["AT_ONCE", "AT_ONCE", "TURN", "PATIENCE", "SHORT"])],
    ),
    (
        "a question to the injector",
        &[
            (
                "control/src/webhook/desk.rs",
                &[
                    "MOST",
                    "ROOM",
                    "BODIES: (usize, Duration) = ({},",
                    "BODIES: (usize, Duration) = (…, {});",
                    "QUESTIONS",
                    "ROOM",
                ],
            ),
            ("control/src/webhook.rs", &["PATIENCE"]),
            ("control/src/webhook/namespaces.rs", &["MOST", "KEPT", "FAMILIAR", "STRANGE", "WAITING"]),
        ],
    ),
    (
        "Events of rules",
        &[
            ("control/src/reports/events.rs", &["BURST: f64 = {}.0;", "PACE"]),
            ("control/src/reports.rs", &["EVENT", "EVENTS"]),
        ],
    ),
    ("ports that an annotation of a Service", &[("rules/src/dialect/service/opaque.rs", &["MOST"])]),
    (
        "keys of a cluster's tokens",
        &[
            ("control/src/service_accounts/kept.rs", &["MOST"]),
            ("control/src/service_accounts/offline.rs", &["OLD"]),
        ],
    ),
    (
        "a question about a rule",
        &[("control/src/webhook/validate.rs", &["PATIENCE", "JUDGEMENT", "ANALYSES"])],
    ),
    (
        "trace store",
        &[
            (
                "control/src/settings.rs",
                &[
                    "trace_spans: {}, trace_bytes: …, registry_files: Vec",
                    "trace_bytes: {}, registry_files: Vec",
                ],
            ),
            ("control/src/traces.rs", &["PART_PER_TRACE", "MOST_PER_TRACE"]),
            ("control/src/traces/query.rs", &["MAX_ANSWER"]),
            ("control/src/traces.rs", &["ANSWERS"]),
            ("control/src/traces/query.rs", &["TURN"]),
        ],
    ),
    (
        "a span: attributes",
        &[
            ("control/src/traces/receive.rs", &["MOST_TAGS", "MOST_EVENTS", "ROOM"]),
            (
                "control/src/traces/weigh.rs",
                &[
                    "MAX_MESSAGE",
                    "HEAVIEST",
                    "Self::ResourceSpans => {}, Self::Event",
                    "Self::EntityRef => …, _ => {}, }",
                ],
            ),
            ("control/src/app/servers.rs", &["EXPORTS"]),
            // A part is some 100 bytes at most, and what grows has twice its room.
            ("control/src/traces/weigh.rs", &["200 * HEAVIEST"]),
        ],
    ),
    ("explanations and descriptions", &[("control/src/api/explain.rs", &["AT_ONCE", "TURN", "MOST_BYTES"])]),
    (
        "refusals remembered",
        &[(
            "control/src/rejections.rs",
            &[
                "MOST",
                "LONGEST",
                "LINES: (usize, usize) = ({},",
                "LINES: (usize, usize) = (…, {});",
                "REPEAT",
            ],
        )],
    ),
    (
        "revocations",
        &[("identity/src/revoked.rs", &["MAX_REVOKED"]), ("control/src/replicas/document.rs", &["MOST"])],
    ),
    ("what a registry's server says", &[]),
    ("directories with `apply -R`", &[("cli/src/command/rules.rs", &["DEEPEST"])]),
];
