//! Where requests go: matches, targets with weights, and what happens to a request on its way.

use std::collections::BTreeMap;

use outrigger_model::ext_authz::ExtAuthz;
use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{Forward, Mirror, PathMatch, Route, RouteAction, RouteMatch, WeightedCluster};
use serde::{Deserialize, Serialize};

use super::{Host, ObjectKind, Origin, Place, Say, Visibility};

/// Routing for a set of hosts. The first matching route wins; a request that matches none is answered 404.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteIntent {
    /// The object that says so.
    pub origin: Origin,
    /// When it was made, as RFC 3339 writes it in UTC; Kubernetes says so.
    #[serde(default)]
    pub created: Option<String>,
    /// Resolved hosts; may hold wildcards (`*`, `*.example.com`). Empty: its routes are for others to delegate to.
    pub hosts: Vec<Host>,
    /// Where the hosts were written, for findings.
    pub place: Place,
    /// Which clients it applies to.
    pub visibility: Visibility,
    /// HTTP routes in order. Empty = this object says nothing about HTTP.
    pub http: Vec<HttpRoute>,
    /// Routes of TLS that is not ended, in order. Empty = this object says nothing about it.
    pub tls: Vec<TlsRoute>,
    /// TCP routes in order. Empty = this object says nothing about TCP.
    pub tcp: Vec<TcpRoute>,
}

/// For how many clients a rule is that is for one: the fewer, the more it was meant for that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// For everyone.
    Everyone,
    /// For those of the client's namespace, which another one has written.
    Named,
    /// For those of its own namespace, which is the client's.
    Own,
}

impl RouteIntent {
    /// Of two for the same clients the one with the lesser age goes first, as in Istio: what says when it was made, then names.
    pub fn age(&self) -> (bool, Option<&str>, &str, &Origin) {
        (self.created.is_none(), self.created.as_deref(), &self.origin.name, &self.origin)
    }

    /// How it comes to hold for clients of a namespace; `None`: it does not. A native page is one for both what a destination is and where
    /// its requests go: one that has no say in the first has none in the second, but for its own clients.
    pub fn reach(&self, client: &str, say: &Say<'_>) -> Option<Reach> {
        let of = self.origin.namespace.as_str();
        let is_foreign = self.origin.kind == ObjectKind::TrafficRules && !say.counts(of);
        if !self.visibility.includes(client) || (is_foreign && of != client) {
            return None;
        }
        Some(match &self.visibility {
            Visibility::Everyone if !is_foreign => Reach::Everyone,
            _ if of == client => Reach::Own,
            _ => Reach::Named,
        })
    }

    /// Whether it has routes for what is carried: another object may have those for the rest.
    pub fn routes(&self, carried: Carried) -> bool {
        match carried {
            Carried::Http => !self.http.is_empty(),
            Carried::Tls => !self.tls.is_empty(),
            Carried::Tcp => !self.tcp.is_empty(),
        }
    }

    /// Everything that it may send something to, and where that was written.
    pub fn references(&self) -> impl Iterator<Item = (&Target, &Place)> {
        let http = self.http.iter().flat_map(|http| &http.targets);
        let tls = self.tls.iter().flat_map(|tls| &tls.targets);
        let shares = http.chain(tls).chain(self.tcp.iter().flat_map(|tcp| &tcp.targets));
        let mirrors = self.http.iter().flat_map(|http| &http.mirrors);
        let mirrors = mirrors.map(|mirror| (&mirror.target, &mirror.place));
        shares.map(|share| (&share.target, &share.place)).chain(mirrors)
    }
}

/// What a route is for: the lists of a [`RouteIntent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Requests.
    Http,
    /// Connections of TLS that is not ended.
    Tls,
    /// Connections of bytes.
    Tcp,
}

impl Carried {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Http, Self::Tls, Self::Tcp];

    /// As the fields of a VirtualService are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

/// One HTTP route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HttpRoute {
    /// Any of these must hold; empty = every request.
    pub matches: Vec<HttpMatch>,
    /// What happens with a request, as a proxy is told it. What hangs on hosts, on the match or on who asks is left out of it:
    /// clusters, mirrors, hashes, matches, origin; the name is empty when the user gave none.
    pub route: Route,
    /// Where it is sent, by weight. Empty = an answer of our own.
    pub targets: Vec<WeightedTarget>,
    /// The weight of what cannot be sent to, whatever there is.
    #[serde(default)]
    pub lost: u32,
    /// What gets copies of the requests.
    pub mirrors: Vec<MirrorTarget>,
    /// Who is asked about each request, before anything else is done with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Box<ExternalAuth>>,
    /// A redirect leads to the port that the request came for.
    pub to_request_port: bool,
    /// Whose routes stand in its place; see [`super::delegate`].
    pub delegate: Option<Delegate>,
    /// What of it the user has written, where the model cannot tell.
    pub said: Said,
    /// The object that it is of, where that is not the intent's: a delegate.
    pub of: Option<Origin>,
    /// Where it was written.
    pub place: Place,
}

/// The object whose routes a route stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegate {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it was written.
    pub place: Place,
}

/// What was written and not left to a default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// How long a request may take.
    pub timeout: bool,
    /// When it is sent again.
    pub retries: bool,
    /// Whether that goes to other endpoints.
    #[serde(default)]
    pub previous_hosts: bool,
}

impl HttpRoute {
    /// Whether every request matches.
    pub fn is_catch_all(&self) -> bool {
        self.matches.is_empty() || self.matches.iter().any(HttpMatch::is_catch_all)
    }

    /// How a request is sent on; `None` = an answer of our own.
    pub fn forward(&self) -> Option<&Forward> {
        match &self.route.action {
            RouteAction::Forward(forward) => Some(forward),
            RouteAction::Redirect(_) | RouteAction::Direct { .. } => None,
        }
    }
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HttpMatch {
    /// The user's name for it.
    pub name: Option<String>,
    /// On the request.
    pub request: RouteMatch,
    /// The destination port.
    pub port: Option<u16>,
    /// Labels of the calling workload.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the calling workload.
    pub source_namespace: Option<String>,
    /// Of a gRPC method: how much is said of its service and of its name, in bytes. It decides which match goes first.
    pub grpc: Option<(usize, usize)>,
    /// Where it was written.
    pub place: Place,
}

impl HttpMatch {
    /// Whether every request matches.
    pub fn is_catch_all(&self) -> bool {
        let path = match &self.request.path {
            PathMatch::Prefix(path) => path.is_empty() || path == "/",
            PathMatch::Regex(pattern) => StringMatch::regex(pattern).is_any(),
            PathMatch::Exact(_) | PathMatch::Segments(_) | PathMatch::Connect => false,
        };
        let always = [":method", ":authority"];
        let mut headers = self.request.headers.iter();
        path && headers.all(|h| always.contains(&h.name.as_str()) && h.value.is_any())
            && self.request.query.is_empty()
            && self.request.cookies.is_empty()
            && self.port.is_none()
            && self.source_labels.is_empty()
            && self.source_namespace.is_none()
    }

    /// What the method must be.
    pub fn method(&self) -> Option<&StringMatch> {
        self.request.headers.iter().find(|header| header.name == ":method").map(|header| &header.value)
    }
}

/// A destination service, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Resolved host.
    pub host: Host,
    /// A subset of the host's `DestinationIntent`.
    pub subset: Option<String>,
    /// The service's port; `None` = the port that the request came for, or the service's only one.
    pub port: Option<u16>,
}

/// A target and its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightedTarget {
    /// Where to.
    pub target: Target,
    /// Its weight and the edits for it only, without the cluster's name. A lone target without a weight has 1.
    pub share: WeightedCluster,
    /// Where it was written.
    pub place: Place,
}

/// A service that is asked about the requests of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExternalAuth {
    /// Who.
    pub target: Target,
    /// How; its cluster, its name, and the authority of a gRPC service are left to who knows where that is.
    pub filter: ExtAuthz,
    /// Where it was written.
    pub place: Place,
}

/// A target that gets copies of requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorTarget {
    /// Where to.
    pub target: Target,
    /// Of how many requests, without the cluster's name.
    pub mirror: Mirror,
    /// Where it was written.
    pub place: Place,
}

/// One route of TLS that is not ended: by the server name that the client asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TlsRoute {
    /// Any of these must hold; never empty.
    pub matches: Vec<TlsMatch>,
    /// By weight, per connection.
    pub targets: Vec<WeightedTarget>,
    /// The weight of what cannot be sent to, whatever there is.
    #[serde(default)]
    pub lost: u32,
    /// Where it was written.
    pub place: Place,
}

/// Conditions on a ClientHello and its connection that must all hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsMatch {
    /// Any of these server names; exact, `*.suffix`, or `*`. Never empty.
    pub server_names: Vec<String>,
    /// On the connection.
    pub connection: TcpMatch,
}

/// One TCP route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpRoute {
    /// Any of these must hold; empty = every connection.
    pub matches: Vec<TcpMatch>,
    /// By weight, per connection.
    pub targets: Vec<WeightedTarget>,
    /// The weight of what cannot be sent to, whatever there is.
    #[serde(default)]
    pub lost: u32,
    /// Where it was written.
    pub place: Place,
}

/// Conditions on a connection that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpMatch {
    /// The destination port.
    pub port: Option<u16>,
    /// Labels of the calling workload.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the calling workload.
    pub source_namespace: Option<String>,
}
