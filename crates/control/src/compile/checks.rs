//! The health check of a cluster, from its destination's policy: where the port speaks as the check does.

use outrigger_model::cluster::{CheckHow, HealthCheck};
use outrigger_rules::intent::{Host, TrafficPolicy};

use crate::instance::Protocol;

pub(super) fn check(
    policy: &TrafficPolicy,
    host: &Host,
    port: u16,
    protocol: Protocol,
) -> Option<Box<HealthCheck>> {
    let intent = policy.health_check.as_ref()?;
    // A name of many has no endpoints to ask.
    if host.is_wildcard() || !intent.asks(port, protocol.in_catalog()) {
        return None;
    }
    let mut check = intent.check.clone();
    let named = |name: &mut String| {
        if name.is_empty() {
            *name = format!("{}:{port}", host.as_str());
        }
    };
    match &mut check.how {
        CheckHow::Tcp(_) => {}
        CheckHow::Http(http) => {
            http.http2 = matches!(protocol, Protocol::Http2 | Protocol::Grpc);
            named(&mut http.host);
        }
        CheckHow::Grpc(grpc) => named(&mut grpc.authority),
    }
    Some(Box::new(check))
}

#[cfg(test)]
mod tests {
    use outrigger_model::cluster::{GrpcCheck, HttpCheck, TcpCheck};
    use outrigger_rules::Resolver;
    use outrigger_rules::intent::{HealthCheckIntent, Place};

    use super::*;

    fn asked(how: CheckHow, port: Option<u16>, protocol: Protocol) -> Option<CheckHow> {
        let place = Place::default();
        let intent = HealthCheckIntent { check: HealthCheck::new(how), port, place };
        let policy = TrafficPolicy { health_check: Some(intent), ..TrafficPolicy::default() };
        let host = Resolver::default().service("catalog", "shop");
        check(&policy, &host, 80, protocol).map(|check| check.how)
    }

    #[test]
    fn a_port_is_asked_in_what_it_speaks() {
        use Protocol::{Auto, Grpc, Http, Http2, Tcp, Tls};
        let http = |port, protocol| match asked(CheckHow::Http(HttpCheck::of("/h")), port, protocol)? {
            CheckHow::Http(http) => Some((http.http2, http.host)),
            _ => None,
        };
        let host = || "catalog.shop.svc.cluster.local:80".to_owned();
        assert_eq!(
            [Http, Auto].map(|protocol| http(None, protocol)),
            [Some((false, host())), Some((false, host()))]
        );
        assert_eq!(http(None, Http2), Some((true, host())));
        assert_eq!([Grpc, Tcp, Tls].map(|protocol| http(None, protocol)), [None, None, None]);
        assert_eq!(http(Some(80), Grpc), Some((true, host())));
        assert_eq!(http(Some(81), Http), None, "another port");
        let grpc = |port, protocol| asked(CheckHow::Grpc(GrpcCheck::default()), port, protocol);
        let wanted = CheckHow::Grpc(GrpcCheck { authority: host(), ..GrpcCheck::default() });
        assert_eq!(
            [Grpc, Http2].map(|protocol| grpc(None, protocol)),
            [Some(wanted.clone()), Some(wanted.clone())]
        );
        assert_eq!([Http, Auto, Tcp].map(|protocol| grpc(None, protocol)), [None, None, None]);
        assert_eq!(grpc(Some(80), Auto), Some(wanted));
        let tcp = CheckHow::Tcp(TcpCheck::default());
        assert!([Http, Grpc, Tcp, Tls].iter().all(|protocol| asked(tcp.clone(), None, *protocol).is_some()));
    }
}
