//! After any sequence of changes every client has exactly what a world built afresh would give it, though it looked again only
//! at what it was told of.
//!
//! `OUTRIGGER_CHANGES` is how many changes are made; the seed is printed.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use outrigger_identity::{Authority, AuthorityOptions, Revoked};
use outrigger_rules::intent::{Intent, KeySource};
use outrigger_xds::server::{Name, Seat, WILDCARD};

use super::super::cache::fresh;
use super::*;
use crate::world::{Change, Fact};

const CHANGES: usize = 400;
const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "10.0.0.4", "10.0.0.5"];
const SERVICES: [(&str, &str); 5] =
    [("web", "shop"), ("catalog", "shop"), ("Catalog", "shop"), ("pay", "bank"), ("stock", "bank")];
const ACCOUNTS: [&str; 2] = ["web", "default"];

const RULES: &[&str] = &[
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: catalog, namespace: shop}, spec: {host: catalog, subsets: [{name: v1, labels: {version: v1}}]}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: catalog2, namespace: shop}, spec: {host: catalog, trafficPolicy: {tls: {mode: DISABLE}}, subsets: [{name: v2, labels: {version: v2}}]}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: catalog, namespace: bank}, spec: {host: catalog.shop.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: RANDOM}}}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: private, namespace: shop}, spec: {host: '*.bank.svc.cluster.local', exportTo: ['.'], trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: all, namespace: bank}, spec: {host: '*.svc.cluster.local', trafficPolicy: {connectionPool: {tcp: {idleTimeout: 5s}}}}}",
    "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: catalog, namespace: shop}, spec: {hosts: [catalog], http: [{match: [{sourceLabels: {version: v1}}], route: [{destination: {host: pay.bank}}]}, {route: [{destination: {host: catalog, subset: v1}}]}]}}",
    "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: a-catalog, namespace: bank}, spec: {hosts: [catalog.shop.svc.cluster.local], exportTo: ['.'], http: [{route: [{destination: {host: pay}}]}]}}",
    "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: wild, namespace: shop}, spec: {hosts: ['*.shop.svc.cluster.local'], http: [{fault: {abort: {httpStatus: 418, percentage: {value: 100}}}, route: [{destination: {host: web}}]}]}}",
    "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: stock, namespace: bank}, spec: {hosts: [stock], tcp: [{match: [{sourceNamespace: shop}], route: [{destination: {host: pay}}]}, {route: [{destination: {host: stock}}]}]}}",
    "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: shop}, spec: {mtls: {mode: STRICT}}}",
    "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: istio-system}, spec: {mtls: {mode: DISABLE}}}",
    "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: outrigger-system}, spec: {mtls: {mode: STRICT}}}",
    "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: one, namespace: shop}, spec: {selector: {matchLabels: {version: v1}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {9999: {mode: STRICT}}}}",
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: none, namespace: bank}, spec: {}}",
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: deny, namespace: shop}, spec: {action: DENY, selector: {matchLabels: {version: v2}}, rules: [{to: [{operation: {paths: [/admin*]}}]}]}}",
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: root, namespace: outrigger-system}, spec: {action: DENY, rules: [{from: [{source: {namespaces: [evil]}}]}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: api, namespace: shop}, spec: {hosts: [api.example.com, example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}, {number: 9090, protocol: TLS}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: api, namespace: bank}, spec: {hosts: [api.example.com], exportTo: ['.'], resolution: STATIC, ports: [{number: 80, protocol: TCP}], endpoints: [{address: 192.0.2.1, labels: {version: v1}}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: wild, namespace: shop}, spec: {hosts: ['*.wiki.org'], ports: [{number: 80, protocol: HTTP}, {number: 9090, protocol: TCP}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: catalog, namespace: shop}, spec: {hosts: [catalog.shop.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, workloadSelector: {labels: {version: v1}}, ports: [{number: 80, protocol: HTTP, targetPort: 9090}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: all, namespace: bank}, spec: {hosts: [all.bank.example], location: MESH_INTERNAL, resolution: STATIC, workloadSelector: {labels: {app: pay}}, ports: [{number: 80}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: block, namespace: bank}, spec: {hosts: [db.example.com], addresses: [10.0.0.0/29, 192.0.2.9], ports: [{number: 9090, protocol: TCP}]}}",
    "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, namespace: shop, labels: {version: v1}}, spec: {address: 192.0.2.7, ports: {http: 9091}}}",
    "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, namespace: bank}, spec: {address: 192.0.2.8, serviceAccount: vm, labels: {app: pay, security.istio.io/tlsMode: istio}}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: outside, namespace: shop}, spec: {host: example.com, trafficPolicy: {tls: {mode: SIMPLE}}, subsets: [{name: v1, labels: {version: v1}}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: hidden, namespace: bank}, spec: {hosts: [pay.bank.svc.cluster.local], exportTo: ['.'], resolution: STATIC, ports: [{number: 80, protocol: TCP}], endpoints: [{address: 192.0.2.3, serviceAccount: pay}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: theirs, namespace: bank}, spec: {hosts: [web.shop.svc.cluster.local], resolution: DNS, ports: [{number: 80, protocol: TCP}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: short, namespace: bank}, spec: {hosts: [catalog.shop], resolution: DNS, ports: [{number: 80, protocol: HTTP}]}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: api, namespace: aaa}, spec: {host: api.example.com, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-a}}}}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: api, namespace: bank}, spec: {host: api.example.com, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-b}}}}}",
    "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web, namespace: shop}, spec: {hosts: [web], tls: [{match: [{sniHosts: [web], sourceNamespace: bank}], route: [{destination: {host: catalog}}]}], http: [{match: [{uri: {prefix: /a}}], delegate: {name: part}}, {route: [{destination: {host: api.example.com}}]}]}}",
    "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: part, namespace: shop}, spec: {http: [{match: [{uri: {prefix: /a/b}}], route: [{destination: {host: catalog, subset: v1}}]}]}}",
    "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: outside, namespace: bank}, spec: {hosts: [example.com], http: [{fault: {abort: {httpStatus: 418, percentage: {value: 100}}}, route: [{destination: {host: example.com, port: {number: 80}}}]}]}}",
    "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: default, namespace: shop}, spec: {egress: [{port: {number: 80, protocol: HTTP, name: a}, hosts: ['./*', 'bank/api.example.com']}, {hosts: ['*/catalog.shop.svc.cluster.local', './*.wiki.org']}]}}",
    "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: v1, namespace: shop}, spec: {workloadSelector: {labels: {version: v1}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: [bank/*, '*/api.example.com', '~bank/stock']}]}}",
    "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: web, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {workloadSelector: {labels: {version: v1}}, ingress: [{port: {number: 9999, protocol: HTTP, name: a}, defaultEndpoint: '127.0.0.1:8080'}, {port: {number: 80, protocol: TCP, name: b}, bind: 10.0.0.1, defaultEndpoint: '0.0.0.0:9090', connectionPool: {tcp: {maxConnections: 3}}}]}}",
    "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: default, namespace: istio-system}, spec: {inboundConnectionPool: {http: {http2MaxRequests: 9}}, outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: pay.bank.svc.cluster.local, port: {number: 80}}}, egress: [{hosts: ['./*', shop/*]}]}}",
    "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: none, namespace: bank}, spec: {workloadSelector: {labels: {version: v2}}, egress: [{hosts: ['~/*']}]}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: near, namespace: shop}, spec: {host: web, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}}}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: near, namespace: bank}, spec: {host: pay, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: eu, to: {'eu/a': 80, us: 20}}]}}}}}",
    "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: labels, namespace: bank}, spec: {host: stock, trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [version, 'app=pay']}}}}}",
    "{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: catalog, namespace: shop}, spec: {service: catalog, rateLimit: {requests: 5, per: 1s}}}",
    "{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: pay, namespace: shop}, spec: {service: pay.bank, rateLimit: {requests: 5, per: 1s}, circuitBreaker: {trip: {}}}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: catalog, namespace: shop, creationTimestamp: '2026-01-02T00:00:00Z'}, spec: {parentRefs: [{group: '', kind: Service, name: catalog}], rules: [{backendRefs: [{name: web, port: 80}, {name: pay, namespace: bank, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: older, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {parentRefs: [{group: '', kind: Service, name: catalog, port: 80}, {group: '', kind: Service, name: web, sectionName: http}], rules: [{backendRefs: [{name: catalog, port: 9090}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: consumer, namespace: bank}, spec: {parentRefs: [{group: '', kind: Service, name: catalog, namespace: shop}], rules: [{backendRefs: [{name: catalog, namespace: shop, port: 80}, {name: web, namespace: shop, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: calls, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: catalog, port: 9090}], rules: [{matches: [{method: {service: a.B}}], backendRefs: [{name: catalog, port: 9090}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: TCPRoute, metadata: {name: bytes, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: catalog, port: 9090}], rules: [{backendRefs: [{name: pay, namespace: bank, port: 80}, {name: web, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: TCPRoute, metadata: {name: older, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {parentRefs: [{group: '', kind: Service, name: catalog}, {group: '', kind: Service, name: stock, namespace: bank}], rules: [{backendRefs: [{name: web, port: 9090}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: TLSRoute, metadata: {name: names, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: catalog}, {group: '', kind: Service, name: web}], hostnames: [a.example, '*.b.example'], rules: [{backendRefs: [{name: catalog, port: 80}, {name: pay, namespace: bank, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: TLSRoute, metadata: {name: names, namespace: bank}, spec: {parentRefs: [{group: '', kind: Service, name: catalog, namespace: shop}], hostnames: [a.example], rules: [{backendRefs: [{name: stock, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: pay, namespace: bank}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service, name: pay}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: all, namespace: shop}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: bank}], to: [{group: '', kind: Service}]}}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: web, namespace: shop}, spec: {hosts: [web.shop.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, workloadSelector: {labels: {version: v2}}, ports: [{number: 9090, name: http, protocol: HTTP}]}}",
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: ask, namespace: shop}, spec: {action: CUSTOM, provider: {name: pay}, selector: {matchLabels: {version: v1}}, rules: [{to: [{operation: {paths: [/ask*]}}]}]}}",
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: ask, namespace: outrigger-system}, spec: {action: CUSTOM, provider: {name: api}, rules: [{to: [{operation: {methods: [POST]}}]}]}}",
    "{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: a, namespace: shop}, spec: {selector: {matchLabels: {version: v1}}, jwtRules: [{issuer: 'https://a'}]}}",
    "{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: b, namespace: istio-system}, spec: {jwtRules: [{issuer: 'https://b', jwksUri: 'https://b/keys', presence: REQUIRED}]}}",
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: tokens, namespace: shop}, spec: {rules: [{from: [{source: {requestPrincipals: ['https://a/*']}}], when: [{key: 'request.auth.claims[groups]', values: [x]}]}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: catalog, namespace: shop}, spec: {clusterIP: 192.0.2.9, ports: [{port: 80, name: http, targetPort: 9090}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: stock, namespace: shop}, spec: {type: ExternalName, externalName: catalog.shop.svc.cluster.local, ports: [{port: 80, name: http}, {port: 9090, name: tcp}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: pay, namespace: shop}, spec: {type: ExternalName, externalName: stock.bank.svc.cluster.local., ports: [{port: 80, name: http}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: None, publishNotReadyAddresses: true, ports: [{port: 80, targetPort: web}]}}",
    "{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: whole, namespace: shop}, spec: {service: catalog, exportTo: ['.', bank], timeout: 2s, retry: {attempts: 2, retryOn: [connect-failure, 503], perTryTimeout: 500ms}, streams: {idleTimeout: 10m}, routes: [{name: moved, match: {path: {prefix: /old/}}, redirect: {prefix: /new/, status: 308}}, {name: searches, match: {path: {prefix: /search}, method: GET}, rateLimit: {name: searches, requests: 50, per: 1s, by: caller}}, {name: rest, to: [{version: v1, weight: 90}, {version: v2, weight: 10}]}], subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, fallback: v1, circuitBreaker: {maxRequests: 20}}], circuitBreaker: {maxConnections: 100}, ports: [{port: 9090, connections: {h2Upgrade: true}}]}}",
    "{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: stay, namespace: shop}, spec: {service: web, session: {cookie: {name: web, lifetime: permanent}, absoluteTimeout: 1h}, routes: [{name: api, match: {path: {prefix: /api}}, session: {header: x-session, strict: 410}}, {name: pages}]}}",
    "{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: counted, namespace: shop}, spec: {service: web, rateLimit: [{name: clients, service: limiter, descriptor: {header: x-client, key: client}}, {name: own, requests: 5, per: 1s}]}}",
    "{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: few, namespace: bank}, spec: {service: stock, adaptiveConcurrency: {percentile: 90, maxLimit: 200, updateInterval: 250ms, minRtt: {interval: 1m, requestCount: 50, jitterPercent: 20, minConcurrency: 5, bufferPercent: 50}}}}",
    "{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: asked, namespace: bank}, spec: {service: pay, healthCheck: {http: {path: /healthz}}, retry: {perTryTimeout: 500ms}, hedge: {delay: 50ms, attempts: 3}, routes: [{name: search, match: {path: {prefix: /search}}, hedge: {delay: p95, minSamples: 100}, retry: {attempts: 5, retryOn: [503]}}, {name: all}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: catalog, namespace: shop}, spec: {targetRefs: [{group: '', kind: Service, name: catalog}], validation: {hostname: a.example.com, wellKnownCACertificates: System}}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: by-map, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {targetRefs: [{group: '', kind: Service, name: stock}, {group: '', kind: Service, name: web}, {group: '', kind: Service, name: catalog, sectionName: http}], validation: {hostname: b.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}}",
];

/// The certificates that a policy above names.
fn roots() -> String {
    let authority = Authority::in_memory(AuthorityOptions::new("cluster.local")).unwrap();
    let pem = authority.bundle().to_pem("cluster.local");
    let pem: String = pem.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: shop}}\ndata:\n  ca.crt: |\n{pem}"
    )
}

fn settings() -> MeshSettings {
    let providers = "[{name: pay, envoyExtAuthzHttp: {service: bank/pay.bank.svc.cluster.local, port: 80}},
                      {name: api, envoyExtAuthzGrpc: {service: api.example.com, port: 80}},
                      {name: limiter, envoyRateLimitGrpc: {service: bank/pay.bank.svc.cluster.local, port: 80}}]";
    MeshSettings { providers: serde_saphyr::from_str(providers).unwrap(), ..MeshSettings::default() }
}

/// One client that looks again only at what it was told of.
struct Stream {
    scope: Scope,
    seat: Seat,
    has: BTreeMap<Name, Option<String>>,
}

impl Stream {
    fn look(&mut self, compiled: &Compiled, name: &Name) {
        let version = match &*name.1 {
            WILDCARD => Some(format!("{:?}", compiled.wildcard_names(&self.scope, name.0))),
            _ => {
                let version = compiled.version(&self.scope, name.0, &name.1);
                let resource = compiled.resource(&self.scope, name.0, &name.1);
                assert_eq!(version, resource.map(|versioned| versioned.version), "{name:?}");
                version.map(|version| version.to_string())
            }
        };
        self.has.insert(name.clone(), version);
    }

    fn hear(&mut self, compiled: &Compiled) {
        let (everything, names) = self.seat.marked();
        let names: Vec<Name> = match everything {
            true => self.has.keys().cloned().collect(),
            false => names.into_iter().filter(|name| self.has.contains_key(name)).collect(),
        };
        names.iter().for_each(|name| self.look(compiled, name));
    }
}

struct Bench {
    rng: Rng,
    world: World,
    rules: BTreeSet<usize>,
    intents: Vec<Vec<Intent>>,
    roots: usize,
    revoked: Arc<Revoked>,
    keys: BTreeMap<KeySource, Arc<str>>,
    compiled: Compiled,
    streams: Vec<Stream>,
    names: Vec<Name>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let world = World::empty(settings());
        // Most of what is asked for a second time has been forgotten but for its version.
        let compiled = Compiled::new(Arc::new(world.clone()), "0".into(), Arc::default()).remembering(3);
        let client = |kind, namespace: &str, account: &str, instance: Option<&str>, secure| {
            let namespace = namespace.to_owned();
            let (service_account, instance) = (account.to_owned(), instance.map(str::to_owned));
            let seat = compiled.audience().join(instance.as_deref());
            let scope =
                Scope { kind, namespace, service_account, instance, bind: None, secure, regex_limit: 100 };
            Stream { scope, seat, has: BTreeMap::new() }
        };
        let streams = vec![
            client(ClientKind::Outrigger, "shop", "web", Some("i0"), false),
            client(ClientKind::Outrigger, "shop", "web", Some("i1"), false),
            client(ClientKind::Outrigger, "shop", "default", Some("i2"), false),
            client(ClientKind::Outrigger, "bank", "default", Some("i3"), false),
            client(ClientKind::Outrigger, "bank", "default", None, false),
            client(ClientKind::Envoy, "shop", "web", Some("i4"), false),
            client(ClientKind::Grpc, "bank", "default", None, true),
            client(ClientKind::Grpc, "shop", "default", None, false),
        ];
        let intents = RULES.iter().map(|rule| intents(rule)).chain([intents(&roots())]).collect();
        let (rules, roots, keys) = (BTreeSet::new(), 0, BTreeMap::new());
        let (revoked, rng) = (Arc::default(), Rng::with_seed(seed));
        Self { rng, world, rules, intents, roots, revoked, keys, compiled, streams, names: all_names() }
    }

    fn instance(&mut self) -> Instance {
        let rng = &mut self.rng;
        let (service, namespace) = SERVICES[rng.usize(..SERVICES.len())];
        let version = ["v1", "v2"][rng.usize(..2)];
        let protocol = [Protocol::Auto, Protocol::Http, Protocol::Grpc, Protocol::Tcp][rng.usize(..4)];
        let address = ADDRESSES[rng.usize(..ADDRESSES.len())];
        let port = [80, 9090][rng.usize(..2)];
        let mut instance =
            sample(&format!("i{}", rng.usize(..10)), service, version, address, port, protocol);
        instance.namespace = namespace.into();
        instance.service_account = ACCOUNTS[rng.usize(..2)].into();
        instance.state = [State::Running, State::Running, State::Stopping, State::Unhealthy, State::Stopped]
            [rng.usize(..5)];
        instance.sidecar = rng.u8(..4) > 0;
        instance.region = ["", "eu", "us"][rng.usize(..3)].into();
        instance.zone = ["a", "b"][rng.usize(..2)].into();
        instance.network = ["", "", "", "edge"][rng.usize(..4)].into();
        if rng.u8(..4) == 0 {
            instance.addresses.push(ADDRESSES[rng.usize(..ADDRESSES.len())].parse().unwrap());
        }
        // As those of a cluster.
        if rng.u8(..4) == 0 {
            let all = ["web", "catalog", "stock"].into_iter().filter(|_| rng.bool());
            instance.services = Some(all.map(str::to_owned).collect());
            instance.ports[0].name = ["", "web"][rng.usize(..2)].into();
        }
        if rng.u8(..6) == 0 {
            instance.ports[0].upgrades = vec!["SPDY/3.1".into()];
        }
        instance
    }

    fn change(&mut self) {
        let mut change = Change::default();
        for _ in 0..=self.rng.u8(..3) {
            match self.rng.u8(..13) {
                0..6 => {
                    let instance = self.instance();
                    self.world.put(Arc::new(instance), 0, &mut change);
                }
                6..8 => self.world.take(&format!("i{}", self.rng.usize(..10)), &mut change),
                8..10 => {
                    let rule = self.rng.usize(..self.intents.len());
                    if !self.rules.remove(&rule) {
                        self.rules.insert(rule);
                    }
                    let all =
                        self.rules.iter().flat_map(|rule| self.intents[*rule].clone()).collect::<Vec<_>>();
                    self.world.rule(all, &mut change);
                    // Those that nobody wants are forgotten: they may be others once somebody does.
                    let wanted = self.world.key_sources();
                    self.keys.retain(|source, _| wanted.contains_key(source));
                }
                10 => {
                    self.roots += 1;
                    change.facts.insert(Fact::Trust);
                }
                11 => {
                    let entry = format!("serial:{:x}", self.rng.u8(1..));
                    let others = self.revoked.entries().skip(usize::from(self.rng.bool()));
                    self.revoked = Arc::new(Revoked::parse(others.chain([entry])).unwrap());
                    change.facts.insert(Fact::Trust);
                }
                _ => self.learn(&mut change),
            }
        }
        self.world.generation += 1;
        let roots = self.roots.to_string().into();
        let revoked = self.revoked.clone();
        let stale = self.compiled.advance(Arc::new(self.world.clone()), roots, revoked, &change);
        self.compiled.settle(self.world.generation, stale, &change);
    }

    /// Keys that a rule wants are there, or are others now.
    fn learn(&mut self, change: &mut Change) {
        let wanted: Vec<KeySource> = self.world.key_sources().into_keys().collect();
        if wanted.is_empty() {
            return;
        }
        let source = wanted[self.rng.usize(..wanted.len())].clone();
        let keys: Arc<str> = format!("{{\"keys\": [{{\"kid\": \"{}\"}}]}}", self.rng.u8(..4)).into();
        self.world.learn(source.clone(), keys.clone(), change);
        self.keys.insert(source, keys);
    }

    /// Somebody wants another name, or one name less.
    fn ask(&mut self) {
        let stream = self.rng.usize(..self.streams.len());
        let name = self.names[self.rng.usize(..self.names.len())].clone();
        let stream = &mut self.streams[stream];
        if stream.has.remove(&name).is_none() {
            stream.seat.hold(name.0, &name.1);
            stream.look(&self.compiled, &name);
        } else if stream.seat.let_go(name.0, &name.1) {
            self.compiled.let_go(name.0, &name.1);
        }
    }

    fn check(&mut self, step: usize, stream: usize) {
        let all = self.rules.iter().flat_map(|rule| self.intents[*rule].clone()).collect::<Vec<_>>();
        let generation = self.world.generation;
        let mut afresh = World::new(generation, settings(), self.world.instances().cloned(), all);
        for (source, keys) in &self.keys {
            afresh.learn(source.clone(), keys.clone(), &mut Change::default());
        }
        let (afresh, roots): (_, Arc<str>) = (Arc::new(afresh), self.roots.to_string().into());
        let stream = &mut self.streams[stream];
        for (name, has) in &stream.has {
            let expected = fresh(&afresh, &roots, &self.revoked, &stream.scope, name.0, &name.1);
            assert_eq!(*has, expected, "after {step} changes, {name:?} as {:?} sees it", stream.scope);
        }
    }
}

/// Everything that anybody may ask for, and some that never is there.
fn all_names() -> Vec<Name> {
    let mut names: Vec<Name> = vec![(ResourceKind::Secret, "ROOTCA".into())];
    let hosts = SERVICES.iter().map(|(service, namespace)| {
        format!("{}.{namespace}.svc.cluster.local", service.to_ascii_lowercase())
    });
    let addresses = ADDRESSES.iter().map(|address| (*address).to_owned());
    let described = [
        "api.example.com",
        "example.com",
        "catalog.shop",
        "*.wiki.org",
        "en.wiki.org",
        "all.bank.example",
        "db.example.com",
        "*",
    ];
    let others =
        ["nobody.shop.svc.cluster.local", "catalog", "com", "192.0.2.9", "example.com.svc.cluster.local"];
    let others = described.into_iter().chain(others).map(str::to_owned);
    for host in hosts.chain(addresses).chain(others) {
        names.push((ResourceKind::Host, host.as_str().into()));
        for port in [80, 9090] {
            for subset in ["", "v1", "v2"] {
                let name = format!("outbound|{port}|{subset}|{host}");
                names.push((ResourceKind::Cluster, name.as_str().into()));
                names.push((ResourceKind::Endpoints, name.into()));
            }
            let name = format!("outbound|{port}||{host}");
            names.push((ResourceKind::Listener, name.as_str().into()));
            names.push((ResourceKind::Routes, name.into()));
            names.push((ResourceKind::Listener, format!("{host}:{port}").into()));
            names.push((ResourceKind::Destination, format!("{host}:{port}").into()));
            if let Ok(ip) = host.parse() {
                let address = std::net::SocketAddr::new(ip, port);
                names.push((ResourceKind::Destination, format!("/{address}").into()));
                names.push((ResourceKind::Destination, format!("edge/{address}").into()));
                names.push((ResourceKind::Listener, format!("inbound|{address}").into()));
            }
        }
    }
    for port in [80, 9090, 9999] {
        names.push((ResourceKind::Routes, port.to_string().into()));
        names.push((ResourceKind::Listener, format!("outbound_{port}").into()));
        names.push((ResourceKind::Cluster, format!("inbound|{port}||").into()));
    }
    names.push((ResourceKind::Listener, "egress|80||pay.bank.svc.cluster.local".into()));
    names.extend([ResourceKind::Listener, ResourceKind::Cluster].map(|kind| (kind, WILDCARD.into())));
    names
}

#[test]
fn a_world_that_was_changed_equals_one_built_afresh() {
    let changes = std::env::var("OUTRIGGER_CHANGES").ok().map_or(CHANGES, |count| count.parse().unwrap());
    let seed =
        std::env::var("OUTRIGGER_SEED").ok().map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("OUTRIGGER_SEED={seed}");
    let mut bench = Bench::new(seed);
    for _ in 0..300 {
        bench.ask();
    }
    for step in 0..changes {
        bench.change();
        (0..3).for_each(|_| bench.ask());
        for stream in &mut bench.streams {
            stream.hear(&bench.compiled);
        }
        bench.check(step, step % bench.streams.len());
        if step % 64 == 0 {
            (0..bench.streams.len()).for_each(|stream| bench.check(step, stream));
        }
    }
    // What nobody holds is not kept.
    let held: BTreeSet<&Name> = bench.streams.iter().flat_map(|stream| stream.has.keys()).collect();
    assert!(bench.compiled.kept() <= held.len(), "{} of {}", bench.compiled.kept(), held.len());
}

#[test]
fn what_is_an_instance_s_own_wakes_nobody_but_it() {
    let mut world = World::empty(MeshSettings::default());
    let mut instances: Vec<Instance> = (0..50)
        .map(|i| sample(&format!("i{i}"), "web", "v1", &format!("10.0.1.{i}"), 80, Protocol::Http))
        .collect();
    for instance in &instances {
        world.put(Arc::new(instance.clone()), 0, &mut Change::default());
    }
    let compiled = Compiled::new(Arc::new(world.clone()), "0".into(), Arc::default());
    let wildcards = [ResourceKind::Listener, ResourceKind::Cluster];
    let mut streams: Vec<(Scope, Seat)> = instances
        .iter()
        .map(|instance| {
            let scope = scope(ClientKind::Outrigger, "web", &instance.id);
            let seat = compiled.audience().join(Some(&instance.id));
            for kind in wildcards {
                seat.hold(kind, WILDCARD);
                assert!(!compiled.wildcard_names(&scope, kind).is_empty());
            }
            (scope, seat)
        })
        .collect();
    let tell = |streams: &[(Scope, Seat)], world: &mut World, change: Change| {
        world.generation += 1;
        let stale = compiled.advance(Arc::new(world.clone()), "0".into(), Arc::default(), &change);
        compiled.settle(world.generation, stale, &change);
        let woken =
            streams.iter().enumerate().filter(|(_, (_, seat))| seat.marked() != (false, BTreeSet::new()));
        woken.map(|(at, _)| at).collect::<Vec<_>>()
    };
    instances[7].state = State::Unhealthy;
    let mut change = Change::default();
    world.put(Arc::new(instances[7].clone()), 0, &mut change);
    assert_eq!(tell(&streams, &mut world, change), [7]);
    // A port more is another list for whoever serves it.
    instances[9].ports.push(sample("x", "x", "v1", "10.0.0.1", 81, Protocol::Http).ports.remove(0));
    let mut change = Change::default();
    world.put(Arc::new(instances[9].clone()), 0, &mut change);
    assert_eq!(tell(&streams, &mut world, change), [9]);
    // A policy of the namespace that changes nothing about the lists wakes nobody.
    let strict = intents(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: shop}, spec: {mtls: {mode: STRICT}}}",
    );
    let mut change = Change::default();
    world.rule(strict, &mut change);
    assert_eq!(tell(&streams, &mut world, change), [0; 0]);
    // What only its client sees goes with the client, though others hold the name; and does not come back without one.
    assert_eq!(compiled.owners(), 50);
    let (scope, seat) = streams.pop().unwrap();
    compiled.leave(&seat, "i49");
    drop(seat);
    compiled.wildcard_names(&scope, ResourceKind::Listener);
    assert_eq!(compiled.owners(), 49);
}

/// Two clients see the same until a rule comes that is for one of them: whoever was compiled for, the other one hears of it.
#[test]
fn a_sidecar_that_comes_is_heard_by_whom_it_selects() {
    let mut world = World::empty(MeshSettings::default());
    for (id, version, address) in [("i1", "v1", "10.0.0.1"), ("i2", "v2", "10.0.0.2")] {
        let instance = sample(id, "web", version, address, 80, Protocol::Http);
        world.put(Arc::new(instance), 0, &mut Change::default());
    }
    let name: Name = (ResourceKind::Destination, "web.shop:80".into());
    for selected in ["v1", "v2"] {
        let compiled = Compiled::new(Arc::new(world.clone()), "0".into(), Arc::default());
        let mut streams: Vec<Stream> = ["i1", "i2"]
            .map(|id| {
                let seat = compiled.audience().join(Some(id));
                seat.hold(name.0, &name.1);
                let mut stream =
                    Stream { scope: scope(ClientKind::Outrigger, "web", id), seat, has: BTreeMap::new() };
                stream.look(&compiled, &name);
                stream
            })
            .into();
        assert!(streams.iter().all(|stream| stream.has[&name].is_some()));
        let rule = format!(
            "{{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {{name: a, namespace: shop}}, spec: {{workloadSelector: {{labels: {{version: {selected}}}}}, egress: [{{hosts: ['~/*']}}]}}}}"
        );
        let (mut changed, mut change) = (world.clone(), Change::default());
        changed.rule(intents(&rule), &mut change);
        changed.generation += 1;
        let generation = changed.generation;
        let stale = compiled.advance(Arc::new(changed), "0".into(), Arc::default(), &change);
        compiled.settle(generation, stale, &change);
        streams.iter_mut().for_each(|stream| stream.hear(&compiled));
        let known: Vec<bool> = streams.iter().map(|stream| stream.has[&name].is_some()).collect();
        assert_eq!(known, [selected != "v1", selected != "v2"], "{selected}");
    }
}
