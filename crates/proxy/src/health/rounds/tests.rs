use outrigger_model::cluster::TcpCheck;
use outrigger_model::endpoint::{Endpoint, LocalityEndpoints};
use outrigger_model::resource::Resource;

use super::*;
use crate::runtime::build::Builder;
use crate::runtime::cluster::PickContext;
use crate::runtime::endpoint::{Outcome, Reach};
use crate::runtime::verdict::Failed;

const SECOND: Duration = Duration::from_secs(1);

/// A world of one cluster whose endpoints are these hosts.
#[derive(Default)]
struct World {
    builder: Builder,
    snapshot: Snapshot,
}

impl World {
    fn of(&mut self, check: Option<HealthCheck>, hosts: &[u8]) -> &Snapshot {
        let endpoints = hosts.iter().map(|host| Endpoint::new(SocketAddr::from(([10, 0, 0, *host], 80))));
        let places = vec![LocalityEndpoints { endpoints: endpoints.collect(), ..Default::default() }];
        let cluster = Cluster { health_check: check.map(Box::new), ..Cluster::new("c") };
        let resources = [Resource::Cluster(cluster), Resource::Endpoints(EndpointSet::new("c", places))];
        let resources = resources.map(Arc::new);
        let in_force =
            resources.iter().map(|resource| ((resource.kind(), resource.name()), resource)).collect();
        let (snapshot, invalid) = self.builder.build(&self.snapshot, &in_force, []);
        assert!(invalid.is_empty(), "{invalid:?}");
        self.snapshot = snapshot;
        &self.snapshot
    }

    fn endpoint(&self, host: u8) -> Arc<EndpointState> {
        let cluster = self.snapshot.cluster("c").unwrap();
        let table = cluster.endpoints();
        table
            .all
            .iter()
            .find(|one| one.address.ip() == std::net::IpAddr::from([10, 0, 0, host]))
            .unwrap()
            .clone()
    }
}

fn check() -> HealthCheck {
    HealthCheck { interval: SECOND, ..HealthCheck::new(CheckHow::Tcp(TcpCheck::default())) }
}

fn host(endpoint: &EndpointState) -> u8 {
    let std::net::IpAddr::V4(ip) = endpoint.address.ip() else { panic!() };
    ip.octets()[3]
}

/// Asks whoever is due up to a moment; when, in milliseconds, and whom.
async fn asked(rounds: &mut Rounds, until: Instant) -> Vec<(u64, u8)> {
    let start = Instant::now();
    let mut all = Vec::new();
    while let Some(due) = rounds.due().filter(|due| *due <= until) {
        tokio::time::sleep_until(due).await;
        if let Some(next) = rounds.begin(Instant::now()) {
            let millis = Instant::now().duration_since(start).as_millis() as u64;
            all.push((millis, host(&next.endpoint)));
            rounds.ended(next.id, Instant::now());
        }
    }
    tokio::time::sleep_until(until).await;
    all
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_asked_at_once_and_then_once_a_minute_until_somebody_calls() {
    let (mut world, mut rounds) = (World::default(), Rounds::default());
    rounds.follow(world.of(Some(check()), &[1, 2]), Instant::now());
    let first = asked(&mut rounds, Instant::now() + SECOND * 130).await;
    let of_one: Vec<u64> = first.iter().filter(|(_, host)| *host == 1).map(|(at, _)| at / 1000).collect();
    assert_eq!(of_one, [0, 60, 120]);
    assert_eq!(first.len(), 6);
    drop(world.endpoint(2).begin());
    let then = asked(&mut rounds, Instant::now() + SECOND * 10).await;
    assert!((17..=20).contains(&then.len()), "both, though only one was called: {then:?}");
    drop(asked(&mut rounds, Instant::now() + SECOND * 90).await);
    let quiet = asked(&mut rounds, Instant::now() + SECOND * 10).await;
    assert!(quiet.len() <= 2, "nobody calls any more: {quiet:?}");
}

/// How often somebody is asked in ten seconds after nobody was called for long, where this happens then.
async fn woken<T>(happens: impl FnOnce(&ClusterHandle) -> T) -> usize {
    let (mut world, mut rounds) = (World::default(), Rounds::default());
    rounds.follow(world.of(Some(check()), &[1]), Instant::now());
    drop(asked(&mut rounds, Instant::now() + SECOND * 90).await);
    let _kept = happens(world.snapshot.cluster("c").unwrap());
    asked(&mut rounds, Instant::now() + SECOND * 10).await.len()
}

#[tokio::test(start_paused = true)]
async fn requests_that_reach_nobody_and_those_that_last_are_calls_too() {
    let one = |cluster: &ClusterHandle| cluster.endpoints().all[0].clone();
    let refused = |cluster: &ClusterHandle| {
        let why = "it does not answer".into();
        cluster.judge(&one(cluster), Err(Failed { why, at_once: true, network: true })).unwrap();
        let original = (SocketAddr::from(([10, 9, 9, 9], 80)), Reach::Network);
        assert!(cluster.pick(&PickContext { tried: &[], original, hash: None }).is_err());
    };
    assert!(woken(|_| ()).await <= 1, "nobody calls");
    assert!(woken(refused).await >= 9, "there is nobody to take it");
    let unconnected = |cluster: &ClusterHandle| cluster.report(&one(cluster), Outcome::GatewayError, None);
    assert!(woken(unconnected).await >= 9, "no connection could be made");
    let (mut world, mut rounds) = (World::default(), Rounds::default());
    rounds.follow(world.of(Some(check()), &[1]), Instant::now());
    let stream = world.endpoint(1).begin();
    drop(asked(&mut rounds, Instant::now() + SECOND * 90).await);
    assert!(asked(&mut rounds, Instant::now() + SECOND * 10).await.len() >= 9, "a stream is open");
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn what_comes_goes_or_asks_otherwise_is_followed() {
    let (mut world, mut rounds) = (World::default(), Rounds::default());
    let moment = SECOND / 10;
    rounds.follow(world.of(Some(check()), &[1, 2]), Instant::now());
    assert_eq!(asked(&mut rounds, Instant::now() + moment).await.len(), 2);
    rounds.follow(world.of(Some(check()), &[2, 3]), Instant::now());
    let hosts = |asked: Vec<(u64, u8)>| asked.into_iter().map(|(_, host)| host).collect::<Vec<_>>();
    assert_eq!(hosts(asked(&mut rounds, Instant::now() + moment).await), [3], "only who is new");
    let other = HealthCheck { unhealthy_threshold: 9, ..check() };
    rounds.follow(world.of(Some(other.clone()), &[2, 3]), Instant::now());
    assert_eq!(hosts(asked(&mut rounds, Instant::now() + moment).await), [2, 3], "another question");
    let later = HealthCheck { initial_jitter: SECOND * 5, ..other };
    rounds.follow(world.of(Some(later), &[2]), Instant::now());
    let at = asked(&mut rounds, Instant::now() + SECOND * 5).await;
    assert!(at.len() == 1 && at[0].0 <= 5000, "{at:?}");
    rounds.follow(world.of(None, &[2]), Instant::now());
    assert_eq!(asked(&mut rounds, Instant::now() + SECOND * 300).await, []);
    assert!(rounds.subjects.is_empty() && rounds.clusters.is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_more_checks_begin_in_a_second_than_are_bearable() {
    let (mut world, mut rounds) = (World::default(), Rounds::default());
    let every: Vec<u8> = (0..=255).collect();
    let often = HealthCheck { interval: SECOND / 10, no_traffic_interval: SECOND / 10, ..check() };
    rounds.follow(world.of(Some(often), &every), Instant::now());
    let begun = asked(&mut rounds, Instant::now() + SECOND * 2).await;
    assert!((900..=1001).contains(&begun.len()), "2,560 a second were asked for: {}", begun.len());
    let least = every.iter().map(|one| begun.iter().filter(|(_, host)| host == one).count()).min();
    assert!(least >= Some(3), "all have their turn: {least:?}");
}

/// Begins all that are due in a while, none of which ends.
async fn begun(rounds: &mut Rounds) -> Vec<u64> {
    let until = Instant::now() + SECOND * 5;
    let mut begun = Vec::new();
    while let Some(due) = rounds.due().filter(|due| *due <= until) {
        tokio::time::sleep_until(due).await;
        begun.extend(rounds.begin(Instant::now()).map(|next| next.id));
    }
    begun
}

#[tokio::test(start_paused = true)]
async fn one_cluster_has_a_part_of_the_places_also_after_its_rule_is_gone() {
    let (mut world, mut rounds) = (World::default(), Rounds::default());
    let every: Vec<u8> = (0..=255).collect();
    let slow = HealthCheck { timeout: SECOND * 3600, ..check() };
    rounds.follow(world.of(Some(slow.clone()), &every), Instant::now());
    let held = begun(&mut rounds).await;
    assert_eq!(held.len(), MOST_OF_ONE, "none has ended");
    rounds.ended(held[0], Instant::now());
    assert_eq!(begun(&mut rounds).await.len(), 1, "the next has its place");
    rounds.follow(world.of(None, &every), Instant::now());
    rounds.follow(world.of(Some(slow), &every), Instant::now());
    assert_eq!(begun(&mut rounds).await.len(), 0, "those of before are still under way");
    held.iter().for_each(|id| drop(rounds.ended(*id, Instant::now())));
    assert_eq!(begun(&mut rounds).await.len(), MOST_OF_ONE - 1);
}
