//! TLS configurations cached per worker: built once per (generation, ALPN) and (generation, peer, ALPN).
//!
//! Each worker has its own, so there is no lock; a hit allocates nothing but the clone of an `Arc`. A new generation
//! of the credentials empties the caches: new connections then use the new certificate, open ones keep theirs.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};

use crate::accept::{ClientAuth, server_config};
use crate::connect::{PeerExpectation, client_config};
use crate::credentials::{CredentialStore, Credentials};
use crate::error::IdentityError;
use crate::handover;

/// Above this many expectations the connect cache starts over: a worker never talks to that many peers at once.
const MAX_EXPECTATIONS: usize = 4096;

/// The server configurations of one generation, by ALPN list.
#[derive(Default)]
pub struct AcceptConfigs {
    /// Sessions go over to the data path's own record layer.
    handed_over: bool,
    generation: u64,
    by_alpn: Vec<(ClientAuth, AlpnList, Arc<ServerConfig>)>,
}

/// The client configurations of one generation, by expected peer and ALPN list.
#[derive(Default)]
pub struct ConnectConfigs {
    generation: u64,
    by_peer: HashMap<PeerExpectation, Vec<(AlpnList, Arc<ClientConfig>)>>,
}

struct AlpnList(Vec<Vec<u8>>);

impl AlpnList {
    fn new(names: &[&[u8]]) -> Self {
        Self(names.iter().map(|name| name.to_vec()).collect())
    }

    fn is(&self, names: &[&[u8]]) -> bool {
        self.0.len() == names.len() && self.0.iter().zip(names).all(|(a, b)| a.as_slice() == *b)
    }
}

impl AcceptConfigs {
    /// The configuration for this ALPN list, built when these credentials have none yet.
    ///
    /// # Errors
    /// When the credentials hold no certificate.
    pub fn find_or_build(
        &mut self,
        credentials: &Credentials,
        alpn: &[&[u8]],
        client_auth: ClientAuth,
    ) -> Result<Arc<ServerConfig>, IdentityError> {
        if self.generation != credentials.generation {
            self.by_alpn.clear();
            self.generation = credentials.generation;
        }
        if let Some((.., config)) =
            self.by_alpn.iter().find(|(auth, list, _)| *auth == client_auth && list.is(alpn))
        {
            return Ok(config.clone());
        }
        let mut config = server_config(credentials, alpn, client_auth)?;
        if self.handed_over {
            handover::server(Arc::make_mut(&mut config));
        }
        // ALPN lists come from our code, not from peers, so this list stays as short as that.
        self.by_alpn.push((client_auth, AlpnList::new(alpn), config.clone()));
        Ok(config)
    }
}

impl ConnectConfigs {
    /// The configuration for this peer and ALPN list, built when these credentials have none yet.
    ///
    /// # Errors
    /// When rustls refuses the parameters.
    pub fn find_or_build(
        &mut self,
        credentials: &Credentials,
        expected: &PeerExpectation,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        if self.generation != credentials.generation {
            self.by_peer.clear();
            self.generation = credentials.generation;
        }
        if let Some(configs) = self.by_peer.get(expected)
            && let Some((_, config)) = configs.iter().find(|(list, _)| list.is(alpn))
        {
            return Ok(config.clone());
        }
        let mut config = client_config(credentials, expected.clone(), alpn)?;
        handover::client(Arc::make_mut(&mut config));
        if self.by_peer.len() >= MAX_EXPECTATIONS {
            self.by_peer.clear();
        }
        self.by_peer.entry(expected.clone()).or_default().push((AlpnList::new(alpn), config.clone()));
        Ok(config)
    }
}

/// One worker's view of the credential store with its two caches. Not `Send`: it belongs to its thread.
pub struct WorkerTls {
    store: CredentialStore,
    current: Arc<Credentials>,
    accept: AcceptConfigs,
    connect: ConnectConfigs,
    _not_send: PhantomData<Rc<()>>,
}

impl WorkerTls {
    /// A worker's view of the store.
    pub fn new(store: CredentialStore) -> Self {
        let current = store.load();
        let (accept, connect) =
            (AcceptConfigs { handed_over: true, ..Default::default() }, Default::default());
        Self { store, current, accept, connect, _not_send: PhantomData }
    }

    /// The current credentials; looked up again only when the generation has moved.
    pub fn credentials(&mut self) -> &Arc<Credentials> {
        if self.store.generation() != self.current.generation {
            self.current = self.store.load();
        }
        &self.current
    }

    /// The configuration to accept mesh mTLS with; a verified client certificate is required.
    ///
    /// # Errors
    /// When there is no certificate yet.
    pub fn accept(&mut self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, IdentityError> {
        self.credentials();
        self.accept.find_or_build(&self.current, alpn, ClientAuth::Required)
    }

    /// The configuration to reach the expected peer with.
    ///
    /// # Errors
    /// When there is no certificate yet: between sidecars nobody connects anonymously.
    pub fn connect(
        &mut self,
        expected: &PeerExpectation,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        self.credentials();
        if self.current.certificate.is_none() {
            return Err(IdentityError::NoCertificate);
        }
        self.connect.find_or_build(&self.current, expected, alpn)
    }
}
