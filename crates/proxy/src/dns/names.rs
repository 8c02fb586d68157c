//! Which names of the mesh a question may mean. Pure; whether such a service exists is the control plane's to say.
//!
//! The control plane is asked for whole names only, so that all spellings of a service are one subscription.

/// The namespace and the domains in which names are understood.
#[derive(Debug, Clone)]
pub(super) struct MeshNames {
    namespace: String,
    domain: String,
    /// `svc.<domain>`: every service is `name.namespace` below it.
    zone: String,
    search: Vec<String>,
}

/// A service that a question may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its whole name.
    pub host: String,
    /// Meant by a name below a search domain: the answer says by CNAME what it is about.
    pub alias: bool,
    /// By its form the name is the mesh's. Two labels alone may as well be a name of the world, `example.com`.
    pub sure: bool,
}

impl MeshNames {
    /// For a workload of `namespace`, in a mesh with `domain`, whose applications look names up below `search` too.
    pub(super) fn new(namespace: &str, domain: &str, search: &[String]) -> Self {
        let clean = |text: &str| text.trim_matches('.').to_ascii_lowercase();
        let search = search.iter().map(|domain| clean(domain)).filter(|domain| !domain.is_empty()).collect();
        let domain = clean(domain);
        Self { namespace: clean(namespace), zone: format!("svc.{domain}"), domain, search }
    }

    /// `svc.<domain>`.
    pub(super) fn zone(&self) -> &str {
        &self.zone
    }

    /// Whether a name that is no service can be nobody else's, so that we may say that there is none. Where there are other
    /// resolvers they are asked all the same: a cluster may have names in the domain that are not the mesh's.
    pub(super) fn owns(&self, name: &str) -> bool {
        let below = name.strip_suffix(self.domain.as_str()).and_then(|rest| rest.strip_suffix('.'));
        below.is_some() || self.host(name).is_some_and(|(_, sure)| sure)
    }

    /// In the order in which they count. `name` is in lower case; `outside` says which names beyond the domain the control
    /// plane has addresses for.
    pub(super) fn candidates(&self, name: &str, outside: impl Fn(&str) -> bool) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = Vec::new();
        if let Some((host, sure)) = self.host(name) {
            all.push(Candidate { host, alias: false, sure });
        }
        if self.below_zone(name).is_some_and(is_service) {
            // Somebody's whole name: it stands for nobody else, also where it lies below a search domain.
            return all;
        }
        if outside(name) {
            all.push(Candidate { host: name.to_owned(), alias: false, sure: true });
        }
        for domain in &self.search {
            let rest = name.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.'));
            let below = |rest: &str| match outside(rest) {
                true => Some((rest.to_owned(), false)),
                false => self.host(rest),
            };
            if let Some((host, _)) = rest.and_then(below)
                && all.iter().all(|known| known.host != host)
            {
                all.push(Candidate { host, alias: true, sure: false });
            }
        }
        all
    }

    /// `name`, `name.namespace`, `name.namespace.svc` and the whole name, as the control plane resolves them; with whether
    /// the form is the mesh's alone.
    fn host(&self, name: &str) -> Option<(String, bool)> {
        if let Some(service) = self.below_zone(name) {
            return is_service(service).then(|| (name.to_owned(), true));
        }
        let (service, sure) = match name.strip_suffix(".svc") {
            Some(service) => (service.to_owned(), true),
            None if name.contains('.') => (name.to_owned(), false),
            // RFC 6761, 6.3: this one is never anybody else.
            None if name == "localhost" => return None,
            None => (format!("{name}.{}", self.namespace), true),
        };
        is_service(&service).then(|| (format!("{service}.{}", self.zone), sure))
    }

    fn below_zone<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_suffix(self.zone.as_str())?.strip_suffix('.')
    }
}

/// `name.namespace`, both as services and namespaces may be called.
fn is_service(text: &str) -> bool {
    text.split_once('.').is_some_and(|(name, namespace)| is_label(name) && is_label(namespace))
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> MeshNames {
        let search = ["shop.svc.cluster.local", "svc.cluster.local.", "Cluster.Local", "corp.example"];
        MeshNames::new("shop", "cluster.local", &search.map(str::to_owned))
    }

    fn candidate(host: &str, alias: bool, sure: bool) -> Candidate {
        Candidate { host: format!("{host}.svc.cluster.local"), alias, sure }
    }

    #[test]
    fn every_spelling_of_a_service_is_its_whole_name() {
        for (name, sure) in [
            ("catalog", true),
            ("catalog.shop", false),
            ("catalog.shop.svc", true),
            ("catalog.shop.svc.cluster.local", true),
        ] {
            assert_eq!(
                names().candidates(name, |_| false),
                [candidate("catalog.shop", false, sure)],
                "{name}"
            );
        }
    }

    #[test]
    fn below_a_search_domain_the_rest_counts() {
        for (name, host) in [
            ("catalog.shop.shop.svc.cluster.local", "catalog.shop"),
            ("catalog.shop.svc.shop.svc.cluster.local", "catalog.shop"),
            ("catalog.shop.svc.cluster.local.shop.svc.cluster.local", "catalog.shop"),
            ("catalog.corp.example", "catalog.shop"),
            ("catalog.other.corp.example", "catalog.other"),
        ] {
            assert_eq!(names().candidates(name, |_| false), [candidate(host, true, false)], "{name}");
        }
    }

    #[test]
    fn the_mesh_s_domain_and_forms_are_its_own() {
        for name in ["nobody", "nobody.shop.svc", "a.svc.cluster.local", "www.example.com.cluster.local"] {
            assert!(names().owns(name), "{name}");
        }
        for name in ["example.com", "www.example.com", "a.corp.example", "localhost", "notcluster.local", ""]
        {
            assert!(!names().owns(name), "{name}");
        }
    }

    #[test]
    fn a_name_of_the_world_is_asked_for_where_the_control_plane_has_addresses_for_it() {
        let outside = |name: &str| name == "api.example.com" || name == "example.com";
        let whole = |name: &str, alias| Candidate { host: name.to_owned(), alias, sure: !alias };
        assert_eq!(names().candidates("api.example.com", outside), [whole("api.example.com", false)]);
        // Two labels may as well be a service of a namespace.
        let both = [candidate("example.com", false, false), whole("example.com", false)];
        assert_eq!(names().candidates("example.com", outside), both);
        let below = names().candidates("api.example.com.shop.svc.cluster.local", outside);
        assert_eq!(below, [whole("api.example.com", true)], "saves the client the other searches");
        assert_eq!(names().candidates("www.example.com", outside), []);
    }

    #[test]
    fn a_whole_name_stands_for_no_other_service() {
        // Not shop's catalog, although the rest below the search domain says so.
        let names = MeshNames::new("shop", "cluster.local", &["other.svc.cluster.local".to_owned()]);
        assert_eq!(
            names.candidates("catalog.other.svc.cluster.local", |_| false),
            [candidate("catalog.other", false, true)]
        );
    }

    #[test]
    fn what_cannot_be_a_service_is_not_asked_for() {
        for name in [
            "",
            "localhost",
            "www.example.com",
            "_grpc.catalog",
            "a.b.c.svc.cluster.local",
            "-a.shop",
            "a..b",
            ".",
            "7.0.0.10.in-addr.arpa",
            "xn--\u{fc}.shop",
        ] {
            assert_eq!(names().candidates(name, |_| false), [], "{name}");
        }
    }
}
