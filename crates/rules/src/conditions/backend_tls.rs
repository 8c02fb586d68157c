//! Conditions of a BackendTLSPolicy at one of its targets.

use super::{Condition, Surroundings, condition, short};
use crate::intent::{BackendTls, Host, RouteCondition};

/// The conditions of what a policy says of a service. `all` are those for the same service, this one among them, with the certificates
/// that are there.
pub fn of(tls: &BackendTls, host: &Host, all: &[BackendTls], around: &impl Surroundings) -> Vec<Condition> {
    let written = |kind| {
        let flaws = tls.flaws.iter().filter(move |flaw| flaw.condition == kind);
        flaws.map(|flaw| (flaw.reason.clone(), flaw.message.clone()))
    };
    let lost: Vec<&str> = tls.lost().collect();
    let refs = lost.iter().map(|name| {
        let message = format!(
            "there is no ConfigMap {name:.80} with certificates in ca.crt: it is applied to the control plane as a rule is, and those \
             of a Kubernetes cluster are not read"
        );
        ("InvalidCACertificateRef".to_owned(), message)
    });
    let refs = condition(RouteCondition::ResolvedRefs, written(RouteCondition::ResolvedRefs).chain(refs));
    let nobody = tls.client_tls().is_none() && written(RouteCondition::Accepted).next().is_none();
    let nobody = nobody.then(|| {
        let message = "no certificate of the backend can be trusted, so requests are answered with an error";
        ("NoValidCACertificate".to_owned(), message.to_owned())
    });
    let apart = detached(tls, host, all, around).map(|(why, message)| (why.to_owned(), message));
    let accepted = apart.into_iter().chain(written(RouteCondition::Accepted)).chain(nobody);
    vec![condition(RouteCondition::Accepted, accepted), refs]
}

/// Why a policy does not hold at its target.
fn detached(
    tls: &BackendTls,
    host: &Host,
    all: &[BackendTls],
    around: &impl Surroundings,
) -> Option<(&'static str, String)> {
    if around.ports(host).is_none() {
        return Some(("TargetNotFound", format!("there is no service {}", short(host))));
    }
    if let Some(name) = &tls.section
        && around.port_named(host, name).is_none()
    {
        return Some(("TargetNotFound", format!("{} has no port \"{name:.80}\"", short(host))));
    }
    let same: Vec<BackendTls> = all.iter().filter(|other| other.section == tls.section).cloned().collect();
    let first = BackendTls::at(&same, |name| tls.section.as_deref() == Some(name))?;
    (first.origin != tls.origin).then(|| {
        let message = format!("{} holds for {}, and it is the older one", first.origin, short(host));
        ("Conflicted", message)
    })
}
