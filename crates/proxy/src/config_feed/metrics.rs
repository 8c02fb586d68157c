//! What the feed says of itself to whoever scrapes.

use std::collections::BTreeMap;

use outrigger_model::resource::ResourceKind;
use outrigger_telemetry::metrics::{Labels, Page, Registry};

use super::state::Freshness;
use super::{ConfigFeed, FeedStatus};

/// Of one type.
#[derive(Default)]
struct Of {
    all: u64,
    stale: u64,
    unanswered: u64,
}

/// With all others.
pub fn register<P>(registry: &Registry, feed: &ConfigFeed<P>) {
    let (status, state) = (feed.status.clone(), feed.state.clone());
    registry.register_fn(move |page| write(&status.lock(), state.lock().freshness(), page));
}

/// Writes it; `all` is how far each subscription is.
fn write(status: &FeedStatus, all: impl Iterator<Item = (ResourceKind, Freshness)>, page: &mut Page) {
    let connected = status.connected;
    page.gauge("outrigger_control_plane_connected", "1 while the ADS stream is open.").sample((), connected);
    page.gauge("outrigger_destinations", "Destinations subscribed to.")
        .sample((), status.destinations as u64);
    page.gauge("outrigger_hosts", "Names subscribed to for DNS.").sample((), status.hosts as u64);
    page.counter("outrigger_destinations_forgotten_total", "Destinations and names given up unused.")
        .sample((), status.forgotten);
    page.gauge("outrigger_config_generation", "Generation that is in force.").sample((), status.generation);
    let age = status.from_disk.and_then(|since| since.elapsed().ok()).map_or(0, |age| age.as_secs());
    page.gauge(
        "outrigger_config_from_disk_seconds",
        "Age of the configuration while it serves from disk, else 0.",
    )
    .sample((), age);
    let unconfirmed = status.unconfirmed();
    page.gauge(
        "outrigger_config_unconfirmed_seconds",
        "For how long no control plane has stood for what serves; 0 while one does.",
    )
    .sample((), unconfirmed.map_or(0, |time| time.as_secs()));
    by_type(all, unconfirmed.is_some(), page);
    for (kind, at) in &status.heard {
        let labels = Labels::new().with("type", &format!("{kind:?}"));
        page.gauge("outrigger_xds_heard_seconds", "Since the last response of the type.")
            .sample(&labels, at.elapsed().as_secs());
    }
}

/// There are as many series as types. `unconfirmed`: no control plane stands for what serves.
fn by_type(all: impl Iterator<Item = (ResourceKind, Freshness)>, unconfirmed: bool, page: &mut Page) {
    let mut types: BTreeMap<ResourceKind, Of> = BTreeMap::new();
    for (kind, freshness) in all {
        let of = types.entry(kind).or_default();
        of.all += 1;
        of.stale += u64::from(freshness.is_stale() || unconfirmed);
        of.unanswered += u64::from(freshness == Freshness::Unanswered);
    }
    for (kind, of) in types {
        let labels = Labels::new().with("type", &format!("{kind:?}"));
        for (name, help, count) in [
            ("outrigger_xds_subscriptions", "Resources that are asked for or were sent.", of.all),
            (
                "outrigger_xds_stale",
                "Of them those that serve in another version than the last that was sent, or that no control plane stands for.",
                of.stale,
            ),
            ("outrigger_xds_unanswered", "Of them those of which nothing was said yet.", of.unanswered),
        ] {
            page.gauge(name, help).sample(&labels, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn stale_subscriptions_are_counted_by_type_and_all_are_while_nobody_stands_for_them() {
        let now = Instant::now();
        let all = [Freshness::Current, Freshness::Refused, Freshness::Unanswered];
        let status = FeedStatus {
            connected: true,
            heard: [(ResourceKind::Endpoints, now)].into(),
            ..FeedStatus::default()
        };
        let has = |status: &FeedStatus, line: &str| {
            let mut page = Page::new();
            write(status, all.into_iter().map(|one| (ResourceKind::Endpoints, one)), &mut page);
            let text = page.finish();
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        };
        has(&status, r#"outrigger_xds_subscriptions{type="Endpoints"} 3"#);
        has(&status, r#"outrigger_xds_stale{type="Endpoints"} 1"#);
        has(&status, r#"outrigger_xds_unanswered{type="Endpoints"} 1"#);
        has(&status, r#"outrigger_xds_heard_seconds{type="Endpoints"} 0"#);
        has(&status, "outrigger_config_unconfirmed_seconds 0");
        let away = now.checked_sub(Duration::from_secs(7));
        let status = FeedStatus { connected: false, disconnected_since: away, ..status };
        has(&status, r#"outrigger_xds_stale{type="Endpoints"} 3"#);
        has(&status, "outrigger_config_unconfirmed_seconds 7");
    }
}
