//! Objects that fight: the same object twice, two routes or two policies for one host. Both sides are always named.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Scene, finding, seen_from, short};
use crate::finding::{Finding, Severity, code};
use crate::intent::{Carried, DestinationIntent, Host, ObjectKind, Origin, Place, RouteIntent, Visibility};

pub(super) fn duplicate_objects(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let mut seen: BTreeMap<(ObjectKind, &str, &str), &Origin> = BTreeMap::new();
    for object in scene.objects {
        let origin = &object.origin;
        let key = (object.kind, object.namespace.as_str(), object.name.as_str());
        let Some(first) = seen.get(&key) else {
            seen.insert(key, origin);
            continue;
        };
        let place = Place { line: origin.line, column: 1, path: String::new() };
        let message = format!("{origin} is defined twice, first at {}", position(first));
        findings.push(finding(Severity::Error, code::DUPLICATE_OBJECT, origin, &place, message));
    }
}

/// One claim on a host.
#[derive(Clone)]
struct Claim<'o> {
    origin: &'o Origin,
    place: &'o Place,
    visibility: Cow<'o, Visibility>,
    http: bool,
    tcp: bool,
    tls: bool,
}

pub(super) fn routes(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let claims = scene.routes.iter().flat_map(|route| {
        let claim = move |host| Claim {
            origin: &route.origin,
            place: &route.place,
            visibility: scene.clients_of(route, host),
            http: !route.http.is_empty(),
            tcp: !route.tcp.is_empty(),
            tls: !route.tls.is_empty(),
        };
        route.hosts.iter().map(move |host| (host, claim(host)))
    });
    for_fights(claims, |host, first, second| {
        let (other, at) = (seen_from(second.origin, first.origin), position_of(first));
        let (one, host) = (second.origin, short(host));
        let (severity, message) = if same_reach(first, second) {
            let message = format!(
                "{one} and {other} (at {at}) both route {host}, and only one of them can hold; put their routes into one object"
            );
            (Severity::Error, message)
        } else {
            let message = format!(
                "{one} and {other} (at {at}) both route {host}, and clients whom both are for have only the one that is for fewer \
                 namespaces (exportTo), their own first"
            );
            (Severity::Warning, message)
        };
        findings.push(finding(severity, code::CONFLICT, second.origin, second.place, message));
    });
}

/// Whether some client has both for the same reason, so that nothing but their age decides.
fn same_reach(one: &Claim<'_>, other: &Claim<'_>) -> bool {
    let is_own = |claim: &Claim<'_>, client: &str| claim.origin.namespace == client;
    match (&*one.visibility, &*other.visibility) {
        (Visibility::Everyone, Visibility::Everyone) => true,
        (Visibility::Namespaces(names), both @ Visibility::Namespaces(_)) => {
            let mut names = names.iter().filter(|name| both.includes(name));
            names.any(|name| is_own(one, name) == is_own(other, name))
        }
        _ => false,
    }
}

/// Of two that cover a name the more specific has it whole, so that nothing of a wildcard's routes is for it. Each wildcard is told once.
pub(super) fn wildcards(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let wide = |route: &&&RouteIntent| route.hosts.iter().any(Host::is_wildcard);
    // Beyond so many the first ones tell enough: each is compared with all.
    for route in scene.routes.iter().filter(wide).take(MOST_RIVALS) {
        let taken = |other: &RouteIntent| {
            let narrower = other.hosts.iter().find_map(|host| {
                let wide = route.hosts.iter().find(|wide| *wide != host && wide.covers(host.as_str()))?;
                let own = route.hosts.contains(host);
                (!own).then_some((wide.clone(), host.clone()))
            })?;
            let carried = Carried::ALL.into_iter().any(|what| route.routes(what) && other.routes(what));
            let fight = carried
                && !same_object(&route.origin, &other.origin)
                && overlap(&route.visibility, &other.visibility);
            fight.then_some(narrower)
        };
        let mut rivals = scene.routes.iter().filter_map(|other| Some((*other, taken(other)?)));
        let Some((other, (wide, host))) = rivals.next() else { continue };
        let more = rivals.take(MOST_RIVALS).count();
        let more = if more > 0 { format!(" (and {more} more objects other names)") } else { String::new() };
        let message = format!(
            "{} routes {}, but {} routes {} by itself{more}, and nothing of the former is for that; put what it should have into \
             the latter, too",
            route.origin,
            short(&wide),
            seen_from(&route.origin, &other.origin),
            short(&host)
        );
        findings.push(finding(Severity::Warning, code::CONFLICT, &route.origin, &route.place, message));
    }
}

/// A rule for a destination, and which clients have it.
struct Word<'o> {
    rule: &'o DestinationIntent,
    clients: Cow<'o, Visibility>,
    /// It has a say for clients of other namespaces.
    counts: bool,
}

impl<'o> Word<'o> {
    fn of(scene: &Scene<'_>, rule: &'o DestinationIntent) -> Self {
        let own = &rule.origin.namespace;
        let counts = scene.say(&rule.host, own).counts(own);
        let clients = match counts {
            true => Cow::Borrowed(&rule.visibility),
            false => {
                let own = Some(own).filter(|own| rule.visibility.includes(own));
                Cow::Owned(Visibility::Namespaces(own.cloned().into_iter().collect()))
            }
        };
        Self { rule, clients, counts }
    }
}

/// Rules of one namespace are merged: an error is what would be lost by that. Of two namespaces the client's own goes first.
pub(super) fn destinations(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for rules in scene.by_host.values().filter(|rules| rules.len() > 1) {
        let words: Vec<Word<'_>> = rules.iter().map(|rule| Word::of(scene, rule)).collect();
        for (at, second) in words.iter().enumerate() {
            let rivals = words[..at].iter().filter(|first| {
                !same_object(&first.rule.origin, &second.rule.origin)
                    && overlap(&first.clients, &second.clients)
            });
            // Of many rivals one is told, which bounds the findings by the number of rules.
            if let Some((severity, place, message)) =
                rivals.take(MOST_RIVALS).find_map(|first| lost(first, second))
            {
                let origin = &second.rule.origin;
                findings.push(finding(severity, code::DUPLICATE_DESTINATION, origin, place, message));
            }
        }
    }
}

/// Beyond so many rules for one host the first ones tell enough.
const MOST_RIVALS: usize = 100;

/// What is lost where both rules hold.
fn lost<'o>(one: &Word<'_>, another: &Word<'o>) -> Option<(Severity, &'o Place, String)> {
    let (first, second) = (one.rule, another.rule);
    // What policies say of TLS has conditions of its own.
    if !first.backend_tls.is_empty() || !second.backend_tls.is_empty() {
        return None;
    }
    let (host, other) = (short(&second.host), seen_from(&second.origin, &first.origin));
    let at = position(&Origin { line: first.place.line, ..first.origin.clone() });
    if first.origin.namespace != second.origin.namespace {
        let which = match (one.counts, another.counts) {
            (true, true) => {
                "clients have only one of them: that of their own namespace, or else of the host's; put them into one object"
                    .to_owned()
            }
            (counts, _) => {
                let own = if counts { &second.origin } else { &first.origin };
                let namespace = &own.namespace;
                format!("clients of namespace {namespace} have theirs alone; say in {own} all that is to hold for them")
            }
        };
        let message = format!(
            "{} and {other} (at {at}) both define subsets or policy of {host}, and {which}",
            second.origin
        );
        return Some((Severity::Warning, &second.place, message));
    }
    // What is for some clients alone takes nothing from the others.
    if first.subsets_only || second.subsets_only {
        return None;
    }
    let twice = second.subsets.iter().find(|subset| {
        first.subset(&subset.name).is_some_and(|known| {
            (&known.labels, &known.policy, &known.ports) != (&subset.labels, &subset.policy, &subset.ports)
        })
    });
    if let Some(subset) = twice {
        let message = format!(
            "{} and {other} (at {at}) define the subset \"{}\" of {host} differently, and only one of them can hold; keep one",
            second.origin, subset.name
        );
        return Some((Severity::Error, &subset.place, message));
    }
    let same = (&first.policy, &first.ports) == (&second.policy, &second.ports);
    if first.is_without_policy() || second.is_without_policy() || same {
        return None;
    }
    let message = format!(
        "{} and {other} (at {at}) both have a traffic policy for {host}, and only one of them can hold; put them into one \
         object, or into subsets",
        second.origin
    );
    Some((Severity::Error, &second.place, message))
}

/// Tells of each claim the first other object that claims the same host for the same clients. An object that stands twice
/// in the set has a finding of its own.
fn for_fights<'o>(
    claims: impl Iterator<Item = (&'o Host, Claim<'o>)>,
    mut tell: impl FnMut(&Host, &Claim<'o>, &Claim<'o>),
) {
    let mut seen: BTreeMap<&Host, Vec<Claim<'o>>> = BTreeMap::new();
    for (host, claim) in claims {
        let before = seen.entry(host).or_default();
        let mut rivals = before.iter().filter(|other| {
            !same_object(other.origin, claim.origin)
                && overlap(&other.visibility, &claim.visibility)
                && (other.http && claim.http || other.tcp && claim.tcp || other.tls && claim.tls)
        });
        let first = rivals.clone().next();
        let worst = rivals.find(|rival| same_reach(rival, &claim));
        if let Some(rival) = worst.or(first) {
            tell(host, rival, &claim);
        }
        if worst.is_none() {
            // Of those that are for the same clients the first is kept, which bounds the search by the number of namespaces that share
            // a host.
            before.push(claim);
        }
    }
}

fn same_object(one: &Origin, other: &Origin) -> bool {
    (one.kind, &one.namespace, &one.name) == (other.kind, &other.namespace, &other.name)
}

fn overlap(one: &Visibility, other: &Visibility) -> bool {
    match (one, other) {
        (Visibility::Namespaces(names), other) | (other, Visibility::Namespaces(names)) => {
            names.iter().any(|name| other.includes(name))
        }
        (Visibility::Everyone, Visibility::Everyone) => true,
    }
}

fn position(origin: &Origin) -> String {
    match &origin.file {
        Some(file) => format!("{file}:{}", origin.line),
        None => format!("line {}", origin.line),
    }
}

fn position_of(claim: &Claim<'_>) -> String {
    position(&Origin { line: claim.place.line, ..claim.origin.clone() })
}
