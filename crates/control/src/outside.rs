//! Connections to servers outside the mesh, such as registries and issuers of tokens: TCP, TLS where it is wanted, HTTP/1 over it.

use std::io::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use outrigger_identity::upstream::{UpstreamTls, upstream_client_config};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// For one TCP connect, and for one TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);

/// What bytes come and go by.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A part of a path or of a query.
pub(crate) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The same in plain text; what is no such code stays as it is.
pub(crate) fn unescaped(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A file of the settings. Blocks.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// Files of the settings that say whom to trust, and who we are.
pub(crate) struct Files<'a> {
    pub(crate) ca: Option<&'a Path>,
    pub(crate) cert: Option<&'a Path>,
    pub(crate) key: Option<&'a Path>,
}

impl Files<'_> {
    /// TLS as they say. Blocks.
    pub(crate) fn tls(&self, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, String> {
        let client = match (self.cert, self.key) {
            (Some(chain), Some(key)) => Some((read_text(chain)?, read_text(key)?)),
            _ => None,
        };
        let roots_pem = self.ca.map(read_text).transpose()?;
        let alpn = alpn.iter().map(|name| name.to_vec()).collect();
        let tls = UpstreamTls { roots_pem, client, alpn, ..UpstreamTls::default() };
        upstream_client_config(&tls).map_err(|error| error.to_string())
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) tls: bool,
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Place {
    /// `http://HOST[:PORT]` or `https://HOST[:PORT]`; `ports` are those of either where none is said.
    pub(crate) fn parse(text: &str, ports: (u16, u16)) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is none; write http://HOST:PORT or https://HOST:PORT");
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(wrong()),
        };
        let authority: http::uri::Authority = rest.trim_end_matches('/').parse().map_err(|_| wrong())?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if tls { ports.1 } else { ports.0 });
        Ok(Self { tls, host, port })
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Goes there; over TLS whoever is there must be called as `name` says, or else as the host.
    pub(crate) async fn connect(
        &self,
        tls: Option<&Arc<ClientConfig>>,
        name: Option<&str>,
    ) -> std::io::Result<Box<dyn Io>> {
        let late = |what: &str| Error::other(format!("no answer to the {what} in {} s", CONNECT.as_secs()));
        let tcp = timeout(CONNECT, TcpStream::connect((self.host.as_str(), self.port))).await;
        let tcp = tcp.map_err(|_| late("connect"))??;
        tcp.set_nodelay(true)?;
        let Some(tls) = tls.filter(|_| self.tls) else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(name.unwrap_or(&self.host).to_owned());
        let name = name.map_err(|error| Error::other(format!("serverName: {error}")))?;
        let tls = timeout(CONNECT, TlsConnector::from(tls.clone()).connect(name, tcp)).await;
        Ok(Box::new(tls.map_err(|_| late("TLS handshake"))??))
    }
}

/// HTTP/1 on a connection, which ends with this.
pub(crate) struct Http1 {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Http1 {
    pub(crate) async fn over(stream: Box<dyn Io>) -> Result<Self, hyper::Error> {
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, driver: tokio::spawn(driver).abort_handle() })
    }
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_tls_host_and_port() {
        let place = |text| Place::parse(text, (80, 443));
        let at = |tls, host: &str, port| Ok(Place { tls, host: host.to_owned(), port });
        assert_eq!(place("http://etcd.internal"), at(false, "etcd.internal", 80));
        assert_eq!(place("https://etcd.internal/"), at(true, "etcd.internal", 443));
        assert_eq!(place("https://[fd00::7]:1234/"), at(true, "fd00::7", 1234));
        assert_eq!(place("https://[fd00::7]:1234/").unwrap().authority(), "[fd00::7]:1234");
        assert!(place("etcd:2379").is_err() && place("http://").is_err());
    }
}
