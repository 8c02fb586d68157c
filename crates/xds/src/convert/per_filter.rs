//! `typed_per_filter_config`: what a route configuration, a virtual host or a route has for filters. Of two that say something the
//! narrower one holds. What decides access is never passed over: it acts, or refuses the resource.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use outrigger_model::ext_authz::{CheckSettings, RouteAuthz, RouteBody};
use outrigger_model::local_limit::LocalLimit;
use outrigger_model::route::Fault;

use super::flaw::{Decoded, Under, flaw};
use super::{cors, ext_authz, extension, left_out, local_limit, retry, session};
use crate::kind::ClientKind;
use crate::wire::any;
use crate::wire::http_authz::{self, ExtAuthzPerRoute, ext_authz_per_route::Override};
use crate::wire::http_cors::CorsPolicy;
use crate::wire::http_fault::HttpFault;
use crate::wire::http_local_limit::LocalRateLimit;
use crate::wire::http_session::StatefulSessionPerRoute;
use crate::wire::protobuf::Any;
use crate::wire::route::FilterConfig;

/// What one place has.
#[derive(Default)]
pub(super) struct PerFilter {
    pub(super) fault: Option<Fault>,
    pub(super) cors: cors::Said,
    pub(super) session: session::Said,
    /// By the filter's name.
    authz: BTreeMap<String, RouteAuthz>,
    /// By the filter's name.
    limits: BTreeMap<String, LocalLimit>,
}

/// `place` tells what counts there from what counts elsewhere.
pub(super) fn decode(wire: &HashMap<String, Any>, place: &dyn Display) -> Decoded<PerFilter> {
    let mut found = PerFilter::default();
    for (name, config) in wire {
        found.take(name, config, place).under(format_args!("typed_per_filter_config[{name}]"))?;
    }
    Ok(found)
}

/// Where nothing can be said of filters that decide access.
pub(super) fn refuse_access(wire: &HashMap<String, Any>) -> Decoded<()> {
    for (name, config) in wire {
        let refuse = |what: &str| {
            let reason = format!("{what} for one destination only is not supported");
            flaw(format_args!("typed_per_filter_config[{name}]"), reason)
        };
        if extension::decides_access(&config.type_url) {
            return refuse("authorization");
        }
        if extension::is::<FilterConfig>(config) {
            let wrapper: FilterConfig = extension::unpack(config)?;
            let inner = wrapper.config.as_ref().map_or(name.as_str(), |config| &config.type_url);
            if extension::decides_access(inner) || wrapper.disabled {
                return refuse("a filter");
            }
        }
        left_out("typed_per_filter_config of a weighted cluster");
    }
    Ok(())
}

impl PerFilter {
    fn take(&mut self, name: &str, config: &Any, place: &dyn Display) -> Decoded<()> {
        if extension::is::<FilterConfig>(config) {
            return self.take_wrapped(name, &extension::unpack(config)?, place);
        }
        if extension::is::<HttpFault>(config) {
            self.fault = Some(retry::decode_fault(&extension::unpack(config)?)?);
        } else if extension::is::<CorsPolicy>(config) {
            self.cors = cors::Said::Policy(Box::new(extension::unpack(config)?));
        } else if extension::is::<StatefulSessionPerRoute>(config) {
            self.session = session::decode(config)?;
        } else if extension::is::<LocalRateLimit>(config) {
            let limit = local_limit::of_place(config, &format_args!("{place}|{name}"))?;
            self.limits.insert(name.to_owned(), limit);
        } else if extension::is::<ExtAuthzPerRoute>(config) {
            self.authz.insert(name.to_owned(), decode_authz(&extension::unpack(config)?)?);
        } else if extension::decides_access(&config.type_url) {
            return flaw("", "authorization for one route only is not supported");
        } else {
            left_out("typed_per_filter_config of an unknown filter");
        }
        Ok(())
    }

    /// A configuration with a word on whether the filter acts at all.
    fn take_wrapped(&mut self, name: &str, wrapper: &FilterConfig, place: &dyn Display) -> Decoded<()> {
        if !wrapper.disabled {
            return match &wrapper.config {
                Some(config) if extension::is::<FilterConfig>(config) => {
                    flaw("config", "is one of its own kind")
                }
                Some(config) => self.take(name, config, place).under("config"),
                // A filter that is there acts: disabled ones that decide access are refused.
                None => {
                    left_out("a filter that is enabled for one route only");
                    Ok(())
                }
            };
        }
        // What is meant, the type of the configuration says, or else the name alone.
        let meant = wrapper.config.as_ref().map_or(name, |config| &config.type_url);
        if meant.contains("ext_authz") {
            self.authz.insert(name.to_owned(), RouteAuthz::Off);
        } else if extension::decides_access(meant) {
            return flaw("disabled", "authorization for one route only is not supported");
        } else if meant.contains("local_ratelimit") {
            self.limits.insert(name.to_owned(), LocalLimit::off());
        } else if meant.contains("fault") {
            self.fault = Some(Fault::default());
        } else if meant.contains("stateful_session") {
            self.session = Some(None);
        } else if meant.contains("cors") {
            self.cors = cors::Said::Off;
        } else {
            // Filters have any names: if it is a limit, it is off.
            self.limits.insert(name.to_owned(), LocalLimit::off());
            left_out("an unknown filter that is disabled for one route only");
        }
        Ok(())
    }

    /// What limits by its name each filter has here, within wider places, the widest first.
    pub(super) fn limits_within(&self, wider: &[&Self]) -> BTreeMap<String, LocalLimit> {
        let places = wider.iter().copied().chain([self]);
        places.flat_map(|place| &place.limits).map(|(name, limit)| (name.clone(), limit.clone())).collect()
    }

    /// What a filter that asks is told by this place within others, the widest first. The narrowest says how; what the service is
    /// told besides comes from all of them.
    pub(super) fn authz_within(&self, wider: &[&Self]) -> BTreeMap<String, RouteAuthz> {
        let places: Vec<&Self> = wider.iter().copied().chain([self]).collect();
        let mut all: BTreeMap<String, RouteAuthz> = BTreeMap::new();
        for (name, said) in places.iter().flat_map(|place| &place.authz) {
            let mut said = said.clone();
            if let RouteAuthz::Asked(settings) = &mut said {
                let of_name = places.iter().filter_map(|place| place.authz.get(name));
                let told = of_name.filter_map(context).flatten();
                settings.context = told.map(|(key, value)| (key.clone(), value.clone())).collect();
            }
            all.insert(name.clone(), said);
        }
        all
    }
}

fn context(said: &RouteAuthz) -> Option<&BTreeMap<String, String>> {
    match said {
        RouteAuthz::Asked(settings) => Some(&settings.context),
        RouteAuthz::Off => None,
    }
}

/// Of what a service is told besides.
const MOST_CONTEXT: usize = 16 * 1024;

fn decode_authz(wire: &ExtAuthzPerRoute) -> Decoded<RouteAuthz> {
    let settings = match &wire.r#override {
        Some(Override::Disabled(true)) => return Ok(RouteAuthz::Off),
        Some(Override::Disabled(false)) => return Ok(RouteAuthz::Asked(CheckSettings::default())),
        Some(Override::CheckSettings(settings)) => settings,
        None => return flaw("disabled", "one of disabled and check_settings is required"),
    };
    let decoded = || {
        if settings.service_override.is_some() {
            return flaw("service_override", "another service for one route only is not supported");
        }
        let bytes: usize =
            settings.context_extensions.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MOST_CONTEXT {
            return flaw("context_extensions", format!("{bytes} bytes are more than {MOST_CONTEXT}"));
        }
        let body = match (&settings.with_request_body, settings.disable_request_body_buffering) {
            (Some(_), true) => {
                return flaw(
                    "with_request_body",
                    "must not be given together with disable_request_body_buffering",
                );
            }
            (Some(body), false) => RouteBody::Other(ext_authz::decode_body(body).under("with_request_body")?),
            (None, true) => RouteBody::Nothing,
            (None, false) => RouteBody::AsElsewhere,
        };
        let context = settings.context_extensions.iter();
        let context = context.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(RouteAuthz::Asked(CheckSettings { context, body }))
    };
    decoded().under("check_settings")
}

pub(super) fn encode_limit(limit: &LocalLimit, kind: ClientKind) -> Any {
    match limit.bucket {
        Some(_) => local_limit::encode(limit, kind),
        None => any(&FilterConfig { disabled: true, ..Default::default() }),
    }
}

pub(super) fn encode_authz(authz: &RouteAuthz) -> Any {
    let said = match authz {
        RouteAuthz::Off => Override::Disabled(true),
        RouteAuthz::Asked(settings) => Override::CheckSettings(http_authz::CheckSettings {
            context_extensions: settings.context.clone().into_iter().collect(),
            disable_request_body_buffering: settings.body == RouteBody::Nothing,
            with_request_body: match settings.body {
                RouteBody::Other(body) => Some(ext_authz::encode_body(body)),
                RouteBody::AsElsewhere | RouteBody::Nothing => None,
            },
            ..Default::default()
        }),
    };
    any(&ExtAuthzPerRoute { r#override: Some(said) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http_rbac::RbacPerRoute;

    const NAME: &str = "envoy.filters.http.ext_authz";

    fn place(name: &str, config: Any) -> Decoded<PerFilter> {
        decode(&[(name.to_owned(), config)].into(), &"here")
    }

    fn wrapped(config: Option<Any>, disabled: bool) -> Any {
        any(&FilterConfig { config, disabled, ..Default::default() })
    }

    fn asked(context: &[(&str, &str)], body: RouteBody) -> RouteAuthz {
        let context = context.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        RouteAuthz::Asked(CheckSettings { context, body })
    }

    #[test]
    fn the_narrowest_says_how_and_all_say_what_besides() {
        let of = |authz: &RouteAuthz| place(NAME, encode_authz(authz)).unwrap();
        let config = of(&asked(&[("a", "config"), ("b", "config")], RouteBody::Nothing));
        let host = of(&RouteAuthz::Off);
        let route = of(&asked(&[("b", "route")], RouteBody::AsElsewhere));
        let within = |place: &PerFilter, wider: &[&PerFilter]| place.authz_within(wider)[NAME].clone();
        let merged = asked(&[("a", "config"), ("b", "route")], RouteBody::AsElsewhere);
        assert_eq!(within(&route, &[&config, &host]), merged);
        assert_eq!(within(&PerFilter::default(), &[&config, &host]), RouteAuthz::Off);
        assert_eq!(within(&host, &[&config]), RouteAuthz::Off);
        let other = place("another", encode_authz(&RouteAuthz::Off)).unwrap();
        assert_eq!(other.authz_within(&[&config]).len(), 2, "filters of other names are others");
    }

    #[test]
    fn the_narrowest_limit_holds_and_each_place_has_a_bucket_of_its_own() {
        const LIMIT: &str = "envoy.filters.http.local_ratelimit";
        let limit = |tokens: u32| {
            any(&LocalRateLimit {
                token_bucket: Some(crate::wire::scalar::TokenBucket {
                    max_tokens: tokens,
                    fill_interval: Some(crate::wire::duration(std::time::Duration::from_secs(1))),
                    ..Default::default()
                }),
                filter_enabled: Some(crate::wire::core::RuntimeFractionalPercent {
                    default_value: Some(crate::convert::value::fraction(100.0)),
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        let at = |place_name: &str, config: Any| {
            decode(&[(LIMIT.to_owned(), config)].into(), &place_name).unwrap()
        };
        let (config, host) = (at("config", limit(1)), at("host", limit(1)));
        let names = |place: &PerFilter, wider: &[&PerFilter]| {
            place.limits_within(wider)[LIMIT].bucket.clone().map(|bucket| bucket.name)
        };
        assert_eq!(names(&host, &[&config]).as_deref(), Some("host|envoy.filters.http.local_ratelimit"));
        assert_eq!(
            names(&PerFilter::default(), &[&config]).as_deref(),
            Some("config|envoy.filters.http.local_ratelimit")
        );
        let off = at("route", wrapped(None, true));
        assert_eq!(names(&off, &[&config, &host]), None);
    }

    #[test]
    fn a_wrapper_says_what_is_in_it_and_whether_the_filter_acts() {
        let off = encode_authz(&RouteAuthz::Off);
        let authz = |config: Any| place(NAME, config).unwrap().authz.get(NAME).cloned();
        assert_eq!(authz(wrapped(Some(off.clone()), false)), Some(RouteAuthz::Off));
        assert_eq!(
            authz(wrapped(Some(encode_authz(&asked(&[], RouteBody::Nothing))), true)),
            Some(RouteAuthz::Off)
        );
        assert_eq!(authz(wrapped(None, true)), Some(RouteAuthz::Off), "the name says it");
        let fault = place("envoy.filters.http.fault", wrapped(None, true)).unwrap().fault;
        assert_eq!(fault, Some(Fault::default()), "the listener's faults do not act");
        let twice = wrapped(Some(wrapped(Some(off), true)), false);
        assert_eq!(
            place(NAME, twice).err().unwrap().field,
            format!("typed_per_filter_config[{NAME}].config")
        );
    }

    #[test]
    fn what_decides_access_and_is_not_understood_is_refused() {
        let rbac = any(&RbacPerRoute { rbac: None });
        let jwt = Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig".into(),
            value: vec![],
        };
        for config in
            [rbac.clone(), wrapped(Some(rbac.clone()), false), wrapped(Some(rbac.clone()), true), jwt.clone()]
        {
            assert!(place("x", config).is_err());
        }
        assert!(place("envoy.filters.http.rbac", wrapped(None, true)).is_err());
        let both = http_authz::CheckSettings {
            disable_request_body_buffering: true,
            with_request_body: Some(http_authz::BufferSettings {
                max_request_bytes: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let both = ExtAuthzPerRoute { r#override: Some(Override::CheckSettings(both)) };
        for config in [any(&both), any(&ExtAuthzPerRoute { r#override: None })] {
            assert!(place(NAME, config).is_err());
        }
        let shares = |name: &str, config: Any| refuse_access(&[(name.to_owned(), config)].into());
        for config in [
            rbac.clone(),
            jwt,
            encode_authz(&RouteAuthz::Off),
            wrapped(Some(rbac), false),
            wrapped(None, true),
        ] {
            assert!(shares(NAME, config).is_err());
        }
        assert!(shares("x", any(&HttpFault::default())).is_ok());
    }
}
