//! The action of a route that forwards: clusters by weight, rewrites, hashing.

use std::time::Duration;

use outrigger_model::route::{
    AuthorityOf, Forward, GrpcTimeout, HashOn, HeaderEdits, NoCluster, Rewrite, StreamLimits, WeightedCluster,
};

use super::flaw::{Decoded, Flaw, Under, each, flaw};
use super::value::{duration_at, duration_or, uint_or};
use super::{headers, hedge, left_out, matcher, mirror, note, per_filter, retry, subsets, upgrade};
use crate::kind::ClientKind;
use crate::wire::core::Metadata;
use crate::wire::matcher::RegexMatchAndSubstitute;
use crate::wire::route::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HashPolicy, HostRewriteSpecifier, MaxStreamDuration,
    hash_policy::{self, PolicySpecifier},
};
use crate::wire::route::weighted_cluster::cluster_weight::HostRewriteSpecifier as Specifier;
use crate::wire::route::{self, weighted_cluster::ClusterWeight};
use crate::wire::{self, uint};

/// `connect`: the route takes CONNECT, which Envoy wants to be told here.
#[allow(deprecated)] // what other control planes say of gRPC's own timeouts
pub(super) fn encode(forward: &Forward, connect: bool, kind: ClientKind) -> route::RouteAction {
    let timeout = wire::duration(forward.timeout.unwrap_or_default());
    let grpc_timeout = forward.limits.as_deref().and_then(|limits| limits.grpc_timeout);
    let grpc_timeout = grpc_timeout.filter(|_| kind != ClientKind::Grpc);
    route::RouteAction {
        cluster_specifier: Some(encode_clusters(&forward.clusters, kind)),
        max_stream_duration: match kind {
            // gRPC reads only this one (gRFC A31).
            ClientKind::Grpc => forward
                .timeout
                .map(|_| MaxStreamDuration { max_stream_duration: Some(timeout), ..Default::default() }),
            _ => forward.limits.as_deref().and_then(encode_duration),
        },
        idle_timeout: forward.limits.as_deref().and_then(|limits| limits.idle_timeout).map(wire::duration),
        max_grpc_timeout: grpc_timeout.map(|grpc| wire::duration(grpc.max)),
        grpc_timeout_offset: grpc_timeout.and_then(|grpc| offset(grpc.offset)),
        // Absent would be Envoy's 15 s.
        timeout: Some(timeout),
        retry_policy: forward.retry.as_ref().and_then(|r| retry::encode(r, kind)),
        hedge_policy: match kind {
            ClientKind::Envoy => forward.hedge.as_ref().and_then(|h| hedge::encode(h)),
            // Ours are told in the route's metadata.
            ClientKind::Outrigger | ClientKind::Grpc => None,
        },
        prefix_rewrite: forward.rewrite.prefix.clone().unwrap_or_default(),
        regex_rewrite: forward.rewrite.regex.as_ref().map(encode_substitution),
        host_rewrite_specifier: encode_authority(&forward.rewrite),
        append_x_forwarded_host: forward.rewrite.forwarded_host,
        hash_policy: forward.hash.iter().map(encode_hash).collect(),
        request_mirror_policies: match kind {
            ClientKind::Grpc => Vec::new(),
            _ => mirror::encode(&forward.mirrors),
        },
        upgrade_configs: match kind {
            ClientKind::Grpc => Vec::new(),
            _ => upgrade::encode_route(&forward.upgrades, connect),
        },
        cluster_not_found_response_code: match forward.no_cluster {
            NoCluster::Unavailable => ClusterNotFoundResponseCode::ServiceUnavailable,
            NoCluster::NotFound => ClusterNotFoundResponseCode::NotFound,
            NoCluster::InternalError => ClusterNotFoundResponseCode::InternalServerError,
        } as i32,
        ..Default::default()
    }
}

/// Zero is what an absent one means.
fn offset(offset: Duration) -> Option<wire::protobuf::Duration> {
    (!offset.is_zero()).then(|| wire::duration(offset))
}

fn encode_duration(limits: &StreamLimits) -> Option<MaxStreamDuration> {
    let grpc = limits.grpc_duration;
    (limits.max_duration.is_some() || grpc.is_some()).then(|| MaxStreamDuration {
        max_stream_duration: limits.max_duration.map(wire::duration),
        grpc_timeout_header_max: grpc.map(|grpc| wire::duration(grpc.max)),
        grpc_timeout_header_offset: grpc.and_then(|grpc| offset(grpc.offset)),
    })
}

fn encode_clusters(clusters: &[WeightedCluster], kind: ClientKind) -> ClusterSpecifier {
    match clusters {
        [one] if *one == WeightedCluster::only(one.cluster.as_str()) => {
            ClusterSpecifier::Cluster(one.cluster.clone())
        }
        many => ClusterSpecifier::WeightedClusters(route::WeightedCluster {
            clusters: many.iter().map(|c| encode_share(c, kind)).collect(),
            ..Default::default()
        }),
    }
}

fn encode_share(share: &WeightedCluster, kind: ClientKind) -> ClusterWeight {
    let (request_headers_to_add, request_headers_to_remove) = headers::encode(&share.request_headers, kind);
    let (response_headers_to_add, response_headers_to_remove) =
        headers::encode(&share.response_headers, kind);
    ClusterWeight {
        name: share.cluster.clone(),
        weight: uint(share.weight),
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        host_rewrite_specifier: share.authority.clone().map(Specifier::HostRewriteLiteral),
        metadata_match: share.part.as_ref().and_then(|part| subsets::encode_labels(&part.labels, None)),
        ..Default::default()
    }
}

fn encode_hash(on: &HashOn) -> HashPolicy {
    let specifier = match on {
        HashOn::Header(name) => {
            PolicySpecifier::Header(hash_policy::Header { header_name: name.clone(), ..Default::default() })
        }
        HashOn::Cookie { name, path, ttl } => PolicySpecifier::Cookie(hash_policy::Cookie {
            name: name.clone(),
            ttl: ttl.map(wire::duration),
            path: path.clone().unwrap_or_default(),
            ..Default::default()
        }),
        HashOn::Query(name) => {
            PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name: name.clone() })
        }
        HashOn::SourceAddress => {
            PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties { source_ip: true })
        }
    };
    HashPolicy { terminal: false, policy_specifier: Some(specifier) }
}

pub(super) fn decode(wire: &route::RouteAction) -> Decoded<Forward> {
    note!(
        wire,
        flush_timeout,
        retry_policy_typed_config,
        rate_limits,
        internal_redirect_policy,
        internal_redirect_action,
        early_data_policy,
        include_vh_rate_limits,
    );
    let timeout = duration_or(wire.timeout.as_ref(), Duration::from_secs(15), "timeout")?;
    let retry = wire.retry_policy.as_ref().map(retry::decode).transpose().under("retry_policy")?;
    Ok(Forward {
        clusters: decode_clusters(wire.cluster_specifier.as_ref(), wire.metadata_match.as_ref())?,
        timeout: (!timeout.is_zero()).then_some(timeout),
        limits: decode_limits(wire)?.if_any(),
        hedge: hedge::decode(wire.hedge_policy.as_ref(), retry.as_ref()).map(Box::new),
        retry,
        rewrite: decode_rewrite(wire)?,
        hash: each(&wire.hash_policy, "hash_policy", decode_hash)?,
        upgrades: upgrade::decode_route(&wire.upgrade_configs)?,
        mirrors: mirror::decode(&wire.request_mirror_policies)?,
        no_cluster: match ClusterNotFoundResponseCode::try_from(wire.cluster_not_found_response_code) {
            Ok(ClusterNotFoundResponseCode::ServiceUnavailable) => NoCluster::Unavailable,
            Ok(ClusterNotFoundResponseCode::NotFound) => NoCluster::NotFound,
            Ok(ClusterNotFoundResponseCode::InternalServerError) => NoCluster::InternalError,
            Err(_) => {
                let code = wire.cluster_not_found_response_code;
                return flaw("cluster_not_found_response_code", format!("{code} is unknown"));
            }
        },
    })
}

#[allow(deprecated)] // what other control planes say of gRPC's own timeouts
fn decode_limits(wire: &route::RouteAction) -> Decoded<StreamLimits> {
    let grpc = |max: Option<Duration>, offset: Option<Duration>| {
        max.map(|max| GrpcTimeout { max, offset: offset.unwrap_or_default() })
    };
    let (mut max_duration, mut grpc_duration) = (None, None);
    if let Some(stream) = &wire.max_stream_duration {
        let at = |wire: &Option<wire::protobuf::Duration>, field| duration_at(wire.as_ref(), field);
        let decoded = || -> Decoded<_> {
            let max = at(&stream.grpc_timeout_header_max, "grpc_timeout_header_max")?;
            let offset = at(&stream.grpc_timeout_header_offset, "grpc_timeout_header_offset")?;
            Ok((at(&stream.max_stream_duration, "max_stream_duration")?, grpc(max, offset)))
        };
        (max_duration, grpc_duration) = decoded().under("max_stream_duration")?;
    }
    Ok(StreamLimits {
        max_duration,
        grpc_duration,
        grpc_timeout: grpc(
            duration_at(wire.max_grpc_timeout.as_ref(), "max_grpc_timeout")?,
            duration_at(wire.grpc_timeout_offset.as_ref(), "grpc_timeout_offset")?,
        ),
        idle_timeout: duration_at(wire.idle_timeout.as_ref(), "idle_timeout")?,
    })
}

fn decode_rewrite(wire: &route::RouteAction) -> Decoded<Rewrite> {
    if wire.path_rewrite_policy.is_some() {
        return flaw("path_rewrite_policy", "is not supported");
    }
    if !wire.path_rewrite.is_empty() {
        return flaw("path_rewrite", "is not supported; use regex_rewrite");
    }
    let prefix = (!wire.prefix_rewrite.is_empty()).then(|| wire.prefix_rewrite.clone());
    let regex = wire.regex_rewrite.as_ref().map(decode_substitution).transpose().under("regex_rewrite")?;
    if prefix.is_some() && regex.is_some() {
        return flaw("prefix_rewrite", "must not be given together with regex_rewrite");
    }
    let (authority, authority_of) = decode_authority(wire.host_rewrite_specifier.as_ref())?;
    Ok(Rewrite { prefix, regex, authority, authority_of, forwarded_host: wire.append_x_forwarded_host })
}

fn decode_authority(wire: Option<&HostRewriteSpecifier>) -> Decoded<(Option<String>, Option<AuthorityOf>)> {
    let of_request = match wire {
        None => return Ok((None, None)),
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if host.is_empty() => {
            return flaw("host_rewrite_literal", "must not be empty");
        }
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => return Ok((Some(host.clone()), None)),
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return flaw("host_rewrite_header", "must be the name of a header");
            }
            AuthorityOf::Header(name.to_ascii_lowercase())
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
            let (pattern, substitution) = decode_substitution(regex).under("host_rewrite_path_regex")?;
            AuthorityOf::Path(pattern, substitution)
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(on)) if !on.value => return Ok((None, None)),
        Some(HostRewriteSpecifier::AutoHostRewrite(_)) => AuthorityOf::Endpoint,
        Some(HostRewriteSpecifier::HostRewrite(_)) => {
            left_out("host_rewrite");
            return Ok((None, None));
        }
    };
    Ok((None, Some(of_request)))
}

fn encode_authority(rewrite: &Rewrite) -> Option<HostRewriteSpecifier> {
    if let Some(authority) = &rewrite.authority {
        return Some(HostRewriteSpecifier::HostRewriteLiteral(authority.clone()));
    }
    Some(match rewrite.authority_of.clone()? {
        AuthorityOf::Header(name) => HostRewriteSpecifier::HostRewriteHeader(name),
        AuthorityOf::Path(pattern, substitution) => {
            HostRewriteSpecifier::HostRewritePathRegex(encode_substitution(&(pattern, substitution)))
        }
        AuthorityOf::Endpoint => {
            HostRewriteSpecifier::AutoHostRewrite(wire::protobuf::BoolValue { value: true })
        }
    })
}

pub(super) fn encode_substitution((pattern, substitution): &(String, String)) -> RegexMatchAndSubstitute {
    let pattern = Some(matcher::encode_regex(pattern));
    RegexMatchAndSubstitute { pattern, substitution: substitution.clone() }
}

pub(super) fn decode_substitution(wire: &RegexMatchAndSubstitute) -> Decoded<(String, String)> {
    let Some(pattern) = &wire.pattern else { return flaw("pattern", "is required") };
    Ok((matcher::decode_regex(pattern).under("pattern")?, wire.substitution.clone()))
}

fn decode_clusters(
    wire: Option<&ClusterSpecifier>,
    around: Option<&Metadata>,
) -> Decoded<Vec<WeightedCluster>> {
    match wire {
        Some(ClusterSpecifier::Cluster(name)) if name.is_empty() => flaw("cluster", "must not be empty"),
        Some(ClusterSpecifier::Cluster(name)) => {
            let part = subsets::part(name, around, None);
            Ok(vec![WeightedCluster { part, ..WeightedCluster::only(name.as_str()) }])
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            decode_weighted(weighted, around).under("weighted_clusters")
        }
        Some(ClusterSpecifier::ClusterHeader(_)) => flaw("cluster_header", "is not supported"),
        Some(_) => flaw("cluster_specifier_plugin", "is not supported"),
        None => flaw("cluster", "one of cluster and weighted_clusters is required"),
    }
}

fn decode_weighted(
    wire: &route::WeightedCluster,
    around: Option<&Metadata>,
) -> Decoded<Vec<WeightedCluster>> {
    let clusters = each(&wire.clusters, "clusters", |share| decode_share(share, around))?;
    check_weights(clusters.iter().map(|c| c.weight)).map_err(|flaw| flaw.under("clusters"))?;
    Ok(clusters)
}

/// Weights must have a sum from 1 to `u32::MAX`.
pub(super) fn check_weights(weights: impl Iterator<Item = u32>) -> Decoded<()> {
    match weights.map(u64::from).sum::<u64>() {
        0 => Err(Flaw::new("the sum of the weights is 0; at least one must be greater")),
        sum if sum > u64::from(u32::MAX) => {
            Err(Flaw::new(format!("the sum of the weights is {sum}; at most {} is allowed", u32::MAX)))
        }
        _ => Ok(()),
    }
}

fn decode_share(wire: &ClusterWeight, around: Option<&Metadata>) -> Decoded<WeightedCluster> {
    if !wire.cluster_header.is_empty() {
        return flaw("cluster_header", "is not supported");
    }
    if wire.name.is_empty() {
        return flaw("name", "must not be empty");
    }
    let authority = match &wire.host_rewrite_specifier {
        // Envoy takes an empty one for none.
        Some(Specifier::HostRewriteLiteral(host)) if !host.is_empty() => Some(host.clone()),
        _ => None,
    };
    per_filter::refuse_access(&wire.typed_per_filter_config)?;
    Ok(WeightedCluster {
        cluster: wire.name.clone(),
        weight: uint_or(wire.weight.as_ref(), 0),
        request_headers: request_edits(&wire.request_headers_to_add, &wire.request_headers_to_remove)?,
        response_headers: response_edits(&wire.response_headers_to_add, &wire.response_headers_to_remove)?,
        authority,
        part: subsets::part(&wire.name, around, wire.metadata_match.as_ref()),
    })
}

pub(super) fn request_edits(
    add: &[wire::core::HeaderValueOption],
    remove: &[String],
) -> Decoded<HeaderEdits> {
    headers::decode(add, remove, headers::REQUEST, "request_headers_to_remove")
}

pub(super) fn response_edits(
    add: &[wire::core::HeaderValueOption],
    remove: &[String],
) -> Decoded<HeaderEdits> {
    headers::decode(add, remove, headers::RESPONSE, "response_headers_to_remove")
}

fn decode_hash(wire: &HashPolicy) -> Decoded<HashOn> {
    if wire.terminal {
        left_out("hash_policy.terminal");
    }
    let named = |name: &str, field: &str| {
        if name.is_empty() { flaw(field, "must not be empty") } else { Ok(name.to_owned()) }
    };
    Ok(match &wire.policy_specifier {
        Some(PolicySpecifier::Header(h)) => {
            note!(h, regex_rewrite);
            HashOn::Header(named(&h.header_name, "header.header_name")?.to_ascii_lowercase())
        }
        Some(PolicySpecifier::Cookie(c)) => {
            note!(c, attributes);
            HashOn::Cookie {
                name: named(&c.name, "cookie.name")?,
                path: (!c.path.is_empty()).then(|| c.path.clone()),
                ttl: duration_at(c.ttl.as_ref(), "cookie.ttl")?,
            }
        }
        Some(PolicySpecifier::QueryParameter(q)) => HashOn::Query(named(&q.name, "query_parameter.name")?),
        Some(PolicySpecifier::ConnectionProperties(p)) if p.source_ip => HashOn::SourceAddress,
        Some(PolicySpecifier::ConnectionProperties(_)) => {
            return flaw("connection_properties.source_ip", "must be true");
        }
        Some(PolicySpecifier::FilterState(_)) => return flaw("filter_state", "is not supported"),
        None => {
            return Err(Flaw::new(
                "one of header, cookie, query_parameter and connection_properties is required",
            ));
        }
    })
}
