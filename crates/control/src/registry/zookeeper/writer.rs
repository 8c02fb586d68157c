//! Our instances below the first path, in Curator's layout, as ephemeral nodes of one session.
//!
//! Nodes belong to the session, not to the connection: a new connection goes on with it. Only a session that has expired, or that of the
//! process before us, leaves nodes behind that are exchanged for ours, in one step for whoever watches.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::ZooKeeperSettings;
use super::client::{Id, Refused, Session};
use super::wire::{Out, code, op};
use crate::instance::{Instance, State};
use crate::registry::write::{Wanted, Writer, marked, metadata};

/// Everybody may do everything; everybody may read.
const ALL: i32 = 0x1f;
const READ: i32 = 1;
/// The flag of a node that ends with its session.
const EPHEMERAL: i32 = 1;

/// Writes to one ZooKeeper.
pub(crate) struct ZooKeeperWriter {
    settings: ZooKeeperSettings,
    origin: Arc<str>,
    first: usize,
    session: Option<Session>,
    /// Which it was last.
    id: Option<Id>,
}

impl ZooKeeperWriter {
    pub(crate) fn new(settings: ZooKeeperSettings, origin: Arc<str>) -> Self {
        Self { settings, origin, first: 0, session: None, id: None }
    }

    fn now(&mut self) -> Result<&mut Session, String> {
        self.session.as_mut().ok_or_else(|| "there is no connection".to_owned())
    }

    /// Services there have no namespaces: where the settings name one, it is its services that are there.
    fn has(&self, instance: &Instance) -> bool {
        self.settings.namespace.as_deref().unwrap_or("default") == instance.namespace
    }

    fn service(&self, instance: &Instance) -> String {
        let path = self.settings.paths.first().map_or("", String::as_str);
        let there = self.settings.names.iter().find(|(_, here)| **here == instance.service);
        format!("{path}/{}", there.map_or(instance.service.as_str(), |(there, _)| there))
    }

    /// Ours alone: whoever else knows an instance of that id has a node of its own.
    fn id(&self, instance: &Instance) -> String {
        format!("{}@{}", instance.id, self.origin)
    }

    fn path(&self, instance: &Instance) -> String {
        format!("{}/{}", self.service(instance), self.id(instance))
    }

    fn value(&self, instance: &Instance) -> Value {
        let service = self.service(instance);
        let (id, name) = (self.id(instance), service.rsplit('/').next().unwrap_or_default());
        let class = &self.settings.payload_class;
        let metadata = metadata(&marked(instance, &self.origin));
        let payload = json!({ "@class": class, "id": id, "name": name, "metadata": metadata });
        json!({
            "name": name,
            "id": id,
            "address": instance.addresses.first(),
            "port": instance.ports.first().map(|port| port.number),
            "sslPort": null,
            "payload": if class.is_empty() { Value::Null } else { payload },
            "registrationTimeUTC": jiff::Timestamp::now().as_millisecond(),
            "serviceType": "DYNAMIC",
            "uriSpec": null,
        })
    }

    /// Who may what: where we have a user it alone writes.
    fn acl(&self, out: Out) -> Out {
        match self.settings.user {
            Some(_) => out.int(2).int(ALL).text("auth").text("").int(READ).text("world").text("anyone"),
            None => out.int(1).int(ALL).text("world").text("anyone"),
        }
    }

    fn created(&self, path: &str, data: &[u8], flags: i32) -> Out {
        self.acl(Out::new().text(path).buffer(data)).int(flags)
    }

    /// Makes the nodes above, which stay.
    async fn make_parents(&mut self, service: &str) -> Result<(), String> {
        let ends = service.match_indices('/').skip(1).map(|(end, _)| end).chain([service.len()]);
        let all: Vec<&str> = ends.map(|end| &service[..end]).collect();
        for path in all {
            let create = self.created(path, b"", 0);
            let session = self.now()?;
            let answer = session.call(op::CREATE, create).await?;
            if answer.code != code::NODE_EXISTS {
                session.good(&answer, &format!("making {path:?}"))?;
            }
        }
        Ok(())
    }

    /// Whose session the node of that path ends with, if it is there.
    async fn owner(&mut self, path: &str) -> Result<Option<i64>, String> {
        let session = self.now()?;
        let mut answer = session.call(op::EXISTS, Out::new().text(path).flag(false)).await?;
        if answer.code == code::NO_NODE {
            return Ok(None);
        }
        session.good(&answer, &format!("asking for {path:?}"))?;
        answer.body.owner().map(Some)
    }

    async fn connect(&mut self) -> Result<(), Refused> {
        let first = self.first;
        self.first = (first + 1) % self.settings.endpoints.len();
        let wants = Duration::from_secs(self.settings.ttl_seconds.into());
        let session = Session::open(&self.settings, first, wants, self.id.as_ref()).await?;
        self.first = first;
        self.id = Some(session.id.clone());
        self.session = Some(session);
        Ok(())
    }
}

impl Writer for ZooKeeperWriter {
    async fn open(&mut self) -> Result<(), String> {
        self.session = None;
        match self.connect().await {
            Err(Refused::Expired) if self.id.take().is_some() => self.connect().await.map_err(Refused::text),
            opened => opened.map_err(Refused::text),
        }
    }

    /// Who is out is not there: nobody who reads Curator's layout would know.
    async fn put(&mut self, instance: &Instance) -> Result<(), String> {
        if !self.has(instance) {
            return Ok(());
        }
        if instance.state != State::Running {
            return self.remove(instance).await;
        }
        let path = self.path(instance);
        let data = self.value(instance).to_string().into_bytes();
        for last in [false, true] {
            let owner = self.owner(&path).await?;
            let create = self.created(&path, &data, EPHEMERAL);
            let is_ours = owner.is_some() && owner == self.id.as_ref().map(|id| id.session);
            let session = self.now()?;
            let answer = match owner {
                Some(_) if is_ours => {
                    session.call(op::SET_DATA, Out::new().text(&path).buffer(&data).int(-1)).await?
                }
                Some(_) => {
                    // MultiHeader: what it is, whether it is the end, an error.
                    let both = Out::new().int(op::DELETE).flag(false).int(-1).text(&path).int(-1);
                    let both = both.int(op::CREATE).flag(false).int(-1).text(&path).buffer(&data);
                    let both = self.acl(both).int(EPHEMERAL).int(-1).flag(true).int(-1);
                    self.now()?.call(op::MULTI, both).await?
                }
                None => session.call(op::CREATE, create).await?,
            };
            let no_parent = owner.is_none() && answer.code == code::NO_NODE;
            if !no_parent || last {
                return self.now()?.good(&answer, &format!("writing {path:?}"));
            }
            let service = self.service(instance);
            self.make_parents(&service).await?;
        }
        Ok(())
    }

    async fn remove(&mut self, instance: &Instance) -> Result<(), String> {
        if !self.has(instance) {
            return Ok(());
        }
        let path = self.path(instance);
        let session = self.now()?;
        let answer = session.call(op::DELETE, Out::new().text(&path).int(-1)).await?;
        if answer.code == code::NO_NODE {
            Ok(())
        } else {
            session.good(&answer, &format!("deleting {path:?}"))
        }
    }

    async fn beat(&mut self, _: &Wanted) -> Result<(), String> {
        self.now()?.alive().await
    }

    fn every(&self) -> Duration {
        let wants = Duration::from_secs(self.settings.ttl_seconds.into());
        // The server may have given less.
        self.session.as_ref().map_or(wants, |session| session.timeout.min(wants)) / 3
    }
}
