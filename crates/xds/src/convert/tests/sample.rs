//! Strategies for resources that are valid and in the model's own spelling, so that equality is the right comparison.

use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::*;
use outrigger_model::endpoint::*;
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::*;
use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::path::{EscapedSlashes, PathNormalization};
use outrigger_model::resource::*;
use outrigger_model::route::*;
use proptest::collection::{btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;

mod attempts;
mod authz;
mod beside;
mod dns;
mod endpoints;

use authz::rbac;
use endpoints::{endpoints, locality};

fn name() -> impl Strategy<Value = String> {
    "[a-z|._-]{1,12}"
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-zA-Z0-9%/. ]{1,10}", Just("ü€%%x".to_owned()), Just("100%".to_owned())]
}

fn token() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,8}"
}

fn duration() -> impl Strategy<Value = Duration> {
    (1_u64..100_000, 0_u32..1_000_000_000).prop_map(|(s, n)| Duration::new(s, n))
}

fn duration_or_off() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(Duration::ZERO), duration()]
}

/// Exact to a ten-thousandth, as the wire is.
fn percentage() -> impl Strategy<Value = f64> {
    prop_oneof![(0_u32..=100).prop_map(f64::from), (0_u32..=1_000_000).prop_map(|n| f64::from(n) / 10_000.0)]
}

fn origin() -> impl Strategy<Value = Origin> {
    (name(), name(), text()).prop_map(|(kind, namespace, name)| Origin { kind, namespace, name })
}

fn identity() -> impl Strategy<Value = SpiffeId> {
    ("[a-z]{1,5}", "[a-z]{1,5}").prop_map(|(n, s)| SpiffeId::workload("cluster.local", &n, &s).unwrap())
}

fn address() -> impl Strategy<Value = std::net::SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(Into::into),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(Into::into),
    ]
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0_u8..=32).prop_map(|(ip, n)| ipnet::IpNet::new(ip.into(), n).unwrap()),
        (any::<[u8; 16]>(), 0_u8..=128).prop_map(|(ip, n)| ipnet::IpNet::new(ip.into(), n).unwrap()),
    ]
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    let fold = |(pattern, ignore_case)| StringMatch { pattern, ignore_case };
    let plain = prop_oneof![
        prop_oneof![text(), Just(String::new())].prop_map(Pattern::Exact),
        text().prop_map(Pattern::Prefix),
        text().prop_map(Pattern::Suffix),
        text().prop_map(Pattern::Contains),
    ];
    let never_folded = prop_oneof![
        prop_oneof![Just("a+b?"), Just("[0-9]{3}"), Just(".*")].prop_map(|r| Pattern::Regex(r.to_owned())),
        Just(Pattern::Present),
    ];
    prop_oneof![(plain, any::<bool>()).prop_map(fold), (never_folded, Just(false)).prop_map(fold)]
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    let name = prop_oneof![token(), Just(":path".to_owned()), Just(":authority".to_owned())];
    (name, string_match(), any::<bool>()).prop_map(|(name, value, invert)| HeaderMatch {
        name,
        value,
        invert,
    })
}

fn edits() -> impl Strategy<Value = HeaderEdits> {
    let commands = || {
        proptest::sample::select(vec!["%REQ(x-a?:path):9%", "a %PROTOCOL%%% b", "%START_TIME(%s)%"])
            .prop_map(|text| HeaderText::read(text, text::Edited::Request).unwrap())
    };
    let value = || prop_oneof![text().prop_map(HeaderText::from), Just(HeaderText::default()), commands()];
    let pairs = || vec((token(), value()), 0..2);
    (vec(token(), 0..2), pairs(), pairs(), pairs(), pairs()).prop_map(
        |(remove, set, add, set_if_present, add_if_absent)| HeaderEdits {
            remove,
            set,
            add,
            set_if_present,
            add_if_absent,
        },
    )
}

fn weighted() -> impl Strategy<Value = Vec<WeightedCluster>> {
    let one = (name(), 0_u32..1000, edits(), edits(), of(name())).prop_map(
        |(cluster, weight, request_headers, response_headers, authority)| WeightedCluster {
            cluster,
            weight,
            request_headers,
            response_headers,
            authority,
            part: None,
        },
    );
    prop_oneof![
        name().prop_map(|cluster| vec![WeightedCluster::only(cluster)]),
        vec(one, 1..4).prop_map(|mut all| {
            all[0].weight += 1;
            all
        }),
    ]
}

fn forward() -> BoxedStrategy<Forward> {
    let rewrite = attempts::rewrite();
    let hash = prop_oneof![
        token().prop_map(HashOn::Header),
        (token(), of(token()), of(duration_or_off())).prop_map(|(name, path, ttl)| HashOn::Cookie {
            name,
            path,
            ttl
        }),
        token().prop_map(HashOn::Query),
        Just(HashOn::SourceAddress),
    ];
    let upgrade = (token(), any::<bool>()).prop_map(|(protocol, allowed)| RouteUpgrade { protocol, allowed });
    let absent =
        proptest::sample::select(vec![NoCluster::Unavailable, NoCluster::NotFound, NoCluster::InternalError]);
    let more = (vec(upgrade, 0..3), vec(beside::mirror(), 0..3), absent, of(beside::hedge()));
    let times = (of(duration()), attempts::limits(), of(attempts::retry()));
    (weighted(), times, rewrite, vec(hash, 0..3), more)
        .prop_map(
            |(clusters, (timeout, limits, retry), rewrite, hash, (upgrades, mirrors, no_cluster, hedge))| {
                Forward {
                    clusters,
                    timeout,
                    limits: limits.if_any(),
                    retry,
                    hedge,
                    rewrite,
                    hash,
                    upgrades,
                    mirrors,
                    no_cluster,
                }
            },
        )
        .boxed()
}

fn action() -> impl Strategy<Value = RouteAction> {
    let status = proptest::sample::select(vec![301_u16, 302, 303, 307, 308]);
    let redirect = (of(token()), of(name()), of(1_u16..), 0..8, "/[a-z]{0,5}", status).prop_map(
        |(scheme, authority, port, which, path, status)| Redirect {
            scheme,
            authority,
            port,
            strip_query: which > 3,
            path: (which % 4 == 1).then(|| path.clone()),
            prefix: (which % 4 == 2).then(|| path.clone()),
            regex: (which % 4 == 3).then(|| ("^/a/?".to_owned(), path.clone())),
            status,
        },
    );
    prop_oneof![
        4 => forward().prop_map(RouteAction::Forward),
        1 => redirect.prop_map(RouteAction::Redirect),
        1 => (200_u16..600, ".{0,20}").prop_map(|(status, body)| RouteAction::Direct { status, body }),
    ]
}

fn route_match() -> impl Strategy<Value = RouteMatch> {
    let path = prop_oneof![
        "/[a-zA-Z/]{0,8}".prop_map(PathMatch::Exact),
        "/[a-zA-Z/]{0,8}".prop_map(PathMatch::Prefix),
        "/[a-z/]{0,8}[a-z]".prop_map(PathMatch::Segments),
        Just(PathMatch::Regex("/v[12]/.*".to_owned())),
        Just(PathMatch::Connect),
    ];
    let query = (token(), string_match()).prop_map(|(name, value)| QueryMatch { name, value });
    let cookie = (token(), string_match(), any::<bool>()).prop_map(|(name, value, invert)| CookieMatch {
        name,
        value,
        invert,
    });
    (path, any::<bool>(), vec(header_match(), 0..3), vec(query, 0..2), vec(cookie, 0..2)).prop_map(
        |(path, ignore_case, headers, query, cookies)| RouteMatch {
            path,
            ignore_case,
            headers,
            query,
            cookies,
        },
    )
}

fn route() -> impl Strategy<Value = Route> {
    let name = prop_oneof![name(), Just(String::new())];
    let filters = (of(beside::fault()), of(beside::cors()), of(attempts::session()), authz::of_route());
    (name, route_match(), action(), filters, edits(), edits(), of(origin())).prop_map(
        |(
            name,
            matches,
            action,
            (fault, cors, session, authz),
            request_headers,
            response_headers,
            origin,
        )| Route {
            name,
            matches,
            action,
            fault,
            cors,
            session: session.map(Box::new),
            authz,
            // How they are written and read: `local_limit.rs`.
            local_limits: Default::default(),
            request_headers,
            response_headers,
            origin,
        },
    )
}

fn route_config() -> impl Strategy<Value = RouteConfig> {
    let host = (name(), btree_set("[a-z]{1,8}", 1..3), vec(route().boxed(), 0..3), of(attempts::retry()));
    (name(), vec(host, 0..3)).prop_map(|(name, hosts)| RouteConfig {
        name,
        virtual_hosts: hosts
            .into_iter()
            .enumerate()
            .map(|(i, (name, domains, routes, retry))| VirtualHost {
                name,
                domains: domains
                    .into_iter()
                    .map(|d| format!("{d}.h{i}:80"))
                    .chain([format!("*.h{i}")])
                    .collect(),
                routes,
                retry,
            })
            .collect(),
    })
}

fn http() -> impl Strategy<Value = HttpConnection> {
    let routes = prop_oneof![
        name().prop_map(RouteSource::Named),
        route_config().boxed().prop_map(RouteSource::Inline)
    ];
    let filter = prop_oneof![
        rbac().prop_map(HttpFilter::Rbac),
        beside::fault().prop_map(HttpFilter::Fault),
        authz::ext_authz().prop_map(|authz| HttpFilter::ExtAuthz(Box::new(authz))),
        vec(beside::rate_limit(), 0..3).prop_map(HttpFilter::RateLimit),
        beside::concurrency().prop_map(|limit| HttpFilter::Concurrency(Box::new(limit))),
        beside::global_limits().prop_map(|limits| HttpFilter::GlobalLimit(Box::new(limits))),
        authz::tokens().prop_map(|tokens| HttpFilter::Tokens(Box::new(tokens))),
    ];
    let codec = prop_oneof![Just(Codec::Auto), Just(Codec::Http1), Just(Codec::Http2)];
    let tracing = percentage().prop_map(|random_sampling| Tracing { random_sampling });
    let (off, at_most) = (duration_or_off, || of(duration()));
    let times = (off(), off(), off(), at_most(), at_most());
    let slashes =
        prop_oneof![Just(EscapedSlashes::Keep), Just(EscapedSlashes::Reject), Just(EscapedSlashes::Decode)];
    let path = (any::<bool>(), any::<bool>(), slashes).prop_map(|(base, merge_slashes, escaped_slashes)| {
        PathNormalization { base, merge_slashes, escaped_slashes }
    });
    (routes, vec(filter, 0..3), codec, of(tracing), 1_u32..9000, times, path, vec(token(), 0..3)).prop_map(
        |(routes, filters, codec, tracing, max_request_headers_kb, times, path, upgrades)| HttpConnection {
            routes,
            filters,
            codec,
            tracing,
            max_request_headers_kb,
            request_headers_timeout: times.0,
            stream_idle_timeout: times.1,
            max_stream_duration: times.3,
            idle_timeout: times.2,
            max_connection_duration: times.4,
            path,
            upgrades,
        },
    )
}

fn chain() -> impl Strategy<Value = FilterChain> {
    let clusters = vec((name(), 1_u32..100), 1..3);
    let tcp =
        (clusters, duration_or_off(), of(duration())).prop_map(|(shares, idle_timeout, max_duration)| {
            let clusters = shares.into_iter().map(|(c, w)| WeightedCluster::share(c, w)).collect();
            TcpProxy { clusters, idle_timeout, max_duration }
        });
    let terminal =
        prop_oneof![http().boxed().prop_map(|h| Terminal::Http(Box::new(h))), tcp.prop_map(Terminal::Tcp)];
    let server_name = prop_oneof![token(), token().prop_map(|t| format!("*.{t}"))];
    let transport =
        prop_oneof![Just(TransportMatch::Any), Just(TransportMatch::Tls), Just(TransportMatch::Plain)];
    let matches = (of(any::<u16>()), vec(server_name, 0..3), transport, vec(token(), 0..3)).prop_map(
        |(destination_port, server_names, transport, application_protocols)| ChainMatch {
            destination_port,
            server_names,
            transport,
            application_protocols,
        },
    );
    let tls = vec(token(), 0..3).prop_map(|alpn| ServerTls::Mesh { alpn });
    let name = prop_oneof![name(), Just(String::new())];
    (name, matches, of(tls), vec(rbac(), 0..3), terminal, of(origin())).prop_map(
        |(name, matches, tls, authorization, terminal, origin)| FilterChain {
            name,
            matches,
            tls,
            authorization,
            terminal,
            origin,
        },
    )
}

fn listener() -> impl Strategy<Value = Listener> {
    let direction = prop_oneof![Just(Direction::Inbound), Just(Direction::Outbound)];
    (name(), direction, vec(address(), 0..3), vec(chain().boxed(), 1..4), of(chain().boxed())).prop_map(
        |(name, direction, addresses, mut chains, default_chain)| {
            for (port, chain) in chains.iter_mut().enumerate() {
                chain.matches.destination_port = Some(port as u16); // no two alike
            }
            Listener { name, direction, addresses, chains, default_chain }
        },
    )
}

/// How one is picked, how reports are weighed, and the capacity.
fn balancing() -> impl Strategy<Value = (Balance, LoadReports, Option<u32>)> {
    let ring = (1_u64..9000, 0_u64..9000)
        .prop_map(|(minimum, more)| Balance::RingHash { minimum, maximum: minimum + more });
    let balance = prop_oneof![
        Just(Balance::RoundRobin),
        Just(Balance::LeastRequest),
        Just(Balance::Random),
        ring,
        Just(Balance::SteadyRing),
        proptest::sample::select(vec![2_u64, 251, 65_537]).prop_map(|size| Balance::Maglev { size }),
        (3_u32..9, 0_u32..3000)
            .prop_map(|(choices, bias)| Balance::LeastOf(LeastOf { choices: Some(choices), bias })),
        (0_u32..3000).prop_map(|bias| Balance::LeastOf(LeastOf { choices: None, bias })),
        (duration(), duration()).prop_map(|(decay, initial)| Balance::PeakEwma { decay, initial }),
        Just(Balance::Reported),
    ];
    (balance.boxed(), beside::load_reports().boxed(), of(1_u32..100)).boxed()
}

fn limits() -> impl Strategy<Value = Limits> {
    let budget = (percentage(), any::<u32>())
        .prop_map(|(percent, min_concurrency)| RetryBudget { percent, min_concurrency });
    (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), of(budget)).prop_map(
        |(max_connections, max_pending, max_requests, max_retries, retry_budget)| Limits {
            max_connections,
            max_pending,
            max_requests,
            max_retries,
            retry_budget,
        },
    )
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let discovery = prop_oneof![
        of(name()).prop_map(|service_name| Discovery::Eds { service_name }),
        (endpoints(), of("[a-z ]{1,30}"))
            .prop_map(|(set, trouble)| Discovery::Static(EndpointSet { trouble, ..set })),
        dns::discovery(),
        Just(Discovery::OriginalDestination),
    ];
    let tls = prop_oneof![
        Just(ClientTls::None),
        (name(), vec(identity(), 0..3), any::<bool>()).prop_map(|(server_name, identities, required)| {
            ClientTls::Mesh { server_name, identities, required }
        }),
        (name(), vec(token(), 0..3), of(name()), of("[A-Za-z0-9]{0,40}"), of((name(), name()))).prop_map(
            |(server_name, subject_alt_names, roots_file, body, client_files)| {
                let pem = |body| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
                let roots_pem = body.filter(|_| roots_file.is_none()).map(pem);
                let tls = OutsideTls { server_name, subject_alt_names, roots_file, roots_pem, client_files };
                ClientTls::Outside(tls)
            }
        ),
    ];
    let protocols = vec![UpstreamProtocol::Follow, UpstreamProtocol::Http1, UpstreamProtocol::Http2];
    let protocol = proptest::sample::select(protocols);
    let warmup = of((duration(), percentage(), 0.1..10.0)
        .prop_map(|(window, minimum_percent, aggression)| Warmup { window, minimum_percent, aggression }));
    let http = (protocol, duration_or_off(), any::<u32>(), warmup);
    let failing =
        (of(beside::outlier().boxed()), of(beside::breaker().boxed()), of(beside::health_check().boxed()))
            .boxed();
    (name(), discovery, balancing(), duration(), limits(), failing, tls, http, of(origin())).prop_map(
        |(
            name,
            discovery,
            (balance, load_reports, capacity),
            connect_timeout,
            limits,
            (outlier, breaker, health_check),
            tls,
            (protocol, idle_timeout, max_requests, warmup),
            origin,
        )| Cluster {
            original_port: (discovery == Discovery::OriginalDestination && max_requests > 0)
                .then_some(max_requests as u16 | 1),
            zone_aware: (max_requests % 3 == 1).then_some(ZoneAware {
                min_endpoints: max_requests,
                percent: 7,
                fail_below: None,
            }),
            load_reports: (balance == Balance::Reported).then(|| Box::new(load_reports)),
            capacity,
            warmup: warmup.filter(|_| beside::slow_starts(&discovery, balance)),
            name,
            discovery,
            balance,
            connect_timeout,
            limits,
            outlier,
            breaker,
            health_check,
            tls,
            protocol,
            idle_timeout,
            max_requests_per_connection: max_requests,
            // The wire has a place for it only beside HTTP/2.
            max_streams_per_connection: if protocol == UpstreamProtocol::Http1 {
                0
            } else {
                max_requests >> 1
            },
            keepalive: (max_requests % 2 == 1).then(|| Keepalive {
                probes: Some(max_requests),
                time: None,
                interval: Some(idle_timeout.as_secs().clamp(1, 900) as u32),
            }),
            max_connection_duration: (idle_timeout.as_secs() % 5 == 1).then_some(idle_timeout),
            max_stream_duration: (idle_timeout.as_secs() % 3 == 1).then_some(idle_timeout),
            origin,
            ..Cluster::new("")
        },
    )
}

/// Any resource.
pub(crate) fn resource() -> impl Strategy<Value = Resource> {
    let entries = vec("(spiffe://[a-z]{1,8}/[a-z]{1,8}|serial:[1-9a-f]{1,8})", 0..3);
    let roots = ("[A-Za-z0-9]{0,40}", entries).prop_map(|(body, revoked)| TrustBundleSecret {
        name: "ROOTCA".to_owned(),
        roots_pem: format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"),
        revoked,
    });
    prop_oneof![
        3 => cluster().boxed().prop_map(Resource::Cluster),
        2 => endpoints().prop_map(Resource::Endpoints),
        3 => listener().boxed().prop_map(Resource::Listener),
        3 => route_config().boxed().prop_map(Resource::Routes),
        1 => roots.prop_map(Resource::Secret),
        1 => (name(), name()).prop_map(|(name, listener)| Resource::Destination(Destination { name, listener })),
        1 => (name(), name(), vec(any::<std::net::IpAddr>(), 0..3), btree_set(name(), 0..3)).prop_map(
            |(name, host, addresses, names)| {
                Resource::Host(Host { name, host, addresses, names: names.into_iter().collect() })
            }
        ),
        1 => any::<u64>().prop_map(|generation| {
            Resource::Barrier(Barrier { name: "barrier".to_owned(), generation })
        }),
    ]
}
