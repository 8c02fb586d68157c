//! Our instances below the first path, in Curator's layout, as ephemeral nodes of one session.
//!
//! Nodes belong to the session, not to the connection: a new connection goes on with it. Only a session that has expired, or that of the
//! process before us, leaves nodes behind that are exchanged for ours, in one step for whoever watches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::ZooKeeperSettings;
use super::client::{Id, Refused, Session};
use super::wire::{Out, code, exchanged, op};
use crate::instance::{Instance, State};
use crate::registry::write::{Unput, Wanted, Writer, marked, metadata};

/// Everybody may do everything; everybody may read.
const ALL: i32 = 0x1f;
const READ: i32 = 1;
/// Everything but to say who may what.
const CHANGE: i32 = 0xf;
/// The flag of a node that ends with its session.
const EPHEMERAL: i32 = 1;
/// Of one node that comes and goes while we write it.
const TRIES: usize = 5;

/// Writes to one ZooKeeper.
pub(crate) struct ZooKeeperWriter {
    settings: ZooKeeperSettings,
    origin: Arc<str>,
    first: usize,
    session: Option<Session>,
    /// Which it was last.
    id: Option<Id>,
    /// Instances that were refused, and why.
    unwritten: BTreeMap<String, String>,
    /// Nodes that we may not delete, and why. They go with our session.
    left: BTreeMap<String, String>,
}

impl ZooKeeperWriter {
    pub(crate) fn new(settings: ZooKeeperSettings, origin: Arc<str>) -> Self {
        let (unwritten, left) = (BTreeMap::new(), BTreeMap::new());
        Self { settings, origin, first: 0, session: None, id: None, unwritten, left }
    }

    fn now(&mut self) -> Result<&mut Session, String> {
        self.session.as_mut().ok_or_else(|| "there is no connection".to_owned())
    }

    fn name<'a>(&'a self, instance: &'a Instance) -> &'a str {
        let there = self.settings.names.iter().find(|(_, here)| **here == instance.service);
        there.map_or(instance.service.as_str(), |(there, _)| there.trim_matches('/'))
    }

    fn service(&self, instance: &Instance) -> String {
        let path = self.settings.paths.first().map_or("", String::as_str);
        format!("{path}/{}", self.name(instance))
    }

    /// Ours alone: whoever else knows an instance of that id has a node of its own.
    fn id(&self, instance: &Instance) -> String {
        format!("{}@{}", instance.id, self.origin)
    }

    fn path(&self, instance: &Instance) -> String {
        format!("{}/{}", self.service(instance), self.id(instance))
    }

    fn value(&self, instance: &Instance) -> Value {
        let (id, name) = (self.id(instance), self.name(instance));
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

    /// Who may what with our nodes: where we have a user it alone changes them.
    fn acl(&self, out: Out) -> Out {
        match self.settings.user {
            Some(_) => out.int(2).int(ALL).text("auth").text("").int(READ).text("world").text("anyone"),
            None => out.int(1).int(ALL).text("world").text("anyone"),
        }
    }

    /// And with those above, which are everybody's, as Curator makes them; our user may close them.
    fn open_acl(&self, out: Out) -> Out {
        match self.settings.user {
            Some(_) => out.int(2).int(ALL).text("auth").text("").int(CHANGE).text("world").text("anyone"),
            None => out.int(1).int(ALL).text("world").text("anyone"),
        }
    }

    /// Makes the nodes above, which stay: others have instances below them, too.
    async fn make_parents(&mut self, service: &str) -> Result<i32, String> {
        let ends = service.match_indices('/').skip(1).map(|(end, _)| end).chain([service.len()]);
        for path in ends.map(|end| &service[..end]) {
            // Whoever may not make it where it is might be told that, and not that it is there.
            if self.owner(path).await?.is_some() {
                continue;
            }
            let create = self.open_acl(Out::new().text(path).buffer(b"")).int(0);
            let answer = self.now()?.call(op::CREATE, create).await?;
            if !matches!(answer.code, code::OK | code::NODE_EXISTS) {
                return Ok(answer.code);
            }
        }
        Ok(code::OK)
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

    /// Puts a node of ours there; what was answered.
    async fn write(&mut self, path: &str, data: &[u8], service: &str) -> Result<i32, String> {
        let mut answered = code::OK;
        for _ in 0..TRIES {
            let owner = self.owner(path).await?;
            let is_ours = owner.is_some() && owner == self.id.as_ref().map(|id| id.session);
            // One that we made with another password is not ours to change, but to exchange.
            let is_set = is_ours && answered != code::NO_AUTH;
            answered = match owner {
                Some(_) if is_set => {
                    let set = Out::new().text(path).buffer(data).int(-1);
                    self.now()?.call(op::SET_DATA, set).await?.code
                }
                Some(_) => self.exchange(path, data).await?,
                None => {
                    let create = self.acl(Out::new().text(path).buffer(data)).int(EPHEMERAL);
                    self.now()?.call(op::CREATE, create).await?.code
                }
            };
            match answered {
                // It went or came meanwhile, or whom we ask has not heard of it yet.
                code::NO_NODE | code::NODE_EXISTS => {
                    self.sync(path).await?;
                    if owner.is_none() && answered == code::NO_NODE {
                        let made = self.make_parents(service).await?;
                        if made != code::OK {
                            return Ok(made);
                        }
                    }
                }
                code::NO_AUTH if is_set => {}
                answered => return Ok(answered),
            }
        }
        Ok(answered)
    }

    /// Deletes a node and makes it anew, in one step.
    async fn exchange(&mut self, path: &str, data: &[u8]) -> Result<i32, String> {
        // MultiHeader: what it is, whether it is the end, an error.
        let both = Out::new().int(op::DELETE).flag(false).int(-1).text(path).int(-1);
        let both = both.int(op::CREATE).flag(false).int(-1).text(path).buffer(data);
        let both = self.acl(both).int(EPHEMERAL).int(-1).flag(true).int(-1);
        let session = self.now()?;
        let mut answer = session.call(op::MULTI, both).await?;
        match answer.code {
            code::OK => exchanged(&mut answer.body).map_err(|why| session.said(&why)),
            other => Ok(other),
        }
    }

    /// What others have changed is seen from now on.
    async fn sync(&mut self, path: &str) -> Result<(), String> {
        let session = self.now()?;
        let answer = session.call(op::SYNC, Out::new().text(path)).await?;
        session.good(&answer, "synchronizing")
    }

    /// Why that was not done, where it is about this node and no other.
    fn refused(&mut self, answered: i32, what: &str) -> Result<Option<String>, String> {
        match answered {
            code::OK => Ok(None),
            of_it if code::is_of_a_node(of_it) => Ok(Some(self.now()?.wrong(of_it, what))),
            other => Err(self.now()?.wrong(other, what)),
        }
    }

    async fn delete(&mut self, path: String) -> Result<(), String> {
        let answer = self.now()?.call(op::DELETE, Out::new().text(&path).int(-1)).await?;
        let answered = if answer.code == code::NO_NODE { code::OK } else { answer.code };
        match self.refused(answered, &format!("deleting {path:?}"))? {
            Some(why) => drop(self.left.insert(path, why)),
            None => drop(self.left.remove(&path)),
        }
        Ok(())
    }

    /// Who is out is not there: nobody who reads Curator's layout would know.
    fn is_wanted(&self, instance: &Instance) -> bool {
        self.has(instance) && instance.state == State::Running
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
    /// Services there have no namespaces: where the settings name one, it is its services that are there.
    fn has(&self, instance: &Instance) -> bool {
        self.settings.namespace.as_deref().unwrap_or("default") == instance.namespace
    }

    async fn open(&mut self) -> Result<(), String> {
        self.session = None;
        // All of it is put anew.
        self.unwritten.clear();
        match self.connect().await {
            Err(Refused::Expired) if self.id.take().is_some() => self.connect().await.map_err(Refused::text),
            opened => opened.map_err(Refused::text),
        }
    }

    async fn put(&mut self, instance: &Instance) -> Result<(), Unput> {
        if !self.is_wanted(instance) {
            return Ok(self.remove(instance).await?);
        }
        let (path, service) = (self.path(instance), self.service(instance));
        let data = self.value(instance).to_string().into_bytes();
        let answered = self.write(&path, &data, &service).await?;
        self.left.remove(&path);
        match self.refused(answered, &format!("writing {path:?}"))? {
            Some(why) => drop(self.unwritten.insert(instance.id.clone(), why)),
            None => drop(self.unwritten.remove(&instance.id)),
        }
        Ok(())
    }

    async fn remove(&mut self, instance: &Instance) -> Result<(), String> {
        self.unwritten.remove(&instance.id);
        if !self.has(instance) {
            return Ok(());
        }
        self.delete(self.path(instance)).await
    }

    async fn beat(&mut self, all: &Wanted) -> Result<(), String> {
        self.now()?.alive().await?;
        if self.trouble().is_none() {
            return Ok(());
        }
        // What was refused may be permitted by now, to us or to whoever the file says that we are. Each of it keeps the session, too.
        let settings = self.settings.clone();
        self.now()?.log_in_anew(&settings).await?;
        for path in self.left.keys().cloned().collect::<Vec<_>>() {
            self.delete(path).await?;
        }
        for id in self.unwritten.keys().cloned().collect::<Vec<_>>() {
            match all.get(&id) {
                Some(instance) => self.put(instance).await.map_err(Unput::text)?,
                None => drop(self.unwritten.remove(&id)),
            }
        }
        Ok(())
    }

    fn written(&self, put: &Wanted) -> usize {
        let is_there = |one: &&Arc<Instance>| self.is_wanted(one) && !self.unwritten.contains_key(&one.id);
        put.values().filter(is_there).count()
    }

    /// One stands for all.
    fn trouble(&self) -> Option<&str> {
        self.unwritten.values().chain(self.left.values()).next().map(String::as_str)
    }

    fn every(&self) -> Duration {
        let wants = Duration::from_secs(self.settings.ttl_seconds.into());
        // The server may have given less.
        self.session.as_ref().map_or(wants, |session| session.timeout.min(wants)) / 3
    }
}

#[cfg(test)]
mod tests;
