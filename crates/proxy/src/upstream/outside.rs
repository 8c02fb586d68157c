//! TLS configurations for servers outside the mesh, made from the files that a cluster names, or from the roots that it has.
//!
//! The files are read when the cluster is compiled: what cannot be read or used is a refused resource, never plain text.

use std::io::{self, Read};
use std::sync::Arc;

use outrigger_identity::handover;
use outrigger_identity::upstream::{UpstreamTls, upstream_client_config};
use outrigger_model::cluster::OutsideTls;
use rustls::ClientConfig;

use crate::protocol::Protocol;

/// Bytes of a file; those of all public roots are a fifth of it.
const MOST: u64 = 1 << 20;

/// One configuration for each protocol that may be wanted.
#[derive(Debug, Clone)]
pub struct OutsideConfigs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
}

impl OutsideConfigs {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(tls: &OutsideTls) -> Result<Self, String> {
        let read = |path: &String| text_of(path).map_err(|error| format!("{path}: {error}"));
        let client = match &tls.client_files {
            Some((chain, key)) => Some((read(chain)?, read(key)?)),
            None => None,
        };
        let settings = UpstreamTls {
            roots_pem: match &tls.roots_file {
                Some(file) => Some(read(file)?),
                None => tls.roots_pem.clone(),
            },
            subject_alt_names: tls.subject_alt_names.clone(),
            client,
            alpn: Vec::new(),
        };
        let tcp = upstream_client_config(&settings).map_err(|error| error.to_string())?;
        let mut tcp = Arc::unwrap_or_clone(tcp);
        handover::client(&mut tcp);
        let offering = |name: &[u8]| {
            let mut config = tcp.clone();
            config.alpn_protocols = vec![name.to_vec()];
            Arc::new(config)
        };
        Ok(Self { http1: offering(b"http/1.1"), http2: offering(b"h2"), tcp: Arc::new(tcp) })
    }

    /// The configuration for what will be spoken.
    pub fn wanting(&self, want: Protocol) -> &Arc<ClientConfig> {
        match want {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
            Protocol::Tcp => &self.tcp,
        }
    }
}

/// The text of a file that a rule names. Who writes rules must not have us read what has no end, or wait for what never comes.
fn text_of(path: &str) -> io::Result<String> {
    // Before it is opened: opening a pipe waits for who writes into it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(MOST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(io::Error::other(format!("it has more than {MOST} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_usual_length_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("fine"), "roots").unwrap();
        std::fs::write(path("long"), vec![b'a'; MOST as usize + 1]).unwrap();
        assert_eq!(text_of(&path("fine")).unwrap(), "roots");
        let pipe = path("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for (path, why) in [
            ("/dev/zero", "not a file"),
            ("/proc", "not a file"),
            (pipe.as_str(), "not a file"),
            (&path("long"), "more than"),
            (&path("none"), "No such file"),
        ] {
            let error = text_of(path).unwrap_err().to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
    }
}
