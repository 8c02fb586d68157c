//! Trust bundles. Keys never travel.

use outrigger_model::resource::TrustBundleSecret;
use prost::Message;

use super::flaw::{Decoded, flaw};
use crate::kind::ClientKind;
use crate::wire::core::{DataSource, TypedExtensionConfig, data_source::Specifier};
use crate::wire::tls::{CertificateValidationContext, Secret, secret::Type};
use crate::wire::{own, protobuf};

const REVOKED: &str = "outrigger.revoked";
const REVOKED_URL: &str = "type.googleapis.com/outrigger.v1.Revoked";

/// Who is revoked goes to sidecars of ours alone: others refuse a validator that they do not know.
pub(super) fn encode(secret: &TrustBundleSecret, kind: ClientKind) -> Secret {
    let told = kind == ClientKind::Outrigger && !secret.revoked.is_empty();
    let revoked = told.then(|| TypedExtensionConfig {
        name: REVOKED.to_owned(),
        typed_config: Some(protobuf::Any {
            type_url: REVOKED_URL.to_owned(),
            value: own::Revoked { entries: secret.revoked.clone() }.encode_to_vec(),
        }),
    });
    Secret {
        name: secret.name.clone(),
        r#type: Some(Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier: Some(Specifier::InlineString(secret.roots_pem.clone())),
                ..Default::default()
            }),
            custom_validator_config: revoked,
            ..Default::default()
        })),
    }
}

pub(super) fn decode(wire: &Secret) -> Decoded<TrustBundleSecret> {
    if wire.name.is_empty() {
        return flaw("name", "must not be empty");
    }
    let context = match &wire.r#type {
        Some(Type::ValidationContext(context)) => context,
        Some(Type::TlsCertificate(_)) => {
            return flaw("tls_certificate", "keys do not travel; only a validation_context is taken");
        }
        _ => return flaw("validation_context", "is required"),
    };
    let field = "validation_context.trusted_ca";
    let pem = match context.trusted_ca.as_ref().and_then(|ca| ca.specifier.as_ref()) {
        Some(Specifier::InlineString(text)) => text.clone(),
        Some(Specifier::InlineBytes(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return flaw(field, "must be PEM"),
        },
        Some(_) => return flaw(field, "only inline_string and inline_bytes are supported"),
        None => return flaw(field, "is required"),
    };
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        return flaw(field, "holds no PEM certificate");
    }
    let custom = context.custom_validator_config.as_ref().and_then(|custom| custom.typed_config.as_ref());
    let revoked = match custom {
        None => Vec::new(),
        Some(packed) if packed.type_url == REVOKED_URL => match own::Revoked::decode(packed.value.as_slice())
        {
            Ok(revoked) => revoked.entries,
            Err(error) => {
                return flaw(
                    "validation_context.custom_validator_config",
                    format!("malformed protobuf: {error}"),
                );
            }
        },
        // It would let nobody in whom our checks refuse, but maybe refuse whom they let in.
        Some(_) => return flaw("validation_context.custom_validator_config", "is of an unknown type"),
    };
    Ok(TrustBundleSecret { name: wire.name.clone(), roots_pem: pem, revoked })
}
