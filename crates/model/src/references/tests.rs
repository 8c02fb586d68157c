use super::*;
use crate::cluster::{Cluster, Discovery};
use crate::listener::{Direction, TcpProxy};
use crate::policy::{RbacAction, RbacPolicy};
use crate::resource::Destination;
use crate::route::{Route, VirtualHost, WeightedCluster};

fn origin(name: &str) -> Option<Origin> {
    Some(Origin { kind: "VirtualService".into(), namespace: "shop".into(), name: name.into() })
}

fn routes(name: &str, clusters: &[&str]) -> RouteConfig {
    let route = Route {
        action: RouteAction::Forward(Forward {
            clusters: clusters.iter().map(|name| WeightedCluster::only(*name)).collect(),
            ..Forward::default()
        }),
        origin: origin(name),
        ..Route::default()
    };
    let host = VirtualHost { routes: vec![route], ..VirtualHost::default() };
    RouteConfig { name: name.into(), virtual_hosts: vec![host] }
}

fn rbac(name: &str) -> Rbac {
    let policy = RbacPolicy { permissions: Vec::new(), principals: Vec::new(), origin: origin(name) };
    Rbac { action: RbacAction::Deny, policies: [(name.to_owned(), policy)].into() }
}

fn chain(terminal: Terminal, authorization: Vec<Rbac>) -> FilterChain {
    FilterChain { authorization, ..FilterChain::new("", terminal) }
}

/// HTTP with routes by name, HTTP with routes in place, and TCP as the default chain.
fn listener() -> Resource {
    let mut inline = HttpConnection::new(RouteSource::Inline(routes("inline", &["b"])));
    inline.filters.push(HttpFilter::Rbac(rbac("policy")));
    let named = HttpConnection::new(RouteSource::Named("8080".into()));
    let tcp = TcpProxy::new(vec![WeightedCluster::only("c")]);
    Resource::Listener(Listener {
        name: "listener".into(),
        direction: Direction::Outbound,
        addresses: Vec::new(),
        chains: vec![
            chain(Terminal::Http(Box::new(named)), Vec::new()),
            chain(Terminal::Http(Box::new(inline)), Vec::new()),
        ],
        default_chain: Some(chain(Terminal::Tcp(tcp), vec![rbac("tcp")])),
    })
}

#[test]
fn each_kind_names_what_must_be_there_before_it_can_serve() {
    let destination = Destination { name: "/10.0.0.1:80".into(), listener: "listener".into() };
    assert_eq!(
        Resource::Destination(destination).references(),
        [(ResourceKind::Listener, "listener".into())]
    );
    assert_eq!(
        listener().references(),
        [
            (ResourceKind::Routes, "8080".into()),
            (ResourceKind::Cluster, "b".into()),
            (ResourceKind::Cluster, "c".into())
        ]
    );
    assert_eq!(
        Resource::Routes(routes("8080", &["a", PASSTHROUGH, "b"])).references(),
        [(ResourceKind::Cluster, "a".into()), (ResourceKind::Cluster, "b".into())]
    );
    let mut cluster = Cluster::new("a");
    assert_eq!(Resource::Cluster(cluster.clone()).references(), [(ResourceKind::Endpoints, "a".into())]);
    cluster.discovery = Discovery::Eds { service_name: Some("other".into()) };
    assert_eq!(Resource::Cluster(cluster.clone()).references(), [(ResourceKind::Endpoints, "other".into())]);
    cluster.discovery = Discovery::OriginalDestination;
    assert_eq!(Resource::Cluster(cluster).references(), []);
}

#[test]
fn a_resource_names_every_rule_behind_it_once() {
    let names = |resource: &Resource| -> Vec<String> {
        resource.origins().into_iter().map(|origin| origin.name.clone()).collect()
    };
    assert_eq!(names(&listener()), ["inline", "policy", "tcp"]);
    let mut twice = routes("a", &["x"]);
    twice.virtual_hosts.push(twice.virtual_hosts[0].clone());
    assert_eq!(names(&Resource::Routes(twice)), ["a"]);
    let cluster = Cluster { origin: origin("c"), ..Cluster::new("c") };
    assert_eq!(names(&Resource::Cluster(cluster)), ["c"]);
}
