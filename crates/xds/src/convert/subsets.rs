//! `LbSubsetConfig`, and the metadata that it goes by: of endpoints, and of routes.

use outrigger_model::cluster::{Labels, Part, Selector, SubsetFallback, Subsets};

use super::flaw::{Decoded, flaw};
use super::left_out;
use super::metadata::{namespace, structure};
use crate::wire::cluster::cluster::LbSubsetConfig;
use crate::wire::cluster::cluster::lb_subset_config::{
    LbSubsetFallbackPolicy as Policy, LbSubsetSelector,
    lb_subset_selector::LbSubsetSelectorFallbackPolicy as Own,
};
use crate::wire::core::Metadata;
use crate::wire::protobuf::{Struct, Value, value::Kind};

/// Where an Envoy looks.
const BALANCER: &str = "envoy.lb";

pub(super) fn encode(subsets: &Subsets) -> LbSubsetConfig {
    let selector = |selector: &Selector| LbSubsetSelector {
        keys: selector.keys.iter().cloned().collect(),
        fallback_policy: match selector.fallback {
            None => Own::NotDefined,
            Some(SubsetFallback::None) => Own::NoFallback,
            Some(SubsetFallback::Any) => Own::AnyEndpoint,
            Some(SubsetFallback::Default) => Own::DefaultSubset,
        } as i32,
        ..Default::default()
    };
    LbSubsetConfig {
        fallback_policy: match subsets.fallback {
            SubsetFallback::None => Policy::NoFallback,
            SubsetFallback::Any => Policy::AnyEndpoint,
            SubsetFallback::Default => Policy::DefaultSubset,
        } as i32,
        default_subset: (!subsets.default.is_empty()).then(|| pack(&subsets.default)),
        subset_selectors: subsets.selectors.iter().map(selector).collect(),
        ..Default::default()
    }
}

pub(super) fn decode(wire: &LbSubsetConfig) -> Decoded<Subsets> {
    for (name, set) in [
        ("lb_subset_config.locality_weight_aware", wire.locality_weight_aware),
        ("lb_subset_config.scale_locality_weight", wire.scale_locality_weight),
        ("lb_subset_config.panic_mode_any", wire.panic_mode_any),
        ("lb_subset_config.list_as_any", wire.list_as_any),
        ("lb_subset_config.metadata_fallback_policy", wire.metadata_fallback_policy != 0),
    ] {
        if set {
            left_out(name);
        }
    }
    let mut selectors = Vec::new();
    for (i, selector) in wire.subset_selectors.iter().enumerate() {
        if selector.keys.is_empty() {
            return flaw(format_args!("subset_selectors[{i}].keys"), "must not be empty");
        }
        if selector.single_host_per_subset {
            left_out("lb_subset_config.subset_selectors.single_host_per_subset");
        }
        let fallback = match Own::try_from(selector.fallback_policy) {
            Ok(Own::NotDefined) => None,
            Ok(Own::NoFallback) => Some(SubsetFallback::None),
            Ok(Own::AnyEndpoint) => Some(SubsetFallback::Any),
            Ok(Own::DefaultSubset) => Some(SubsetFallback::Default),
            Ok(Own::KeysSubset) => {
                return flaw(
                    format_args!("subset_selectors[{i}].fallback_policy"),
                    "KEYS_SUBSET is not supported",
                );
            }
            Err(_) => return flaw(format_args!("subset_selectors[{i}].fallback_policy"), "is unknown"),
        };
        selectors.push(Selector { keys: selector.keys.iter().cloned().collect(), fallback });
    }
    let fallback = match Policy::try_from(wire.fallback_policy) {
        Ok(Policy::NoFallback) => SubsetFallback::None,
        Ok(Policy::AnyEndpoint) => SubsetFallback::Any,
        Ok(Policy::DefaultSubset) => SubsetFallback::Default,
        Err(_) => return flaw("fallback_policy", "is unknown"),
    };
    let default = wire.default_subset.as_ref().map(|fields| unpack(fields.fields.iter())).unwrap_or_default();
    Ok(Subsets { selectors, fallback, default })
}

/// What balancers go by, of metadata.
pub(super) fn labels(metadata: Option<&Metadata>) -> Labels {
    namespace(metadata, BALANCER).map(|fields| unpack(fields.iter())).unwrap_or_default()
}

/// As metadata.
pub(super) fn encode_labels(labels: &Labels, base: Option<Metadata>) -> Option<Metadata> {
    super::metadata::with(BALANCER, pack(labels), base)
}

/// The part that a route wants: its own words go before those around it.
pub(super) fn part(cluster: &str, around: Option<&Metadata>, own: Option<&Metadata>) -> Option<Box<Part>> {
    let mut all = labels(around);
    all.extend(labels(own));
    (!all.is_empty()).then(|| Box::new(Part::new(cluster, all)))
}

fn unpack<'w>(fields: impl Iterator<Item = (&'w String, &'w Value)>) -> Labels {
    fields.map(|(key, value)| (key.clone(), json(value).to_string())).collect()
}

fn pack(labels: &Labels) -> Struct {
    let value = |text: &String| {
        serde_json::from_str(text).map_or_else(|_| super::metadata::text(text), |value| wire(&value))
    };
    structure(labels.iter().map(|(key, text)| (key.clone(), value(text))))
}

fn json(value: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(value)) => (*value).into(),
        Some(Kind::StringValue(value)) => value.as_str().into(),
        Some(Kind::ListValue(list)) => Json::Array(list.values.iter().map(json).collect()),
        Some(Kind::StructValue(fields)) => {
            let mut entries: Vec<_> = fields.fields.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            Json::Object(entries.into_iter().map(|(key, value)| (key.clone(), json(value))).collect())
        }
    }
}

fn wire(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Array(values) => {
            Kind::ListValue(crate::wire::protobuf::ListValue { values: values.iter().map(wire).collect() })
        }
        Json::Object(fields) => {
            Kind::StructValue(structure(fields.iter().map(|(key, value)| (key.clone(), wire(value)))))
        }
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::endpoint::LbEndpoint;

    fn with(fields: &[(&str, Value)]) -> Metadata {
        let fields = structure(fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        super::super::metadata::with(BALANCER, fields, None).unwrap()
    }

    #[test]
    fn subsets_and_their_metadata_come_back_as_they_went() {
        let selector = |keys: &[&str], fallback| Selector {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            fallback,
        };
        let subsets = Subsets {
            selectors: vec![
                selector(&["stage"], None),
                selector(&["stage", "version"], Some(SubsetFallback::Any)),
                selector(&["x"], Some(SubsetFallback::None)),
                selector(&["y"], Some(SubsetFallback::Default)),
            ],
            fallback: SubsetFallback::Default,
            default: [("stage".to_owned(), "\"prod\"".to_owned()), ("n".to_owned(), "1.0".to_owned())].into(),
        };
        assert_eq!(decode(&encode(&subsets)).unwrap(), subsets);
        let metadata = encode_labels(&subsets.default, None);
        assert_eq!(labels(metadata.as_ref()), subsets.default);
        let endpoint = LbEndpoint { metadata, ..Default::default() };
        assert_eq!(labels(endpoint.metadata.as_ref())["n"], "1.0");
    }

    #[test]
    fn a_share_of_a_route_goes_before_the_route() {
        let text = super::super::metadata::text;
        let around = with(&[("stage", text("prod")), ("version", text("1"))]);
        let own = with(&[("version", text("2"))]);
        let part = part("c", Some(&around), Some(&own)).unwrap();
        assert_eq!(part.labels["stage"], "\"prod\"");
        assert_eq!(part.labels["version"], "\"2\"");
        assert_eq!(super::part("c", None, None), None);
        assert!(
            decode(&LbSubsetConfig { subset_selectors: vec![Default::default()], ..Default::default() })
                .is_err()
        );
    }
}
