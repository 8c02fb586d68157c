//! The floor: a bare relay pair of tokio and rustls, mTLS in between, that looks at nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// One end.
#[derive(clap::Args)]
pub struct Args {
    /// `listen=connect` pairs.
    #[arg(long, value_delimiter = ',')]
    relay: Vec<String>,
    /// The inbound end: terminates TLS; the outbound one originates it.
    #[arg(long)]
    inbound: bool,
    /// Folder with `NAME.key`, `NAME.pem` and `roots.pem`.
    #[arg(long)]
    pki: PathBuf,
    /// Whose key and certificate.
    #[arg(long)]
    name: String,
}

#[derive(Clone)]
enum End {
    Inbound(TlsAcceptor),
    Outbound(TlsConnector),
}

/// Relays until the process is ended.
pub async fn run(args: Args) -> Result<()> {
    let end = end(&args)?;
    for pair in &args.relay {
        let (listen, connect) = pair.split_once('=').context("--relay listen=connect")?;
        let (listen, connect): (SocketAddr, SocketAddr) = (listen.parse()?, connect.parse()?);
        let (listener, end) = (TcpListener::bind(listen).await?, end.clone());
        spawn_local(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let end = end.clone();
                spawn_local(async move { relay(stream, connect, end).await });
            }
        });
    }
    std::future::pending().await
}

async fn relay(mut down: TcpStream, to: SocketAddr, end: End) -> Result<()> {
    const SIZE: usize = 32 << 10;
    down.set_nodelay(true)?;
    let mut up = TcpStream::connect(to).await?;
    up.set_nodelay(true)?;
    match end {
        End::Inbound(acceptor) => {
            let mut down = acceptor.accept(down).await?;
            copy_bidirectional_with_sizes(&mut down, &mut up, SIZE, SIZE).await?;
        }
        End::Outbound(connector) => {
            let mut up = connector.connect(ServerName::try_from("echo.bench")?, up).await?;
            copy_bidirectional_with_sizes(&mut down, &mut up, SIZE, SIZE).await?;
        }
    }
    Ok(())
}

fn end(args: &Args) -> Result<End> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let provider = Arc::new(provider);
    let file = |extension: &str| args.pki.join(format!("{}.{extension}", args.name));
    let chain = CertificateDer::pem_file_iter(file("pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(file("key"))?;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(args.pki.join("roots.pem"))? {
        roots.add(root?)?;
    }
    let roots = Arc::new(roots);
    if args.inbound {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.send_tls13_tickets = 0;
        return Ok(End::Inbound(TlsAcceptor::from(Arc::new(config))));
    }
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName { roots, provider }))
        .with_client_auth_cert(chain, key)?;
    Ok(End::Outbound(TlsConnector::from(Arc::new(config))))
}

/// The chain is verified, the name is not: certificates of a mesh carry no DNS name.
#[derive(Debug)]
struct AnyName {
    roots: Arc<RootCertStore>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl rustls::client::danger::ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let cert = rustls::server::ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &cert,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
