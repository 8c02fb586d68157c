//! The mesh's mTLS on both sides of a connection, as TLS contexts whose secrets are fetched by Istio's names.
//!
//! Towards servers outside the mesh: TLS with roots and certificates from files of the client's. Nothing else is taken:
//! guessing at it could send plain text or trust anybody.

use outrigger_model::cluster::{ClientTls, Cluster, OutsideTls, UpstreamProtocol};
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::ServerTls;

mod outside;

use super::endpoint::{ISTIO, TLS_MODE};
use super::extension::{self, RAW_SOCKET, TLS_SOCKET, is, unpack};
use super::flaw::{Decoded, Flaw, Under, each, flaw};
use super::metadata::{as_text, structure, text};
use crate::kind::ClientKind;
use crate::wire::cluster::cluster::TransportSocketMatch;
use crate::wire::core::{TransportSocket, transport_socket::ConfigType};
use crate::wire::matcher::{StringMatcher, string_matcher::MatchPattern};
use crate::wire::protobuf::Any;
use crate::wire::raw_buffer::RawBuffer;
use crate::wire::tls::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
    SdsSecretConfig, SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use crate::wire::{ads, any, boolean};

/// Istio's name of the workload's own certificate: a static secret in a foreign Envoy's bootstrap.
const OWN_CERTIFICATE: &str = "default";
/// Istio's name of the trust bundle.
const ROOTS: &str = "ROOTCA";
/// The certificate-provider instance of a gRPC client's bootstrap.
const GRPC_INSTANCE: &str = "default";

fn socket(name: &str, config: Any) -> TransportSocket {
    TransportSocket { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(config)) }
}

fn exact(identity: &SpiffeId) -> StringMatcher {
    StringMatcher {
        ignore_case: false,
        match_pattern: Some(MatchPattern::Exact(identity.as_str().to_owned())),
    }
}

/// Our certificate, TLS 1.3 (Envoy's client stops at 1.2 unless told), and who may be on the other side.
fn common(alpn: Vec<String>, identities: &[SpiffeId]) -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
            name: OWN_CERTIFICATE.to_owned(),
            sds_config: None,
        }],
        alpn_protocols: alpn,
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: identities
                        .iter()
                        .map(|identity| SubjectAltNameMatcher {
                            san_type: SanType::Uri as i32,
                            matcher: Some(exact(identity)),
                            ..Default::default()
                        })
                        .collect(),
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(SdsSecretConfig {
                    name: ROOTS.to_owned(),
                    sds_config: Some(ads()),
                }),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

/// Where an endpoint has a sidecar, mTLS; elsewhere plain text.
pub(super) fn encode_matches(cluster: &Cluster) -> Vec<TransportSocketMatch> {
    let ClientTls::Mesh { server_name, identities, required: false } = &cluster.tls else {
        return Vec::new();
    };
    let context = mesh_context(cluster, server_name, identities);
    vec![
        TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(structure([(TLS_MODE.to_owned(), text(ISTIO))])),
            transport_socket: Some(socket(TLS_SOCKET, any(&context))),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(structure([])),
            transport_socket: Some(socket(RAW_SOCKET, any(&RawBuffer {}))),
        },
    ]
}

/// TLS with all endpoints, whatever they say of themselves.
pub(super) fn encode_for_all(cluster: &Cluster, kind: ClientKind) -> Option<TransportSocket> {
    let context = match &cluster.tls {
        ClientTls::Mesh { server_name, identities, required: true } => {
            mesh_context(cluster, server_name, identities)
        }
        ClientTls::Outside(tls) => outside::encode(tls, cluster.protocol, kind),
        ClientTls::Mesh { .. } | ClientTls::None => return None,
    };
    Some(socket(TLS_SOCKET, any(&context)))
}

fn mesh_context(cluster: &Cluster, server_name: &str, identities: &[SpiffeId]) -> UpstreamTlsContext {
    // `istio` alone lets the server look for itself at what is inside.
    let alpn = match cluster.protocol {
        UpstreamProtocol::Http1 => "istio-http/1.1",
        UpstreamProtocol::Http2 => "istio-h2",
        UpstreamProtocol::Follow => ISTIO,
    };
    UpstreamTlsContext {
        common_tls_context: Some(common(vec![alpn.to_owned()], identities)),
        sni: server_name.to_owned(),
        ..Default::default()
    }
}

/// For gRPC: both certificates from provider instances of its bootstrap; it knows no other way (gRFC A29).
#[allow(deprecated)] // gRPC reads only the untyped names; the typed ones it would silently not check
pub(super) fn encode_for_grpc(tls: &ClientTls) -> Option<TransportSocket> {
    let names: Vec<StringMatcher> = match tls {
        ClientTls::None => return None,
        ClientTls::Mesh { identities, .. } => identities.iter().map(exact).collect(),
        // Its bootstrap has no other roots than the mesh's: the connection fails, which is better than plain text.
        ClientTls::Outside(OutsideTls { server_name, .. }) => vec![StringMatcher {
            ignore_case: false,
            match_pattern: Some(MatchPattern::Exact(server_name.clone())),
        }],
    };
    let instance = || CertificateProviderPluginInstance {
        instance_name: GRPC_INSTANCE.to_owned(),
        certificate_name: String::new(),
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(instance()),
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    ca_certificate_provider_instance: Some(instance()),
                    match_subject_alt_names: names,
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    Some(socket(TLS_SOCKET, any(&context)))
}

pub(super) fn decode_cluster(
    matches: &[TransportSocketMatch],
    socket: Option<&TransportSocket>,
) -> Decoded<ClientTls> {
    if let Some(socket) = socket
        && let Some(context) = upstream_context(socket).under("transport_socket")?
    {
        if !matches.is_empty() {
            return flaw("transport_socket", "TLS must not be given together with transport_socket_matches");
        }
        return decode_for_all(&context).under("transport_socket.typed_config");
    }
    let mut tls = ClientTls::None;
    for (i, one) in matches.iter().enumerate() {
        decode_match(one, &mut tls).under(format_args!("transport_socket_matches[{i}]"))?;
    }
    Ok(tls)
}

fn decode_match(wire: &TransportSocketMatch, tls: &mut ClientTls) -> Decoded<()> {
    let criteria = wire.r#match.as_ref();
    let mode = criteria.and_then(|m| m.fields.get(TLS_MODE)).and_then(as_text);
    let criteria = criteria.map_or(0, |m| m.fields.len());
    let Some(socket) = &wire.transport_socket else { return flaw("transport_socket", "is required") };
    let context = upstream_context(socket).under("transport_socket")?;
    match (context, mode) {
        (None, _) if criteria == 0 => Ok(()),
        (None, Some(mode)) if mode != ISTIO && criteria == 1 => Ok(()),
        (None, _) => flaw("match", "plain text is supported only for endpoints without tlsMode istio"),
        (Some(context), Some(ISTIO)) if criteria == 1 => {
            *tls = decode_upstream(&context).under("transport_socket.typed_config")?;
            Ok(())
        }
        (Some(_), _) => flaw("match", "TLS is supported only for endpoints with tlsMode istio"),
    }
}

/// The TLS context of a transport socket; `None` for plain text.
fn upstream_context(socket: &TransportSocket) -> Decoded<Option<UpstreamTlsContext>> {
    match typed(socket) {
        Some(config) if is::<UpstreamTlsContext>(config) => unpack(config).under("typed_config").map(Some),
        Some(config) if is::<RawBuffer>(config) => Ok(None),
        None if socket.name == RAW_SOCKET => Ok(None),
        other => extension::unknown("transport socket", &socket.name, other),
    }
}

/// Whether a transport socket is another than that for plain text, also where it is one that nobody knows.
pub(super) fn is_tls(socket: &TransportSocket) -> bool {
    match typed(socket) {
        Some(config) => !is::<RawBuffer>(config),
        None => socket.name != RAW_SOCKET,
    }
}

fn typed(socket: &TransportSocket) -> Option<&Any> {
    match &socket.config_type {
        Some(ConfigType::TypedConfig(config)) => Some(config),
        None => None,
    }
}

fn decode_upstream(wire: &UpstreamTlsContext) -> Decoded<ClientTls> {
    let Some(common) = &wire.common_tls_context else { return flaw("common_tls_context", "is required") };
    let identities = peers(common).under("common_tls_context")?;
    Ok(ClientTls::Mesh { server_name: wire.sni.clone(), identities, required: false })
}

/// The mesh's, if it shows the mesh's certificate; else to a server outside.
fn decode_for_all(wire: &UpstreamTlsContext) -> Decoded<ClientTls> {
    let ours =
        wire.common_tls_context.as_ref().is_some_and(|c| !c.tls_certificate_sds_secret_configs.is_empty());
    if !ours {
        return outside::decode(wire).map(ClientTls::Outside);
    }
    match decode_upstream(wire)? {
        ClientTls::Mesh { server_name, identities, .. } => {
            Ok(ClientTls::Mesh { server_name, identities, required: true })
        }
        other => Ok(other),
    }
}

/// Requires the mesh's own certificate and roots; yields the identities that the other side may have.
#[allow(deprecated)]
fn peers(common: &CommonTlsContext) -> Decoded<Vec<SpiffeId>> {
    let own = &common.tls_certificate_sds_secret_configs;
    if !common.tls_certificates.is_empty() {
        return flaw("tls_certificates", "keys do not travel; only the secret \"default\" is supported");
    }
    if !matches!(own.as_slice(), [one] if one.name == OWN_CERTIFICATE) {
        return flaw("tls_certificate_sds_secret_configs", "must be the one secret \"default\"");
    }
    let (roots, default, field) = match &common.validation_context_type {
        Some(ValidationContextType::CombinedValidationContext(c)) => (
            c.validation_context_sds_secret_config.as_ref(),
            c.default_validation_context.as_ref(),
            "combined_validation_context",
        ),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(c)) => {
            (Some(c), None, "validation_context_sds_secret_config")
        }
        _ => return flaw("combined_validation_context", "is required: the peer must be verified"),
    };
    if roots.is_none_or(|roots| roots.name != ROOTS) {
        return flaw(field, "must name the secret \"ROOTCA\"");
    }
    let Some(default) = default else { return Ok(Vec::new()) };
    let inner = format!("{field}.default_validation_context");
    if !default.match_subject_alt_names.is_empty() {
        return flaw(inner, "match_subject_alt_names is not supported; use match_typed_subject_alt_names");
    }
    if default.trust_chain_verification != 0 || default.custom_validator_config.is_some() {
        return flaw(inner, "only the verification of the whole chain is supported");
    }
    each(&default.match_typed_subject_alt_names, "match_typed_subject_alt_names", identity).under(inner)
}

fn identity(wire: &SubjectAltNameMatcher) -> Decoded<SpiffeId> {
    match wire.matcher.as_ref().and_then(|m| m.match_pattern.as_ref()) {
        Some(MatchPattern::Exact(uri)) if wire.san_type == SanType::Uri as i32 => {
            SpiffeId::parse(uri).map_err(|error| Flaw::new(error.to_string()).under("matcher.exact"))
        }
        _ => Err(Flaw::new("only an exact URI is supported")),
    }
}

pub(super) fn encode_server(tls: &ServerTls) -> TransportSocket {
    let ServerTls::Mesh { alpn } = tls;
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(alpn.clone(), &[])),
        require_client_certificate: boolean(true),
        ..Default::default()
    };
    socket(TLS_SOCKET, any(&context))
}

pub(super) fn decode_server(socket: Option<&TransportSocket>) -> Decoded<Option<ServerTls>> {
    let Some(socket) = socket else { return Ok(None) };
    let context: DownstreamTlsContext = match typed(socket) {
        Some(config) if is::<DownstreamTlsContext>(config) => unpack(config).under("typed_config")?,
        Some(config) if is::<RawBuffer>(config) => return Ok(None),
        None if socket.name == RAW_SOCKET => return Ok(None),
        other => return extension::unknown("transport socket", &socket.name, other),
    };
    decode_downstream(&context).under("typed_config").map(Some)
}

fn decode_downstream(wire: &DownstreamTlsContext) -> Decoded<ServerTls> {
    if !wire.require_client_certificate.is_some_and(|required| required.value) {
        return flaw("require_client_certificate", "must be true; only the mesh's mTLS is supported");
    }
    let Some(common) = &wire.common_tls_context else { return flaw("common_tls_context", "is required") };
    if !peers(common).under("common_tls_context")?.is_empty() {
        return flaw(
            "common_tls_context.combined_validation_context",
            "who may connect is said by RBAC, not by names in the certificate",
        );
    }
    Ok(ServerTls::Mesh { alpn: common.alpn_protocols.clone() })
}
