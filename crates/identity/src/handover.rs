//! Handing a finished session over to a record layer other than rustls's.
//!
//! rustls gives up keys and sequence numbers of a session, but not the secrets from which the next keys come (RFC 8446, section
//! 7.2); those it tells only to whoever logs keys. So a configuration of the data path has a log that keeps the two
//! secrets of the thread's newest handshake until they are taken. They are written nowhere.

use std::cell::Cell;
use std::sync::Arc;

use rustls::{ClientConfig, KeyLog, ServerConfig};
use zeroize::Zeroizing;

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// As long as the session's hash; overwritten when it is dropped.
pub struct Secret {
    bytes: Zeroizing<[u8; 48]>,
    length: u8,
}

impl From<&[u8]> for Secret {
    /// Of at most 48 bytes: SHA-384's.
    fn from(secret: &[u8]) -> Self {
        let length = secret.len().min(48);
        let mut bytes = Zeroizing::new([0; 48]);
        bytes[..length].copy_from_slice(&secret[..length]);
        Self { bytes, length: length as u8 }
    }
}

impl AsRef<[u8]> for Secret {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// What both directions of a session are encrypted from.
pub struct TrafficSecrets {
    /// Of what the client sends.
    pub client: Secret,
    /// Of what the server sends.
    pub server: Secret,
}

thread_local! {
    static NEWEST: Cell<(Option<Secret>, Option<Secret>)> = const { Cell::new((None, None)) };
}

#[derive(Debug)]
struct Newest;

impl KeyLog for Newest {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        NEWEST.with(|newest| {
            let (client, server) = newest.take();
            match label {
                CLIENT => newest.set((Some(secret.into()), server)),
                SERVER => newest.set((client, Some(secret.into()))),
                _ => newest.set((client, server)),
            }
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }
}

/// The secrets that a handshake on this thread has come to since the last call. To be called whenever a session was let go
/// on, so that they cannot be another's.
pub fn take() -> Option<TrafficSecrets> {
    let (client, server) = NEWEST.take();
    Some(TrafficSecrets { client: client?, server: server? })
}

/// Lets sessions of this configuration be handed over.
pub fn client(config: &mut ClientConfig) {
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(Newest);
}

/// Lets sessions of this configuration be handed over.
pub fn server(config: &mut ServerConfig) {
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(Newest);
}
