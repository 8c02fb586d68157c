//! TLS towards the backends of a service, as the Gateway API has it: what a BackendTLSPolicy wants for one of its targets.

use serde::{Deserialize, Serialize};

use super::{ClientTls, ClientTlsMode, Origin, Place, RouteCondition, RouteFlaw};

/// What a policy says of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTls {
    /// The policy.
    pub origin: Origin,
    /// When it was made, as `2026-01-31T10:00:00Z`, if it says so: the older of two goes first.
    pub created: Option<String>,
    /// Only this port, by its name.
    pub section: Option<String>,
    /// The server name, which is also the one that the certificate must have where there are no `names`.
    pub hostname: String,
    /// DNS names or URIs of which the certificate must have one.
    pub names: Vec<String>,
    /// Whom its certificate must come from.
    pub roots: Roots,
    /// What it says and nobody can do.
    pub flaws: Vec<RouteFlaw>,
    /// Where the target was written.
    pub place: Place,
}

/// Whom the certificate of a backend must come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Roots {
    /// The system's public roots.
    System,
    /// The certificates in ConfigMaps of the policy's namespace, by their names; those that are there are known once all objects are.
    ConfigMaps(Vec<(String, Option<String>)>),
}

/// The certificates of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootsIntent {
    /// The ConfigMap.
    pub origin: Origin,
    /// PEM.
    pub pem: String,
}

impl BackendTls {
    /// Takes the certificates of the ConfigMaps that are there.
    pub fn resolve<'r>(&mut self, find: impl Fn(&str, &str) -> Option<&'r str>) {
        if let Roots::ConfigMaps(all) = &mut self.roots {
            for (name, pem) in all {
                *pem = find(&self.origin.namespace, name).map(str::to_owned);
            }
        }
    }

    /// As a rule for a destination would say it; `None`: there is nobody whom a certificate could come from.
    pub fn client_tls(&self) -> Option<ClientTls> {
        let roots_pem = match &self.roots {
            Roots::System => None,
            Roots::ConfigMaps(all) => {
                let known: Vec<&str> = all.iter().filter_map(|(_, pem)| pem.as_deref()).collect();
                Some(known.join("\n")).filter(|_| !known.is_empty())
            }
        };
        let has_roots = self.roots == Roots::System || roots_pem.is_some();
        let has_roots = has_roots && self.flaws.iter().all(|flaw| flaw.condition != RouteCondition::Accepted);
        has_roots.then(|| ClientTls {
            mode: ClientTlsMode::Simple,
            sni: Some(self.hostname.clone()),
            // Always said: who describes the backend could name others in its place.
            subject_alt_names: match self.names.as_slice() {
                [] => vec![self.hostname.clone()],
                names => names.to_vec(),
            },
            ca_certificates: None,
            client_certificate: None,
            private_key: None,
            roots_pem,
        })
    }

    /// The ConfigMaps that are not there, or have no certificates.
    pub fn lost(&self) -> impl Iterator<Item = &str> {
        let all = match &self.roots {
            Roots::System => &[][..],
            Roots::ConfigMaps(all) => all.as_slice(),
        };
        all.iter().filter(|(_, pem)| pem.is_none()).map(|(name, _)| name.as_str())
    }

    /// Of all that are for a service the one that holds at a port: what names it goes before what does not, then the older, then the first
    /// by name.
    pub fn at(all: &[Self], named: impl Fn(&str) -> bool) -> Option<&Self> {
        let here = all.iter().filter(|one| one.section.as_deref().is_none_or(&named));
        here.min_by_key(|one| one.rank())
    }

    fn rank(&self) -> (bool, bool, Option<&str>, &Origin) {
        (self.section.is_none(), self.created.is_none(), self.created.as_deref(), &self.origin)
    }
}
