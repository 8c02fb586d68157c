//! Questions to an etcd, over one connection: when it ends, whoever asks begins anew, because another member may have another history.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::EtcdSettings;
use super::proto::etcdserverpb::auth_client::AuthClient;
use super::proto::etcdserverpb::kv_client::KvClient;
use super::proto::etcdserverpb::lease_client::LeaseClient;
use super::proto::etcdserverpb::watch_client::WatchClient;
use super::proto::etcdserverpb::{AuthenticateRequest, RangeRequest, RangeResponse};
use super::proto::mvccpb::KeyValue;
use crate::outside::{Files, Place, read_text};
use crate::registry::grpc::{self, reason};

/// For an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The longest message of etcd's, of one page or of one turn of a watch.
const MAX_MESSAGE: usize = 64 << 20;
/// Keys of a page.
const PAGE: i64 = 1000;
/// Keys under the prefix.
const MOST_KEYS: usize = 200_000;

/// Reads an endpoint of the settings.
pub(super) fn place(endpoint: &str) -> Result<Place, String> {
    Place::parse(endpoint, (2379, 2379))
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Connection {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    /// Its endpoint.
    at: Arc<str>,
    prefix: Arc<str>,
}

/// All keys under the prefix, as they were at a revision.
pub(super) struct Listing {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    pub(super) keys: Vec<KeyValue>,
}

impl Connection {
    /// Connects to one of the endpoints, the one at `first` before the others, and proves who we are.
    pub(super) async fn open(settings: &EtcdSettings, first: usize) -> Result<Self, String> {
        let files = settings.clone();
        let credentials = tokio::task::spawn_blocking(move || Credentials::read(&files)).await;
        let credentials = credentials.map_err(|error| error.to_string())??;
        let mut failures = Vec::new();
        for step in 0..settings.endpoints.len() {
            let endpoint = &settings.endpoints[(first + step) % settings.endpoints.len()];
            match Self::open_at(endpoint, settings, &credentials).await {
                Ok(connection) => return Ok(connection),
                Err(why) => failures.push(why),
            }
        }
        Err(failures.join("; "))
    }

    async fn open_at(
        endpoint: &str,
        settings: &EtcdSettings,
        credentials: &Credentials,
    ) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("etcd at {endpoint} cannot be reached: {error}");
        let place = place(endpoint)?;
        let channel = grpc::channel(&place, credentials.tls.as_ref(), settings.server_name.as_deref()).await;
        let channel = channel.map_err(|error| failed(&error))?;
        let (at, prefix) = (endpoint.into(), settings.prefix.as_str().into());
        let mut connection = Self { channel, token: None, at, prefix };
        if let (Some(name), Some(password)) = (&settings.user, &credentials.password) {
            let (name, password) = (name.clone(), password.clone());
            let mut auth = AuthClient::new(connection.channel.clone());
            let asked = timeout(PATIENCE, auth.authenticate(AuthenticateRequest { name, password })).await;
            let token = connection.answered("logging in", asked)?.token;
            connection.token = Some(token.parse().map_err(|_| failed(&"its token cannot be sent back"))?);
        }
        Ok(connection)
    }

    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    /// A request with our token.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A member without a leader says so, instead of falling silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// What came of a question, within [`PATIENCE`].
    pub(super) fn answered<T>(
        &self,
        what: &str,
        asked: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, String> {
        match asked {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.refused(what, &status)),
            Err(_) => Err(format!("etcd at {} is silent: {what} took {} s", self.at, PATIENCE.as_secs())),
        }
    }

    /// A refusal in words.
    pub(super) fn refused(&self, what: &str, status: &Status) -> String {
        let is_auth = status.message().contains("auth") || status.message().contains("user name is empty");
        let advice = match status.code() {
            Code::PermissionDenied => format!(
                "; give the user's role read on the prefix {:?} (and write, where it registers)",
                self.prefix
            ),
            Code::Unauthenticated | Code::InvalidArgument if is_auth => {
                "; are user and passwordFile good?".to_owned()
            }
            _ => String::new(),
        };
        format!("etcd at {}: {what}: {}{advice}", self.at, reason(status))
    }

    pub(super) fn silent(&self, since: Duration) -> String {
        format!("etcd at {} has been silent for {} s", self.at, since.as_secs())
    }

    pub(super) fn ended(&self) -> String {
        format!("etcd at {}: the watch ended", self.at)
    }

    pub(super) fn canceled(&self, why: &str) -> String {
        format!("etcd at {}: the watch was canceled: {why}", self.at)
    }

    /// All keys under the prefix, page by page at one revision.
    pub(super) async fn list(&self) -> Result<Listing, String> {
        let end = after(self.prefix.as_bytes());
        let mut from = self.prefix.as_bytes().to_vec();
        let (mut cluster, mut revision, mut keys) = (0, 0, Vec::new());
        loop {
            let range = RangeRequest { key: from, range_end: end.clone(), limit: PAGE, revision };
            let mut kv = self.kv();
            let asked = timeout(PATIENCE, kv.range(self.request(range))).await;
            let RangeResponse { header, kvs, more, .. } = self.answered("listing", asked)?;
            let header = header.ok_or_else(|| format!("etcd at {}: an answer without a header", self.at))?;
            if revision == 0 {
                (cluster, revision) = (header.cluster_id, header.revision);
            }
            let next = kvs.last().filter(|_| more).map(|last| [&last.key, &[0][..]].concat());
            keys.extend(kvs);
            if keys.len() > MOST_KEYS {
                return Err(format!(
                    "etcd at {} has more than {MOST_KEYS} keys under {:?}: is that the prefix of instances?",
                    self.at, self.prefix
                ));
            }
            match next {
                Some(next) => from = next,
                None => return Ok(Listing { cluster, revision, keys }),
            }
        }
    }
}

/// The end of the range of all keys that begin like this.
pub(super) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // To the end of all.
    vec![0]
}

/// What is read from files, at each connection anew.
struct Credentials {
    password: Option<String>,
    tls: Option<Arc<ClientConfig>>,
}

impl Credentials {
    fn read(settings: &EtcdSettings) -> Result<Self, String> {
        let password = settings.password_file.as_deref().map(read_text).transpose()?;
        let password = password.map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
        let wants_tls = settings.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        let files = Files {
            ca: settings.ca_file.as_deref(),
            cert: settings.cert_file.as_deref(),
            key: settings.key_file.as_deref(),
        };
        let tls = wants_tls.then(|| files.tls(&[b"h2"])).transpose()?;
        Ok(Self { password, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next() {
        for (prefix, end) in [(&b"/a/"[..], &b"/a0"[..]), (b"a\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0")] {
            assert_eq!(after(prefix), end);
        }
    }
}
