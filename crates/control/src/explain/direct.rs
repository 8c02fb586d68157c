//! A client that no proxy stands beside: no rule of routes or destinations holds, and the request goes as it was written to whoever
//! was meant, who sees no identity.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_model::cluster::{ClientTls, OutsideTls};
use outrigger_model::endpoint::{Endpoint, Workload};

use super::body::{Outcome, TargetBody};
use super::inbound::{Arriving, judged};
use super::request::{Asked, Goal};
use super::target::{MOST_JUDGED, of_inbound};
use super::{Work, lost};
use crate::instance::{Instance, State};

impl Work<'_> {
    pub(super) fn direct(&mut self, goal: &Goal, request: &Asked) {
        let caller = self.caller;
        let (see, world) = (caller.see, caller.see.world);
        let id = &caller.source.id;
        if let Some(service) = see.service(&goal.host) {
            self.answer.lost = lost::all(see, service, &format!("{id} has no sidecar that would apply it"));
        }
        let to: Vec<Endpoint> = match goal.host.parse::<IpAddr>() {
            Ok(ip) => {
                if let Some(host) = world.virtual_at(ip) {
                    let why = format!("{ip} stands for {host}, which only sidecars know");
                    return self.outcome("failed", None, None, &why);
                }
                let address = SocketAddr::new(ip, goal.port);
                let there = world.workloads_at(see.scope.network(world), address);
                there.filter(|instance| instance.state != State::Stopped).map(|i| at(i, address)).collect()
            }
            Err(_) => {
                let service = see.service(&goal.host);
                let all = service
                    .into_iter()
                    .flat_map(|service| service.instances.iter().map(move |i| (service, i)));
                let running = all.filter(|(_, instance)| instance.state == State::Running);
                running
                    .filter_map(|(service, i)| Some(at(i, service.place(i, goal.port, see.namespace())?)))
                    .collect()
            }
        };
        if to.is_empty() {
            self.missing(goal);
            let why = format!("{id} has no sidecar, so it goes wherever its own resolver and network lead");
            return self.outcome("outside", None, None, &why);
        }
        let cluster = format!("{}:{}", goal.host, goal.port);
        let tls = match goal.tls {
            true => {
                ClientTls::Outside(OutsideTls { server_name: goal.host.clone(), ..OutsideTls::default() })
            }
            false => ClientTls::None,
        };
        let arriving = Arriving {
            see,
            connected: caller.connected,
            source: caller.source,
            tls: &tls,
            request: Some(request),
            http2: request.is_grpc(),
            broken: None,
        };
        let target = TargetBody {
            cluster: cluster.clone(),
            percent: 100.0,
            policy: vec!["no route and no rule of the client's side: there is no sidecar".to_owned()],
            healthy: to.len(),
            endpoints: to.len(),
            inbound: judged(&arriving, to.iter().take(MOST_JUDGED)),
            ..TargetBody::default()
        };
        let unrouted = format!("as it is written: {id} has no sidecar that routes it or proves who sends it");
        self.answer.outcomes.extend(target.inbound.iter().map(|inbound| {
            let outcome = of_inbound(&cluster, inbound);
            Outcome { why: outcome.why.or_else(|| Some(unrouted.clone())), ..outcome }
        }));
        self.answer.targets.push(target);
    }
}

/// Nothing more of it is known to whoever calls there.
fn at(instance: &Instance, address: SocketAddr) -> Endpoint {
    let workload = Workload {
        service: instance.service.clone(),
        namespace: instance.namespace.clone(),
        ..Workload::default()
    };
    Endpoint { workload: Some(Arc::new(workload)), ..Endpoint::new(address) }
}
