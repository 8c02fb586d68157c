//! Trust bundles. Keys never travel.

use outrigger_model::resource::TrustBundleSecret;

use super::flaw::{Decoded, flaw};
use crate::wire::core::{DataSource, data_source::Specifier};
use crate::wire::tls::{CertificateValidationContext, Secret, secret::Type};

pub(super) fn encode(secret: &TrustBundleSecret) -> Secret {
    Secret {
        name: secret.name.clone(),
        r#type: Some(Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier: Some(Specifier::InlineString(secret.roots_pem.clone())),
                ..Default::default()
            }),
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
    Ok(TrustBundleSecret { name: wire.name.clone(), roots_pem: pem })
}
