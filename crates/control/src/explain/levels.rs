//! How the requests to a cluster are spread over priorities and places, as the proxies spread them.

use std::collections::BTreeMap;

use outrigger_model::endpoint::spread::{Bearing, shares};
use outrigger_model::endpoint::{EndpointSet, Locality, LocalityEndpoints};

use super::body::{LevelBody, PlaceBody};

/// The nearest first; nothing where there is only one place.
pub(super) fn of(set: &EndpointSet) -> Vec<LevelBody> {
    let mut levels: BTreeMap<u32, Vec<(&LocalityEndpoints, Bearing)>> = BTreeMap::new();
    for place in set.localities.iter().filter(|place| !place.endpoints.is_empty()) {
        levels.entry(place.priority).or_default().push((place, Bearing::of(place)));
    }
    if levels.values().map(Vec::len).sum::<usize>() < 2 {
        return Vec::new();
    }
    let bearing = levels.values().map(|places| {
        let sum = |of: fn(&Bearing) -> u32| places.iter().map(|(_, bearing)| of(bearing)).sum();
        (sum(|bearing| bearing.serving), sum(|bearing| bearing.total))
    });
    let shares = shares(bearing).unwrap_or_default();
    let share = |at: usize| shares.get(at).copied().unwrap_or(0);
    levels
        .into_iter()
        .enumerate()
        .map(|(at, (priority, places))| level(priority, share(at), &places))
        .collect()
}

fn level(priority: u32, percent: u8, places: &[(&LocalityEndpoints, Bearing)]) -> LevelBody {
    let whole: u64 = places.iter().map(|(_, bearing)| bearing.whole()).sum();
    let place = |(place, bearing): &(&LocalityEndpoints, Bearing)| PlaceBody {
        place: written(&place.locality),
        percent: f64::from(percent) * bearing.whole() as f64 / whole.max(1) as f64,
        healthy: bearing.serving as usize,
        endpoints: place.endpoints.len(),
    };
    LevelBody { priority, percent, places: places.iter().map(place).collect() }
}

/// `eu/a`.
fn written(Locality { region, zone, sub_zone }: &Locality) -> String {
    let whole = format!("{region}/{zone}/{sub_zone}");
    whole.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::explain::body::Explanation;
    use crate::explain::tests::{asked, only};
    use crate::instance::{Instance, Protocol, State, sample};
    use crate::world::sample::world;

    const NEAREST: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: true}}}}
";

    /// Web is in `eu/a`; of each catalog the id, where it is, and whether it runs.
    fn ask(rules: &str, catalogs: &[(&str, &str, bool)]) -> Explanation {
        let place = |instance: Instance, place: &str| {
            let (region, zone) = place.split_once('/').unwrap();
            Instance { region: region.to_owned(), zone: zone.to_owned(), ..instance }
        };
        let catalogs = catalogs.iter().enumerate().map(|(at, (id, of, runs))| {
            let address = format!("127.0.1.{at}");
            let state = if *runs { State::Running } else { State::Unhealthy };
            place(Instance { state, ..sample(id, "catalog", "v1", &address, 8080, Protocol::Http) }, of)
        });
        let web = place(sample("web-1", "web", "v1", "127.0.0.10", 8080, Protocol::Http), "eu/a");
        let world = Arc::new(world(catalogs.chain([web]).collect(), rules));
        asked(&world, "web", "GET http://catalog:8080/")
    }

    fn percents(answer: &Explanation) -> Vec<(u8, Vec<(&str, f64)>)> {
        let mut all = Vec::new();
        for level in &answer.targets[0].levels {
            let places = level.places.iter().map(|place| (place.place.as_str(), place.percent));
            all.push((level.percent, places.collect()));
        }
        all
    }

    #[test]
    fn who_gets_nothing_unless_nearer_ones_fail_is_no_outcome() {
        let near = [("near", "eu/a", true), ("zone", "eu/b", true), ("far", "us/a", true)];
        let answer = ask(NEAREST, &near);
        assert_eq!(only(&answer), ("forwarded", None, vec!["near"]));
        let spare: Vec<_> = answer.targets[0].spare.iter().flat_map(|one| &one.instances).collect();
        assert_eq!(spare, ["zone", "far"]);
        let wanted = [(100, vec![("eu/a", 100.0)]), (0, vec![("eu/b", 0.0)]), (0, vec![("us/a", 0.0)])];
        assert_eq!(percents(&answer), wanted);
    }

    #[test]
    fn what_a_priority_cannot_bear_is_the_next_ones() {
        let half =
            [("near", "eu/a", true), ("down", "eu/a", false), ("zone", "eu/b", true), ("far", "us/a", true)];
        let answer = ask(NEAREST, &half);
        assert_eq!(only(&answer), ("forwarded", None, vec!["near", "zone"]));
        let wanted = [(70, vec![("eu/a", 70.0)]), (30, vec![("eu/b", 30.0)]), (0, vec![("us/a", 0.0)])];
        assert_eq!(percents(&answer), wanted);
        let gone = ask(NEAREST, &[("down", "eu/a", false), ("zone", "eu/b", true)]);
        assert_eq!(only(&gone), ("forwarded", None, vec!["zone"]));
    }

    #[test]
    fn places_of_one_priority_have_their_shares() {
        let rules = NEAREST.replace("enabled: true", "distribute: [{from: eu/*, to: {eu/a: 80, us/*: 20}}]");
        let answer = ask(&rules, &[("a", "eu/a", true), ("b", "us/a", true), ("c", "us/b", true)]);
        let wanted = [(100, vec![("eu/a", 80.0), ("us/a", 10.0), ("us/b", 10.0)])];
        assert_eq!(percents(&answer), wanted);
        // Half of a place bears seven tenths of a share; without one it is the endpoints that weigh.
        let half = ask(&rules, &[("a", "eu/a", true), ("down", "eu/a", false), ("b", "us/a", true)]);
        let [level] = half.targets[0].levels.as_slice() else { panic!("{half:?}") };
        assert!((level.places[0].percent - 100.0 * 56.0 / 76.0).abs() < 0.001, "{level:?}");
        let half = ask("", &[("a", "eu/a", true), ("down", "eu/a", false), ("b", "us/a", true)]);
        let [level] = half.targets[0].levels.as_slice() else { panic!("{half:?}") };
        assert_eq!(level.places.iter().map(|place| place.percent).collect::<Vec<_>>(), [50.0, 50.0]);
        assert_eq!(ask("", &[("a", "eu/a", true)]).targets[0].levels, []);
    }
}
