use super::*;

fn rules() -> Outlier {
    Outlier { consecutive_5xx: 3, max_ejection_percent: 100, ..Outlier::default() }
}

struct Cluster {
    rules: Outlier,
    ejections: Ejections,
    endpoints: Vec<Health>,
    now: Instant,
}

impl Cluster {
    fn of(n: usize, rules: Outlier) -> Self {
        let ejections = Ejections::default();
        let now = ejections.epoch;
        Self { rules, ejections, endpoints: (0..n).map(|_| Health::default()).collect(), now }
    }

    fn peers(&self) -> impl Iterator<Item = Peer<'_>> {
        self.endpoints.iter().map(|health| (health, true))
    }

    fn report(&self, i: usize, outcome: Outcome) -> Option<Cause> {
        let peers = self.peers();
        self.ejections.record(&self.rules, &self.endpoints[i], outcome, self.now, peers)
    }

    fn fail(&self, i: usize, times: usize) -> Option<Cause> {
        (0..times).filter_map(|_| self.report(i, Outcome::Status(500))).next()
    }

    fn ejected(&self, i: usize) -> bool {
        self.ejections.is_ejected(&self.endpoints[i], self.now)
    }
}

#[test]
fn the_third_failure_in_a_row_ejects_and_a_success_between_starts_over() {
    let cluster = Cluster::of(3, rules());
    cluster.fail(0, 2);
    assert_eq!(cluster.report(0, Outcome::Status(404)), None);
    assert_eq!(cluster.fail(0, 2), None);
    assert!(!cluster.ejected(0));
    assert_eq!(cluster.fail(0, 1), Some(Cause::Consecutive5xx));
    assert!(cluster.ejected(0) && cluster.ejections.any());
}

#[test]
fn each_ejection_lasts_longer_than_the_one_before_up_to_the_maximum() {
    let limits = Outlier { max_ejection: Duration::from_secs(70), ..rules() };
    let mut cluster = Cluster::of(3, limits);
    for seconds in [30, 60, 70, 70] {
        cluster.fail(0, 3);
        let (_, left) = cluster.ejections.ejection(&cluster.endpoints[0], cluster.now).unwrap();
        assert_eq!(left, Duration::from_secs(seconds));
        cluster.now += Duration::from_secs(seconds) - Duration::from_millis(1);
        assert!(cluster.ejected(0));
        cluster.now += Duration::from_millis(1);
        assert!(!cluster.ejected(0));
        assert!(!cluster.ejections.any(), "nothing is left to look at");
    }
}

#[test]
fn the_last_endpoint_is_never_ejected() {
    let cluster = Cluster::of(1, rules());
    assert_eq!(cluster.fail(0, 50), None);
    let cluster = Cluster::of(2, rules());
    assert!(cluster.fail(0, 3).is_some());
    assert_eq!(cluster.fail(1, 50), None);
}

#[test]
fn the_percentage_bounds_ejections_but_one_may_always_go() {
    let cluster = Cluster::of(5, Outlier { max_ejection_percent: 10, ..rules() });
    assert!(cluster.fail(0, 3).is_some());
    assert_eq!(cluster.fail(1, 3), None);
    let cluster = Cluster::of(5, Outlier { max_ejection_percent: 40, ..rules() });
    assert!(cluster.fail(0, 3).is_some() && cluster.fail(1, 3).is_some());
    assert_eq!(cluster.fail(2, 3), None);
}

#[test]
fn gateway_errors_count_only_502_503_504_and_lost_connections() {
    let only_gateway = Outlier { consecutive_5xx: 0, consecutive_gateway: 2, ..rules() };
    let cluster = Cluster::of(3, only_gateway);
    cluster.report(0, Outcome::Status(503));
    cluster.report(0, Outcome::Status(500));
    assert_eq!(cluster.report(0, Outcome::GatewayError), None, "the 500 broke the run");
    assert_eq!(cluster.report(0, Outcome::Status(504)), Some(Cause::ConsecutiveGateway));
}

#[test]
fn our_own_failures_say_nothing_about_the_endpoint() {
    let cluster = Cluster::of(3, rules());
    cluster.fail(0, 2);
    assert_eq!(cluster.report(0, Outcome::LocalFailure), None);
    assert_eq!(cluster.fail(0, 1), Some(Cause::Consecutive5xx));
}

#[test]
fn late_failures_of_an_ejected_endpoint_do_not_prolong_its_ejection() {
    let mut cluster = Cluster::of(3, rules());
    cluster.fail(0, 3);
    assert_eq!(cluster.fail(0, 10), None);
    cluster.now += Duration::from_secs(30);
    assert!(!cluster.ejected(0));
    assert_eq!(cluster.ejections.total(), 1);
}

#[test]
fn each_interval_without_an_ejection_takes_one_off_the_times() {
    let mut cluster = Cluster::of(3, rules());
    let mut last = |after: u64| {
        cluster.now += Duration::from_secs(after);
        cluster.fail(0, 3);
        let (_, left) = cluster.ejections.ejection(&cluster.endpoints[0], cluster.now).unwrap();
        cluster.now += left;
        assert!(!cluster.ejected(0));
        left.as_secs()
    };
    assert_eq!([last(1), last(1), last(1)], [30, 60, 90]);
    // Twenty seconds are two intervals.
    assert_eq!([last(20), last(3600), last(1)], [60, 30, 60]);
}

#[test]
fn failures_of_what_was_sent_before_the_ejection_do_not_count_after_it() {
    let mut cluster = Cluster::of(3, rules());
    cluster.fail(0, 3);
    cluster.fail(0, 2);
    cluster.now += Duration::from_secs(30);
    assert!(!cluster.ejected(0));
    assert_eq!(cluster.fail(0, 1), None);
}

#[test]
fn who_refuses_connections_is_left_alone_ever_longer_and_the_last_never() {
    let mut cluster = Cluster::of(2, rules());
    let refuses = |cluster: &Cluster, i: usize| {
        cluster.ejections.refused(&cluster.endpoints[i], cluster.now, cluster.peers())
    };
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        let length = refuses(&cluster, 0).unwrap();
        assert_eq!(length, Duration::from_secs(seconds));
        assert_eq!(refuses(&cluster, 0), None, "it is left alone already");
        assert_eq!(refuses(&cluster, 1), None, "the last");
        let (cause, _) = cluster.ejections.ejection(&cluster.endpoints[0], cluster.now).unwrap();
        assert_eq!(cause, Cause::Refused);
        cluster.now += length;
        assert!(!cluster.ejected(0) && !cluster.ejections.any());
    }
    assert_eq!(cluster.ejections.total(), 0, "of the rules");
    cluster.now += Duration::from_secs(60);
    assert_eq!(refuses(&cluster, 0), Some(Duration::from_secs(1)), "it took connections meanwhile");
    let gone = Health::default();
    assert_eq!(cluster.ejections.refused(&gone, cluster.now, cluster.peers()), None);
}

#[test]
fn what_brings_no_answer_counts_apart_where_it_is_so_wanted() {
    let apart = Outlier { local_apart: true, consecutive_local: 2, ..rules() };
    let cluster = Cluster::of(3, apart);
    // Three of a kind that were 5xx otherwise.
    assert_eq!(cluster.report(0, Outcome::Unconnected), None);
    assert_eq!(cluster.report(0, Outcome::Refused), Some(Cause::ConsecutiveLocal));
    // A connection that stood begins anew, and is one failure then.
    for _ in 0..5 {
        assert_eq!(cluster.report(1, Outcome::GatewayError), None);
    }
    assert_eq!(cluster.report(1, Outcome::Unconnected), Some(Cause::ConsecutiveLocal));
    let cluster = Cluster::of(3, Outlier { local_apart: true, consecutive_local: 2, ..rules() });
    cluster.report(0, Outcome::Unconnected);
    assert_eq!(cluster.fail(0, 2), None);
    assert_eq!(cluster.report(0, Outcome::Unconnected), None, "an answer came between");
    assert_eq!(cluster.fail(0, 1), Some(Cause::Consecutive5xx), "and answers count as before");
}

#[test]
fn ejection_stops_before_too_few_are_left_and_ends_where_others_go() {
    let cluster = Cluster::of(5, Outlier { min_health_percent: 60, ..rules() });
    assert!(cluster.fail(0, 3).is_some() && cluster.fail(1, 3).is_some());
    assert_eq!(cluster.fail(2, 9), None, "sixty of a hundred are left");
    assert_eq!(cluster.ejections.counts().overflows(), 3);
    // Two of those that serve fail their checks: the ejections end.
    let peers = cluster.endpoints.iter().enumerate().map(|(i, health)| (health, i < 3));
    assert_eq!(cluster.ejections.keep_enough(Some(&cluster.rules), peers, cluster.now), 2);
    assert!(!cluster.ejected(0) && !cluster.ejected(1) && !cluster.ejections.any());
}

#[test]
fn jitter_lengthens_an_ejection_by_chance_within_its_bound() {
    fastrand::seed(7);
    let jitter = Duration::from_secs(10);
    let mut lengths = Vec::new();
    for _ in 0..50 {
        let cluster = Cluster::of(3, Outlier { jitter, ..rules() });
        cluster.fail(0, 3);
        lengths.push(cluster.ejections.ejection(&cluster.endpoints[0], cluster.now).unwrap().1);
    }
    let base = Duration::from_secs(30);
    assert!(lengths.iter().all(|length| (base..=base + jitter).contains(length)), "{lengths:?}");
    assert!(lengths.iter().max().unwrap().abs_diff(*lengths.iter().min().unwrap()) > jitter / 2);
}

#[test]
fn an_ejection_that_is_ended_begins_with_clean_counts() {
    let cluster = Cluster::of(3, rules());
    cluster.fail(0, 5);
    assert!(cluster.ejections.end(&cluster.endpoints[0], cluster.now) && !cluster.ejected(0));
    assert!(!cluster.ejections.end(&cluster.endpoints[0], cluster.now), "there is none any more");
    assert_eq!(cluster.fail(0, 2), None);
    assert!(cluster.fail(0, 1).is_some());
}
