//! How a sidecar without privileges finds out whether the rules are in force: it connects to an address where nobody
//! listens, which a rule brings to the sidecar's own outbound port, and must meet itself.
//!
//! The table is one transaction: where this rule is, the others are.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One of either family, on the loopback interface: always routable, never seen outside.
pub const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)), 15003),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 15003),
];

/// A sidecar answers at once, or it is not one.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a sidecar says to a probe, so that it knows itself from any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token([u8; 16]);

impl Token {
    /// A new one.
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4().into_bytes())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Default for Token {
    fn default() -> Self {
        Self::new()
    }
}

/// The probes of the families that this host has.
pub fn reachable() -> Vec<SocketAddr> {
    let exists = |address: &SocketAddr| std::net::UdpSocket::bind(SocketAddr::new(address.ip(), 0)).is_ok();
    ADDRESSES.into_iter().filter(exists).collect()
}

/// Whether connections to `addresses` come to us.
///
/// # Errors
/// What happened instead.
pub async fn check(token: &Token, addresses: &[SocketAddr]) -> Result<(), String> {
    if addresses.is_empty() {
        return Err("there is no loopback address to ask from".to_owned());
    }
    for address in addresses {
        let met = timeout(PATIENCE, meet(*address)).await;
        let reason = match met {
            Ok(Ok(said)) if said == token.bytes() => continue,
            Ok(Ok(_)) => "somebody else answers there".to_owned(),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                "nothing brings it here".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        return Err(format!(
            "connections are not intercepted: the probe of {address} did not reach this sidecar ({reason}); \
             run `outrigger-proxy intercept apply` in this network namespace"
        ));
    }
    Ok(())
}

async fn meet(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut said = Vec::new();
    TcpStream::connect(address).await?.take(64).read_to_end(&mut said).await?;
    Ok(said)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_the_own_token_is_a_meeting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (own, other) = (Token::new(), Token::new());
        let answer = own.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(answer.bytes()).await.unwrap();
            }
        });
        assert_eq!(check(&own, &[address]).await, Ok(()));
        let error = check(&other, &[address]).await.unwrap_err();
        assert!(error.contains("somebody else") && error.contains("intercept apply"), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_means_no_interception() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = check(&Token::new(), &[address]).await.unwrap_err();
        assert!(error.contains("nothing brings it here") && error.contains(&address.to_string()), "{error}");
    }
}
