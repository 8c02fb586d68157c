//! TLS towards servers that are not the mesh's: roots and client certificate are files of the client's, names are DNS
//! names or URIs.

use outrigger_model::cluster::{OutsideTls, UpstreamProtocol};

use crate::convert::flaw::{Decoded, Flaw, Under, each, flaw};
use crate::convert::note;
use crate::kind::ClientKind;
use crate::wire::core::{DataSource, data_source::Specifier};
use crate::wire::matcher::{StringMatcher, string_matcher::MatchPattern};
use crate::wire::tls::{
    CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, TlsCertificate,
    UpstreamTlsContext, certificate_validation_context::SystemRootCerts,
    common_tls_context::ValidationContextType, subject_alt_name_matcher::SanType,
};

fn file(path: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::Filename(path.to_owned())), ..Default::default() }
}

fn named(name: &str) -> SubjectAltNameMatcher {
    let san_type = if name.contains("://") { SanType::Uri } else { SanType::Dns };
    SubjectAltNameMatcher {
        san_type: san_type as i32,
        matcher: Some(StringMatcher {
            ignore_case: false,
            match_pattern: Some(MatchPattern::Exact(name.to_owned())),
        }),
        ..Default::default()
    }
}

pub(super) fn encode(tls: &OutsideTls, protocol: UpstreamProtocol, kind: ClientKind) -> UpstreamTlsContext {
    let mut names: Vec<_> = tls.subject_alt_names.iter().map(|name| named(name)).collect();
    // Without a name others would take any certificate of any of the roots.
    if names.is_empty() && kind != ClientKind::Outrigger {
        names.push(named(&tls.server_name));
    }
    let certificate = tls.client_files.as_ref().map(|(chain, key)| TlsCertificate {
        certificate_chain: Some(file(chain)),
        private_key: Some(file(key)),
        ..Default::default()
    });
    let alpn = match protocol {
        _ if kind == ClientKind::Outrigger => Vec::new(),
        UpstreamProtocol::Http2 => vec!["h2".to_owned()],
        UpstreamProtocol::Http1 => vec!["http/1.1".to_owned()],
        UpstreamProtocol::Follow => Vec::new(),
    };
    let text = |pem: &String| DataSource {
        specifier: Some(Specifier::InlineString(pem.clone())),
        ..Default::default()
    };
    let roots = tls.roots_file.as_deref().map(file).or_else(|| tls.roots_pem.as_ref().map(text));
    UpstreamTlsContext {
        sni: tls.server_name.clone(),
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: certificate.into_iter().collect(),
            alpn_protocols: alpn,
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    system_root_certs: roots.is_none().then(SystemRootCerts::default),
                    trusted_ca: roots,
                    match_typed_subject_alt_names: names,
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn decode(wire: &UpstreamTlsContext) -> Decoded<OutsideTls> {
    note!(
        wire,
        allow_renegotiation,
        max_session_keys,
        auto_host_sni,
        auto_sni_san_validation,
        enforce_rsa_key_usage,
    );
    if wire.sni.is_empty() {
        return flaw("sni", "is required: it is also the name that the server must prove");
    }
    let Some(common) = &wire.common_tls_context else { return flaw("common_tls_context", "is required") };
    decode_common(common, &wire.sni).under("common_tls_context")
}

#[allow(deprecated)]
fn decode_common(common: &CommonTlsContext, sni: &str) -> Decoded<OutsideTls> {
    note!(common, tls_params, key_log);
    let Some(ValidationContextType::ValidationContext(peer)) = &common.validation_context_type else {
        return flaw("validation_context", "is required: the server must be verified");
    };
    let client_files = match common.tls_certificates.as_slice() {
        [] => None,
        [one] => Some((
            path(one.certificate_chain.as_ref()).under("tls_certificates[0].certificate_chain")?,
            path(one.private_key.as_ref()).under("tls_certificates[0].private_key")?,
        )),
        _ => return flaw("tls_certificates", "at most one is supported"),
    };
    let (roots_file, roots_pem) = match (&peer.trusted_ca, &peer.system_root_certs) {
        (Some(roots), _) => self::roots(roots).under("validation_context.trusted_ca")?,
        (None, Some(_)) => (None, None),
        (None, None) => {
            return flaw(
                "validation_context.trusted_ca",
                "is required: nobody could be verified without roots",
            );
        }
    };
    let strict = peer.trust_chain_verification == 0 && peer.custom_validator_config.is_none();
    let pinned = !peer.verify_certificate_hash.is_empty() || !peer.verify_certificate_spki.is_empty();
    let more = peer.max_verify_depth.is_some()
        || peer.only_verify_leaf_cert_crl
        || peer.require_signed_certificate_timestamp.is_some_and(|required| required.value);
    note!(peer, allow_expired_certificate);
    if !strict || pinned || more || peer.crl.is_some() || !peer.match_subject_alt_names.is_empty() {
        let reason =
            "only the verification of the whole chain and of match_typed_subject_alt_names is supported";
        return flaw("validation_context", reason);
    }
    let names = each(&peer.match_typed_subject_alt_names, "match_typed_subject_alt_names", name);
    Ok(OutsideTls {
        server_name: sni.to_owned(),
        subject_alt_names: names.under("validation_context")?,
        roots_file,
        roots_pem,
        client_files,
    })
}

/// A file, or what would be in it.
fn roots(source: &DataSource) -> Decoded<(Option<String>, Option<String>)> {
    let text = match &source.specifier {
        Some(Specifier::InlineString(text)) => text.as_str(),
        Some(Specifier::InlineBytes(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) => return Err(Flaw::new("must be PEM")),
        },
        _ => return path(Some(source)).map(|path| (Some(path), None)),
    };
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Ok((None, Some(text.to_owned())));
    }
    Err(Flaw::new("must be certificates in PEM"))
}

fn path(source: Option<&DataSource>) -> Decoded<String> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::Filename(path)) if !path.is_empty() => Ok(path.clone()),
        _ => Err(Flaw::new("only a file name is supported")),
    }
}

fn name(wire: &SubjectAltNameMatcher) -> Decoded<String> {
    let known = [SanType::Dns as i32, SanType::Uri as i32].contains(&wire.san_type);
    match wire.matcher.as_ref().and_then(|matcher| matcher.match_pattern.as_ref()) {
        Some(MatchPattern::Exact(name)) if known && !name.is_empty() => Ok(name.clone()),
        _ => Err(Flaw::new("only an exact DNS name or URI is supported")),
    }
}
