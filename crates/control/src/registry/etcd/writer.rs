//! Our instances under the prefix, all with one lease.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::EtcdSettings;
use super::client::{Connection, PATIENCE};
use super::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use super::proto::etcdserverpb::request_op::Request as Op;
use super::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    PutRequest, RequestOp, TxnRequest,
};
use crate::instance::Instance;
use crate::registry::write::{Unput, Wanted, Writer, marked};

/// Writes to one etcd.
pub(crate) struct EtcdWriter {
    settings: EtcdSettings,
    origin: Arc<str>,
    first: usize,
    open: Option<Open>,
}

/// A connection, and what keeps the lease alive over it.
struct Open {
    connection: Connection,
    lease: i64,
    beats: mpsc::Sender<LeaseKeepAliveRequest>,
    heard: tonic::Streaming<LeaseKeepAliveResponse>,
}

impl EtcdWriter {
    pub(crate) fn new(settings: EtcdSettings, origin: Arc<str>) -> Self {
        Self { settings, origin, first: 0, open: None }
    }

    /// Ours alone: whoever else knows an instance of that id has a key of its own.
    fn key(&self, instance: &Instance) -> Vec<u8> {
        let prefix = self.settings.prefix.trim_end_matches('/');
        let Instance { namespace, service, id, .. } = instance;
        format!("{prefix}/{namespace}/{service}/{id}@{}", self.origin).into_bytes()
    }

    fn now(&mut self) -> Result<&mut Open, String> {
        self.open.as_mut().ok_or_else(|| "there is no connection".to_owned())
    }

    /// Does something once more over a new connection where the token has run out: one that is idle for minutes does.
    async fn change(&mut self, txn: TxnRequest) -> Result<(), String> {
        for last in [false, true] {
            let connection = self.now()?.connection.clone();
            let mut kv = connection.kv();
            let asked = timeout(PATIENCE, kv.txn(connection.request(txn.clone()))).await;
            let expired = |status: &tonic::Status| status.message().contains("invalid auth token");
            match asked {
                Ok(Err(status)) if expired(&status) && !last => {
                    let lease = self.now()?.lease;
                    self.connect(Some(lease)).await?;
                }
                asked => return connection.answered("writing", asked).map(drop),
            }
        }
        Ok(())
    }

    async fn connect(&mut self, lease: Option<i64>) -> Result<(), String> {
        let first = self.first;
        self.first = (first + 1) % self.settings.endpoints.len();
        let connection = Connection::open(&self.settings, first).await?;
        let mut client = connection.lease();
        let lease = match lease {
            Some(lease) => lease,
            None => {
                let grant = LeaseGrantRequest { ttl: i64::from(self.settings.ttl_seconds), id: 0 };
                let granted = timeout(PATIENCE, client.lease_grant(connection.request(grant))).await;
                connection.answered("asking for a lease", granted)?.id
            }
        };
        let (beats, all) = mpsc::channel(4);
        // The answer's head comes with its first message.
        let _ = beats.send(LeaseKeepAliveRequest { id: lease }).await;
        let opened = client.lease_keep_alive(connection.request(ReceiverStream::new(all)));
        let heard = connection.answered("keeping the lease", timeout(PATIENCE, opened).await)?;
        let mut open = Open { connection, lease, beats, heard };
        open.alive().await?;
        self.first = first;
        self.open = Some(open);
        Ok(())
    }
}

impl Open {
    /// The answer to a beat.
    async fn alive(&mut self) -> Result<(), String> {
        let answer = timeout(PATIENCE, self.heard.message()).await;
        let answer = answer.map_err(|_| self.connection.silent(PATIENCE))?;
        let answer = answer.map_err(|status| self.connection.refused("keeping the lease", &status))?;
        match answer {
            Some(answer) if answer.ttl > 0 => Ok(()),
            Some(_) => Err("the lease has run out; all is written anew".to_owned()),
            None => Err(self.connection.ended()),
        }
    }
}

impl Writer for EtcdWriter {
    /// Its keys have namespaces.
    fn has(&self, _: &Instance) -> bool {
        true
    }

    async fn open(&mut self) -> Result<(), String> {
        let lease = self.open.take().map(|open| open.lease);
        // The lease of before goes on where it has not run out.
        match lease {
            Some(lease) if self.connect(Some(lease)).await.is_ok() => Ok(()),
            _ => self.connect(None).await,
        }
    }

    async fn put(&mut self, instance: &Instance) -> Result<(), Unput> {
        let key = self.key(instance);
        let value = serde_json::to_vec(&marked(instance, &self.origin)).map_err(|error| error.to_string())?;
        let lease = self.now()?.lease;
        let put = RequestOp { request: Some(Op::RequestPut(PutRequest { key, value, lease })) };
        Ok(self.change(TxnRequest { success: vec![put], ..TxnRequest::default() }).await?)
    }

    /// Only what has our lease: whoever wrote the key since then keeps it, and what has one of before ends with that.
    async fn remove(&mut self, instance: &Instance) -> Result<(), String> {
        let key = self.key(instance);
        let lease = TargetUnion::Lease(self.now()?.lease);
        let ours = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Lease.into(),
            key: key.clone(),
            target_union: Some(lease),
        };
        let delete = DeleteRangeRequest { key, range_end: Vec::new() };
        let delete = RequestOp { request: Some(Op::RequestDeleteRange(delete)) };
        self.change(TxnRequest { compare: vec![ours], success: vec![delete], failure: Vec::new() }).await
    }

    async fn beat(&mut self, _: &Wanted) -> Result<(), String> {
        let open = self.now()?;
        let _ = open.beats.send(LeaseKeepAliveRequest { id: open.lease }).await;
        open.alive().await
    }

    fn every(&self) -> Duration {
        Duration::from_secs(self.settings.ttl_seconds.into()) / 3
    }
}
