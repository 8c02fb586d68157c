//! rustls' verifiers, but for what each has to say of the certificate itself: that the peer holds its key is proven here.

use std::fmt;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::provider::provider;

/// What a peer must prove of the key of its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// That it holds it, in TLS 1.3: the mesh offers no earlier version.
    Tls13,
    /// That it holds it, in whichever version is spoken.
    AnyVersion,
    /// Nothing.
    Nothing,
}

impl Proof {
    /// Looks at the signature of a TLS 1.2 handshake.
    pub(crate) fn tls12(
        self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self {
            Self::Tls13 => Err(rustls::Error::General("the mesh speaks TLS 1.3 only".to_owned())),
            Self::AnyVersion => {
                let algorithms = provider().signature_verification_algorithms;
                rustls::crypto::verify_tls12_signature(message, leaf, signature, &algorithms)
            }
            Self::Nothing => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    /// Looks at that of a TLS 1.3 handshake.
    pub(crate) fn tls13(
        self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self {
            Self::Tls13 | Self::AnyVersion => {
                let algorithms = provider().signature_verification_algorithms;
                rustls::crypto::verify_tls13_signature(message, leaf, signature, &algorithms)
            }
            Self::Nothing => Ok(HandshakeSignatureValid::assertion()),
        }
    }
}

/// The kinds of signatures that can be looked at.
pub(crate) fn schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

/// The methods that rustls' verifiers of servers and of clients have in common.
macro_rules! proven {
    ($proof:expr) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            $proof.tls12(message, leaf, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            $proof.tls13(message, leaf, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            $crate::proof::schemes()
        }
    };
}
pub(crate) use proven;

/// Says which servers are accepted. What is asked for by name is not told: who wants to know it knows it.
pub(crate) trait Judge: fmt::Debug + Send + Sync {
    /// What a server must prove of its key.
    const PROOF: Proof;

    /// Whether a server may be this one.
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error>;
}

/// A verifier of servers.
#[derive(Debug)]
pub(crate) struct ServerBy<J>(pub(crate) J);

impl<J: Judge> ServerCertVerifier for ServerBy<J> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.judge(leaf, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    proven!(J::PROOF);
}
