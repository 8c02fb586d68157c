//! Tokens of requests: `JwtAuthentication`. What is not understood of it is refused: it decides who gets in.

use std::collections::BTreeMap;

use outrigger_model::ext_authz::FRAMING;
use outrigger_model::listener::HttpFilter;
use outrigger_model::resource::Origin;
use outrigger_model::token::{
    CLOCK_SKEW, ClaimHeader, JwtAuthn, JwtProvider, Requirement, TokenHeader, TokenRule,
};

use super::extension::{JWT, is, unpack};
use super::flaw::{Decoded, Under, each, flaw};
use super::metadata::{policies_value, policy_origin};
use super::row::Row;
use super::{note, route};
use crate::kind::ClientKind;
use crate::wire::any;
use crate::wire::core::{DataSource, data_source::Specifier};
use crate::wire::http_jwt::{self as wire, jwt_provider, jwt_requirement::RequiresType, requirement_rule};
use crate::wire::protobuf::{Empty, Value};

/// Requirements inside each other.
const DEEPEST: usize = 8;

/// Under which the origins of providers ride on the chain.
const ORIGINS: &str = "jwt_origins";

pub(super) const ROW: Row = Row {
    is: is::<wire::JwtAuthentication>,
    read: |reading| {
        let wire: wire::JwtAuthentication = unpack(reading.config)?;
        let tokens = decode(&wire, reading.origins(ORIGINS), reading.index)?;
        Ok(Some(HttpFilter::Tokens(Box::new(tokens))))
    },
    reads_disabled: false,
    write: |filter, out| {
        if let HttpFilter::Tokens(tokens) = filter {
            out.push(JWT, any(&encode(tokens, out.kind)));
        }
    },
    origins: |filter| match filter {
        HttpFilter::Tokens(tokens) => Some((ORIGINS, policies_value(origins(tokens)))),
        _ => None,
    },
};

fn encode(tokens: &JwtAuthn, kind: ClientKind) -> wire::JwtAuthentication {
    wire::JwtAuthentication {
        providers: tokens.providers.iter().map(|(name, one)| (name.clone(), encode_provider(one))).collect(),
        rules: tokens.rules.iter().map(|rule| encode_rule(rule, kind)).collect(),
        bypass_cors_preflight: tokens.bypass_preflight,
        ..Default::default()
    }
}

fn encode_provider(provider: &JwtProvider) -> wire::JwtProvider {
    let keys =
        DataSource { specifier: Some(Specifier::InlineString(provider.keys.clone())), ..Default::default() };
    let header = |header: &TokenHeader| wire::JwtHeader {
        name: header.name.clone(),
        value_prefix: header.prefix.clone(),
    };
    let claim = |claim: &ClaimHeader| wire::JwtClaimToHeader {
        header_name: claim.header.clone(),
        claim_name: claim.claim.clone(),
        ..Default::default()
    };
    let spaced = jwt_provider::NormalizePayload { space_delimited_claims: provider.spaced_claims.clone() };
    wire::JwtProvider {
        issuer: provider.issuer.clone(),
        audiences: provider.audiences.clone(),
        require_expiration: provider.require_expiration,
        forward: provider.forward,
        from_headers: provider.headers.iter().map(header).collect(),
        from_params: provider.params.clone(),
        from_cookies: provider.cookies.clone(),
        forward_payload_header: provider.payload_header.clone().unwrap_or_default(),
        pad_forward_payload_header: provider.pad_payload_header,
        payload_in_metadata: provider.payload_name.clone(),
        normalize_payload_in_metadata: (!provider.spaced_claims.is_empty()).then_some(spaced),
        clock_skew_seconds: provider.clock_skew,
        claim_to_headers: provider.claim_headers.iter().map(claim).collect(),
        clear_route_cache: provider.clear_route_cache,
        jwks_source_specifier: Some(jwt_provider::JwksSourceSpecifier::LocalJwks(keys)),
        ..Default::default()
    }
}

fn encode_rule(rule: &TokenRule, kind: ClientKind) -> wire::RequirementRule {
    wire::RequirementRule {
        r#match: Some(route::encode_match(&rule.matches, kind)),
        requirement_type: match &rule.requires {
            Requirement::Nothing => None,
            requires => Some(requirement_rule::RequirementType::Requires(encode_requirement(requires))),
        },
    }
}

fn encode_requirement(requires: &Requirement) -> wire::JwtRequirement {
    let all = |all: &[Requirement]| all.iter().map(encode_requirement).collect();
    let requires_type = match requires {
        Requirement::Nothing => None,
        Requirement::Provider { name, audiences } if audiences.is_empty() => {
            Some(RequiresType::ProviderName(name.clone()))
        }
        Requirement::Provider { name, audiences } => {
            Some(RequiresType::ProviderAndAudiences(wire::ProviderWithAudiences {
                provider_name: name.clone(),
                audiences: audiences.clone(),
            }))
        }
        Requirement::Any(list) => {
            Some(RequiresType::RequiresAny(wire::JwtRequirementOrList { requirements: all(list) }))
        }
        Requirement::All(list) => {
            Some(RequiresType::RequiresAll(wire::JwtRequirementAndList { requirements: all(list) }))
        }
        Requirement::AllowMissing => Some(RequiresType::AllowMissing(Empty {})),
        Requirement::AllowMissingOrFailed => Some(RequiresType::AllowMissingOrFailed(Empty {})),
    };
    wire::JwtRequirement { requires_type }
}

/// The user objects of the providers, which ride on the chain as those of policies do.
fn origins(tokens: &JwtAuthn) -> BTreeMap<&String, &Origin> {
    tokens.providers.iter().filter_map(|(name, provider)| Some((name, provider.origin.as_ref()?))).collect()
}

/// `origins` are those of the filter chain, `index` is the filter's position among those of its kind.
pub(super) fn decode(
    wire: &wire::JwtAuthentication,
    origins: Option<&Value>,
    index: usize,
) -> Decoded<JwtAuthn> {
    note!(wire, strip_failure_response, stat_prefix);
    if wire.filter_state_rules.is_some() {
        return flaw("filter_state_rules", "is not supported; use rules");
    }
    let mut providers = BTreeMap::new();
    for (name, provider) in &wire.providers {
        let mut provider = decode_provider(provider).under(format_args!("providers[{name}]"))?;
        provider.origin = policy_origin(origins, index, name);
        providers.insert(name.clone(), provider);
    }
    let rule = |rule: &wire::RequirementRule| decode_rule(rule, wire);
    Ok(JwtAuthn {
        rules: each(&wire.rules, "rules", rule)?,
        bypass_preflight: wire.bypass_cors_preflight,
        providers,
    })
}

fn decode_provider(wire: &wire::JwtProvider) -> Decoded<JwtProvider> {
    note!(wire, header_in_metadata, failed_status_in_metadata, jwt_cache_config);
    if wire.subjects.is_some() {
        return flaw("subjects", "is not supported; compare the claim sub in a policy");
    }
    if wire.max_lifetime.is_some() {
        return flaw("max_lifetime", "is not supported");
    }
    let keys = match &wire.jwks_source_specifier {
        Some(jwt_provider::JwksSourceSpecifier::LocalJwks(source)) => match &source.specifier {
            Some(Specifier::InlineString(text)) => text.clone(),
            Some(Specifier::InlineBytes(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => text.to_owned(),
                Err(_) => return flaw("local_jwks.inline_bytes", "is no text"),
            },
            _ => return flaw("local_jwks", "only inline_string and inline_bytes are supported"),
        },
        Some(jwt_provider::JwksSourceSpecifier::RemoteJwks(_)) => {
            return flaw(
                "remote_jwks",
                "is not supported: the control plane must send keys in place, local_jwks",
            );
        }
        None => return flaw("local_jwks", "is required"),
    };
    let claim = |claim: &wire::JwtClaimToHeader| {
        if !claim.claim_path.is_empty() {
            return flaw("claim_path", "is not supported; use claim_name");
        }
        let header = told(&claim.header_name).under("header_name")?;
        Ok(ClaimHeader { header, claim: claim.claim_name.clone() })
    };
    let header = |header: &wire::JwtHeader| {
        let name = header_name(&header.name).under("name")?;
        Ok(TokenHeader { name, prefix: header.value_prefix.clone() })
    };
    let payload_header = match wire.forward_payload_header.as_str() {
        "" => None,
        name => Some(told(name).under("forward_payload_header")?),
    };
    let spaced = wire.normalize_payload_in_metadata.as_ref();
    Ok(JwtProvider {
        audiences: wire.audiences.clone(),
        clock_skew: if wire.clock_skew_seconds == 0 { CLOCK_SKEW } else { wire.clock_skew_seconds },
        require_expiration: wire.require_expiration,
        forward: wire.forward,
        headers: each(&wire.from_headers, "from_headers", header)?,
        params: wire.from_params.clone(),
        cookies: wire.from_cookies.clone(),
        payload_header,
        pad_payload_header: wire.pad_forward_payload_header,
        claim_headers: each(&wire.claim_to_headers, "claim_to_headers", claim)?,
        payload_name: wire.payload_in_metadata.clone(),
        spaced_claims: spaced.map(|spaced| spaced.space_delimited_claims.clone()).unwrap_or_default(),
        clear_route_cache: wire.clear_route_cache,
        ..JwtProvider::new(wire.issuer.as_str(), keys)
    })
}

/// One that tells the application something.
fn told(name: &str) -> Decoded<String> {
    let name = header_name(name)?;
    match FRAMING.contains(&name.as_str()) {
        true => flaw("", format!("\"{name}\" says how a request is sent")),
        false => Ok(name),
    }
}

/// In lower case.
fn header_name(name: &str) -> Decoded<String> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    match !name.is_empty() && name.bytes().all(is_token) {
        true => Ok(name.to_ascii_lowercase()),
        false => flaw("", format!("\"{}\" is no name of a header", name.escape_debug())),
    }
}

fn decode_rule(wire: &wire::RequirementRule, whole: &wire::JwtAuthentication) -> Decoded<TokenRule> {
    let Some(matches) = &wire.r#match else { return flaw("match", "is required") };
    let requires = match &wire.requirement_type {
        None => Requirement::Nothing,
        Some(requirement_rule::RequirementType::Requires(one)) => {
            decode_requirement(one, 0).under("requires")?
        }
        Some(requirement_rule::RequirementType::RequirementName(name)) => {
            match whole.requirement_map.get(name) {
                Some(one) => decode_requirement(one, 0).under(format_args!("requirement_map[{name}]"))?,
                None => return flaw("requirement_name", format!("there is no requirement {name}")),
            }
        }
    };
    Ok(TokenRule { matches: route::decode_match(matches).under("match")?, requires })
}

fn decode_requirement(wire: &wire::JwtRequirement, depth: usize) -> Decoded<Requirement> {
    if depth == DEEPEST {
        return flaw("", format!("is more than {DEEPEST} deep"));
    }
    let list = |all: &[wire::JwtRequirement]| match all.len() {
        0 | 1 => flaw("requirements", "needs two or more"),
        _ => each(all, "requirements", |one| decode_requirement(one, depth + 1)),
    };
    Ok(match &wire.requires_type {
        None => Requirement::Nothing,
        Some(RequiresType::ProviderName(name)) => {
            Requirement::Provider { name: name.clone(), audiences: Vec::new() }
        }
        Some(RequiresType::ProviderAndAudiences(one)) => {
            Requirement::Provider { name: one.provider_name.clone(), audiences: one.audiences.clone() }
        }
        Some(RequiresType::RequiresAny(any)) => {
            Requirement::Any(list(&any.requirements).under("requires_any")?)
        }
        Some(RequiresType::RequiresAll(all)) => {
            Requirement::All(list(&all.requirements).under("requires_all")?)
        }
        Some(RequiresType::AllowMissing(_)) => Requirement::AllowMissing,
        Some(RequiresType::AllowMissingOrFailed(_)) => Requirement::AllowMissingOrFailed,
        Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
            return flaw(
                "extract_only_without_validation",
                "is not supported: nobody has proved such claims",
            );
        }
    })
}
