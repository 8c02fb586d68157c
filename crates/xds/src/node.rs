//! Who a client says it is: `envoy.config.core.v3.Node`. A hint, never proof; identity comes from the connection.

use outrigger_model::endpoint::Locality;
use serde::{Deserialize, Serialize};

/// Metadata of a client that takes barriers within responses, and confirms both with one answer.
#[cfg(any(feature = "client", feature = "server"))]
pub(crate) const BARRIERS_WITHIN: &str = "BARRIERS_WITHIN";

/// What a client says of itself in the first request of a stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id, such as `sidecar~10.0.0.1~web-1.shop~cluster.local`.
    pub id: String,
    /// The cluster (service) that it belongs to.
    pub cluster: String,
    /// Where it runs.
    pub locality: Locality,
    /// The program, such as `outrigger` or `envoy`.
    pub user_agent: String,
    /// The version of the program; empty if it does not say.
    pub version: String,
    /// Whatever else it tells; an object or null.
    pub metadata: serde_json::Value,
}

#[cfg(feature = "client")]
mod to_wire {
    use serde_json::{Map, Value as Json};

    use super::NodeInfo;
    use crate::wire::core::{self, node::UserAgentVersionType};
    use crate::wire::protobuf::{ListValue, Struct, Value, value::Kind};

    impl NodeInfo {
        pub(crate) fn to_wire(&self) -> core::Node {
            core::Node {
                id: self.id.clone(),
                cluster: self.cluster.clone(),
                locality: Some(core::Locality {
                    region: self.locality.region.clone(),
                    zone: self.locality.zone.clone(),
                    sub_zone: self.locality.sub_zone.clone(),
                }),
                user_agent_name: self.user_agent.clone(),
                user_agent_version_type: (!self.version.is_empty())
                    .then(|| UserAgentVersionType::UserAgentVersion(self.version.clone())),
                metadata: match &self.metadata {
                    Json::Object(map) => Some(structure(map)),
                    _ => None,
                },
                ..Default::default()
            }
        }
    }

    fn structure(map: &Map<String, Json>) -> Struct {
        Struct { fields: map.iter().map(|(k, v)| (k.clone(), value(v))).collect() }
    }

    fn value(json: &Json) -> Value {
        let kind = match json {
            Json::Null => Kind::NullValue(0),
            Json::Bool(b) => Kind::BoolValue(*b),
            Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
            Json::String(s) => Kind::StringValue(s.clone()),
            Json::Array(all) => Kind::ListValue(ListValue { values: all.iter().map(value).collect() }),
            Json::Object(map) => Kind::StructValue(structure(map)),
        };
        Value { kind: Some(kind) }
    }
}

#[cfg(feature = "server")]
mod from_wire {
    use serde_json::{Number, Value as Json};

    use super::{Locality, NodeInfo};
    use crate::wire::core::{self, node::UserAgentVersionType};
    use crate::wire::protobuf::{Struct, Value, value::Kind};

    impl NodeInfo {
        pub(crate) fn from_wire(wire: &core::Node) -> Self {
            let place = wire.locality.clone().unwrap_or_default();
            let version = match &wire.user_agent_version_type {
                Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
                Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
                    .version
                    .as_ref()
                    .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
                    .unwrap_or_default(),
                None => String::new(),
            };
            Self {
                id: wire.id.clone(),
                cluster: wire.cluster.clone(),
                locality: Locality { region: place.region, zone: place.zone, sub_zone: place.sub_zone },
                user_agent: wire.user_agent_name.clone(),
                version,
                metadata: wire.metadata.as_ref().map_or(Json::Null, structure),
            }
        }
    }

    fn structure(wire: &Struct) -> Json {
        Json::Object(wire.fields.iter().map(|(k, v)| (k.clone(), value(v))).collect())
    }

    // The depth is bounded by prost's own limit on nested messages.
    fn value(wire: &Value) -> Json {
        match &wire.kind {
            None | Some(Kind::NullValue(_)) => Json::Null,
            Some(Kind::BoolValue(b)) => Json::Bool(*b),
            Some(Kind::NumberValue(n)) => number(*n),
            Some(Kind::StringValue(s)) => Json::String(s.clone()),
            Some(Kind::ListValue(all)) => Json::Array(all.values.iter().map(value).collect()),
            Some(Kind::StructValue(s)) => structure(s),
        }
    }

    /// Whole numbers stay whole: protobuf's JSON has only doubles.
    fn number(n: f64) -> Json {
        const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
        if n.fract() == 0.0 && n.abs() < EXACT {
            Json::Number((n as i64).into())
        } else {
            Number::from_f64(n).map_or(Json::Null, Json::Number)
        }
    }
}
