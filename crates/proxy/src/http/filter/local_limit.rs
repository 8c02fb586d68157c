//! How many requests pass, as other control planes have it: `envoy.filters.http.local_ratelimit`. A route may have a bucket of its own. The
//! counts live beside the configuration (`runtime/rate.rs`).

use std::sync::Arc;

use outrigger_model::local_limit::{LocalLimit, LocalLimits};
use outrigger_model::resource::Flaw;
use outrigger_model::route::table::CompiledRoute;
use tokio::time::Instant;

use super::act::add;
use super::{Act, After, Build, Input, Place, Stop, Tallies, Verdict, Visit};
use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::rate::{Counts, Rates};

/// The limits of a listener, and of its routes.
#[derive(Debug)]
pub struct Limits {
    own: Limit,
    /// By the route's id; none at all where no route has any.
    routes: Vec<Option<Limit>>,
}

/// What becomes of a request.
#[derive(Debug)]
enum Look<'a> {
    Passes,
    /// It passes, though there was no token.
    Over(&'a LocalLimit),
    Refused(&'a LocalLimit, Failure),
}

/// What holds in one place.
#[derive(Debug)]
struct Limit {
    config: LocalLimit,
    counts: Option<Arc<Counts>>,
}

impl Limit {
    /// Its count goes on where it is known.
    fn build(config: &LocalLimit, rates: &Rates) -> Self {
        Self { config: config.clone(), counts: config.bucket.as_ref().map(|bucket| rates.of(&bucket.into())) }
    }
}

impl Build for Limits {
    type Config = LocalLimits;

    fn build(config: &LocalLimits, place: &Place<'_>) -> Result<Self, Flaw> {
        let Place { routes, rates, .. } = place;
        let of_route = |route: &CompiledRoute| {
            route.config.local_limits.get(&config.name).map(|limit| Limit::build(limit, rates))
        };
        let mut all: Vec<Option<Limit>> = routes.routes().map(of_route).collect();
        if all.iter().all(Option::is_none) {
            all = Vec::new();
        }
        Ok(Self { own: Limit::build(&config.own, rates), routes: all })
    }
}

impl Act for Limits {
    fn on_request(&self, _input: &Input<'_>) -> Verdict {
        Verdict::Visit
    }

    /// Takes a token, and says in headers what came of it. What no route takes is counted as well, but has no headers: they may name the
    /// route.
    fn visit<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        match self.look(visit.route().map(|route| route.id)) {
            Look::Passes => {}
            Look::Over(limit) => visit.write(&limit.request_headers),
            Look::Refused(limit, failure) => {
                visit.write_refusal(&limit.response_headers, &failure);
                return Err(failure.into());
            }
        }
        Ok(After::Same)
    }

    fn tally<'t>(&'t self, all: &mut Tallies<'t>) {
        self.counts().for_each(|counts| add(&mut all.counts, counts));
    }
}

impl Limits {
    /// Takes a token for a request of a route; what no route takes has the listener's.
    fn look(&self, route: Option<u32>) -> Look<'_> {
        let of_route = route.and_then(|route| self.routes.get(route as usize)?.as_ref());
        let limit = of_route.unwrap_or(&self.own);
        let config = &limit.config;
        let Some(counts) = limit.counts.as_ref().filter(|_| drawn(config.enabled)) else {
            return Look::Passes;
        };
        match counts.ask(Instant::now(), counts.key(|_| {})) {
            Ok(()) => Look::Passes,
            Err(_) if drawn(config.enforced) => {
                counts.count_refused();
                Look::Refused(config, refused(config, counts))
            }
            Err(_) => Look::Over(config),
        }
    }

    fn counts(&self) -> impl Iterator<Item = &Arc<Counts>> {
        let routes = self.routes.iter().flatten();
        routes.chain([&self.own]).filter_map(|limit| limit.counts.as_ref())
    }
}

/// Nearly always of all or of none, for which nothing is drawn.
fn drawn(percent: f64) -> bool {
    percent >= 100.0 || percent > 0.0 && fastrand::f64() * 100.0 < percent
}

#[cold]
fn refused(config: &LocalLimit, counts: &Counts) -> Failure {
    let kind = FailureKind::LocalLimited { status: config.status, exhausted: config.exhausted };
    let limit = &counts.limit;
    let detail = format!("limit \"{}\": {} requests in {:?}", limit.name, limit.requests, limit.per);
    Failure::local(Stage::Authorize, kind, detail)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_model::local_limit::Bucket;
    use outrigger_model::route::table::RouteTable;
    use outrigger_model::route::{Route, RouteAction, RouteConfig, VirtualHost};

    use super::*;

    fn built(config: &LocalLimits, routes: &RouteTable, rates: &Rates) -> Limits {
        Limits::build(config, &Place { name: "", routes, rates }).unwrap()
    }

    fn limit(name: &str) -> LocalLimit {
        let bucket = Bucket { name: name.into(), tokens: 1, per: Duration::from_secs(3600), most: 1 };
        LocalLimit { bucket: Some(bucket), enabled: 100.0, enforced: 100.0, ..LocalLimit::off() }
    }

    #[test]
    fn routes_of_one_place_share_its_bucket_and_others_have_the_listeners() {
        let with = |limit: Option<LocalLimit>| Route {
            action: RouteAction::Direct { status: 200, body: String::new() },
            local_limits: limit.into_iter().map(|limit| ("f".to_owned(), limit)).collect(),
            ..Route::default()
        };
        let routes = vec![
            with(Some(limit("host"))),
            with(None),
            with(Some(limit("host"))),
            with(Some(LocalLimit::off())),
        ];
        let host = VirtualHost { name: "h".into(), domains: vec!["*".into()], routes, retry: None };
        let table =
            RouteTable::compile(&RouteConfig { name: "t".into(), virtual_hosts: vec![host] }).unwrap();
        let rates = Rates::default();
        let config = LocalLimits { name: "f".into(), own: limit("own") };
        let limits = built(&config, &table, &rates);
        let names: Vec<_> = limits.counts().map(|counts| counts.limit.name.as_str()).collect();
        assert_eq!(names, ["host", "host", "own"]);
        let all: Vec<_> = limits.counts().collect();
        assert!(Arc::ptr_eq(all[0], all[1]), "one bucket");
        let other = built(&LocalLimits { name: "g".into(), own: limit("own") }, &table, &rates);
        assert!(other.routes.is_empty(), "nobody says anything to it");
        assert!(Arc::ptr_eq(other.own.counts.as_ref().unwrap(), all[2]), "the count goes on");
    }

    #[test]
    fn who_finds_no_token_is_refused_or_passes_as_the_place_has_it() {
        let table =
            RouteTable::compile(&RouteConfig { name: "t".into(), virtual_hosts: Vec::new() }).unwrap();
        let of = |own: LocalLimit| built(&LocalLimits { name: "f".into(), own }, &table, &Rates::default());
        let limits = of(limit("a"));
        assert!(matches!(limits.look(Some(0)), Look::Passes));
        let Look::Refused(_, failure) = limits.look(Some(0)) else { panic!("there was one token") };
        assert_eq!((failure.kind.status(), failure.kind.flag()), (429, "RL"));
        assert_eq!(limits.counts().next().unwrap().refused(), 1);
        let counting = of(LocalLimit { enforced: 0.0, ..limit("b") });
        assert!(matches!((counting.look(Some(0)), counting.look(Some(0))), (Look::Passes, Look::Over(_))));
        assert_eq!(counting.counts().next().unwrap().refused(), 0, "nobody was");
        let off = of(LocalLimit { enabled: 0.0, ..limit("c") });
        assert!((0..3).all(|_| matches!(off.look(Some(0)), Look::Passes)));
    }

    #[test]
    fn a_part_of_the_requests_is_drawn() {
        assert!(drawn(100.0) && !drawn(0.0));
        fastrand::seed(7);
        let half = (0..10_000).filter(|_| drawn(50.0)).count();
        assert!((4_500..5_500).contains(&half), "{half}");
    }
}
