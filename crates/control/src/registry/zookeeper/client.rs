//! One session with a ZooKeeper, over one connection. A reader begins a new session with each connection and asks for everything anew; who
//! writes goes on with the session of before, to which its nodes belong.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::ClientConfig;

use super::ZooKeeperSettings;
use super::wire::{In, MAX_FRAME, Out, code, meaning, op, xid};
use crate::outside::{Files, Io, Place, read_text};

/// For an answer of one who is asked one thing at a time.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read at once.
const CHUNK: usize = 64 << 10;

/// Reads an endpoint of the settings.
pub(super) fn place(endpoint: &str) -> Result<Place, String> {
    let wrong = || format!("\"{endpoint}\" is none; write HOST:PORT or tls://HOST:PORT");
    let (scheme, rest) = match endpoint.split_once("://") {
        None | Some(("tcp", _)) => ("http", endpoint.trim_start_matches("tcp://")),
        Some(("tls", rest)) => ("https", rest),
        Some(_) => return Err(wrong()),
    };
    if rest.contains(['/', ',', '@']) {
        return Err(wrong());
    }
    Place::parse(&format!("{scheme}://{rest}"), (2181, 2281)).map_err(|_| wrong())
}

/// Which session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) session: i64,
    password: Vec<u8>,
}

/// An answer, or an event.
pub(super) struct Answer {
    pub(super) xid: i32,
    /// The last change that the server had seen.
    pub(super) zxid: i64,
    pub(super) code: i32,
    pub(super) body: In,
}

/// A session.
pub(super) struct Session {
    stream: Box<dyn Io>,
    read: BytesMut,
    /// Written, but not sent yet.
    out: Vec<u8>,
    /// Its endpoint.
    at: Arc<str>,
    pub(super) id: Id,
    /// Without a word from us for so long it has expired.
    pub(super) timeout: Duration,
    last: i32,
    heard: Instant,
    /// When the last ping went out.
    pinged: Instant,
}

/// Why there is no session.
pub(super) enum Refused {
    /// The one of before is over.
    Expired,
    Failed(String),
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl Refused {
    pub(super) fn text(self) -> String {
        match self {
            Self::Expired => "the session has expired".to_owned(),
            Self::Failed(why) => why,
        }
    }
}

impl Session {
    /// Connects to one of the endpoints, the one at `first` before the others. `before`: the session to go on with.
    pub(super) async fn open(
        settings: &ZooKeeperSettings,
        first: usize,
        wants: Duration,
        before: Option<&Id>,
    ) -> Result<Self, Refused> {
        let files = settings.clone();
        let credentials = tokio::task::spawn_blocking(move || Credentials::read(&files)).await;
        let credentials = credentials.map_err(|error| error.to_string())??;
        let mut failures = Vec::new();
        for step in 0..settings.endpoints.len() {
            let endpoint = &settings.endpoints[(first + step) % settings.endpoints.len()];
            let opened = Self::open_at(endpoint, settings, &credentials, wants, before);
            match timeout(2 * PATIENCE, opened).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(Refused::Failed(why))) => failures.push(why),
                Ok(Err(expired)) => return Err(expired),
                Err(_) => failures.push(format!("ZooKeeper at {endpoint} is silent")),
            }
        }
        Err(Refused::Failed(failures.join("; ")))
    }

    async fn open_at(
        endpoint: &str,
        settings: &ZooKeeperSettings,
        credentials: &Credentials,
        wants: Duration,
        before: Option<&Id>,
    ) -> Result<Self, Refused> {
        let stream =
            place(endpoint)?.connect(credentials.tls.as_ref(), settings.server_name.as_deref()).await;
        let stream = stream.map_err(|error| format!("ZooKeeper at {endpoint} cannot be reached: {error}"))?;
        let now = Instant::now();
        let none = Id { session: 0, password: vec![0; 16] };
        let id = before.unwrap_or(&none);
        let (read, out, at) = (BytesMut::new(), Vec::new(), endpoint.into());
        let mut session =
            Self { stream, read, out, at, id: id.clone(), timeout: wants, last: 0, heard: now, pinged: now };
        let wants = i32::try_from(wants.as_millis()).unwrap_or(i32::MAX);
        // Version, the last change seen: with one from us a server that has lost its data would never take us again.
        let connect = Out::bare().int(0).long(0).int(wants).long(id.session).buffer(&id.password).flag(false);
        session.out.extend(connect.bare_frame());
        session.flush().await?;
        let mut body = In(session.frame().await.map_err(|why| session.said(&why))?);
        let read = |body: &mut In| Ok::<_, String>((body.int()?, body.int()?, body.long()?, body.buffer()?));
        let (_, lasts, number, password) = read(&mut body).map_err(|why| session.said(&why))?;
        if number == 0 || lasts <= 0 {
            return Err(Refused::Expired);
        }
        session.id = Id { session: number, password: password.to_vec() };
        session.timeout = Duration::from_millis(u64::from(lasts.unsigned_abs())).max(Duration::from_secs(1));
        session.log_in(settings, credentials.password.as_deref()).await?;
        Ok(session)
    }

    async fn log_in(&mut self, settings: &ZooKeeperSettings, password: Option<&str>) -> Result<(), String> {
        let (Some(user), Some(password)) = (&settings.user, password) else { return Ok(()) };
        let auth = Out::new().int(0).text("digest").text(&format!("{user}:{password}"));
        self.out.extend(auth.frame(xid::AUTH, op::AUTH));
        self.flush().await?;
        let answer = self.answer(xid::AUTH).await?;
        self.good(&answer, "logging in")
    }

    /// Says anew who we are: the password may be another one.
    pub(super) async fn log_in_anew(&mut self, settings: &ZooKeeperSettings) -> Result<(), String> {
        let Some(file) = settings.password_file.clone() else { return Ok(()) };
        let password = tokio::task::spawn_blocking(move || Credentials::password(Some(&file))).await;
        let password = password.map_err(|error| error.to_string())??;
        self.log_in(settings, password.as_deref()).await
    }

    /// Asks something; it is sent by [`Session::flush`]. Its number.
    pub(super) fn ask(&mut self, op: i32, body: Out) -> i32 {
        self.last = if self.last == i32::MAX { 1 } else { self.last + 1 };
        self.out.extend(body.frame(self.last, op));
        self.last
    }

    /// Sends what is to be asked.
    pub(super) async fn flush(&mut self) -> Result<(), String> {
        if self.out.is_empty() {
            return Ok(());
        }
        let sent = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        let sent = timeout(PATIENCE, sent).await;
        self.out.clear();
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.said(&error.to_string())),
            Err(_) => Err(self.said("it takes nothing any more")),
        }
    }

    /// Asks something and waits for what comes of it; events meanwhile are nobody's.
    pub(super) async fn call(&mut self, op: i32, body: Out) -> Result<Answer, String> {
        let number = self.ask(op, body);
        self.flush().await?;
        self.answer(number).await
    }

    async fn answer(&mut self, number: i32) -> Result<Answer, String> {
        let answer = timeout(PATIENCE, async {
            loop {
                let answer = self.next().await?;
                if answer.xid == number {
                    return Ok::<_, String>(answer);
                }
            }
        });
        answer.await.unwrap_or_else(|_| Err(self.said("is silent")))
    }

    /// The next answer or event. Losing this future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Answer, String> {
        let frame = self.frame().await.map_err(|why| self.said(&why))?;
        self.heard = Instant::now();
        let mut body = In(frame);
        let head = |body: &mut In| Ok::<_, String>((body.int()?, body.long()?, body.int()?));
        let (xid, zxid, code) = head(&mut body).map_err(|why| self.said(&why))?;
        Ok(Answer { xid, zxid, code, body })
    }

    async fn frame(&mut self) -> Result<bytes::Bytes, String> {
        loop {
            if let Some(length) = self.read.first_chunk().map(|length| u32::from_be_bytes(*length)) {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > MAX_FRAME {
                    return Err(format!(
                        "it sends {length} bytes at once, the most are {MAX_FRAME}; is that a ZooKeeper?"
                    ));
                }
                if self.read.len() >= 4 + length {
                    self.read.advance(4);
                    return Ok(self.read.split_to(length).freeze());
                }
            }
            self.read.reserve(CHUNK);
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) => return Err("it ended the connection".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// When [`Session::beat`] is due.
    pub(super) fn due(&self) -> Instant {
        self.pinged + self.timeout / 3
    }

    /// Keeps the session, and finds out whether anybody is there.
    pub(super) async fn beat(&mut self) -> Result<(), String> {
        if self.heard.elapsed() > self.timeout * 2 / 3 {
            return Err(self.said(&format!("has been silent for {} s", self.heard.elapsed().as_secs())));
        }
        self.pinged = Instant::now();
        self.out.extend(Out::new().frame(xid::PING, op::PING));
        self.flush().await
    }

    /// Whether the session lives.
    pub(super) async fn alive(&mut self) -> Result<(), String> {
        self.out.extend(Out::new().frame(xid::PING, op::PING));
        self.flush().await?;
        let answer = self.answer(xid::PING).await?;
        self.good(&answer, "keeping the session")
    }

    /// An error where it is none of those.
    pub(super) fn good(&self, answer: &Answer, what: &str) -> Result<(), String> {
        if answer.code == code::OK { Ok(()) } else { Err(self.wrong(answer.code, what)) }
    }

    /// That it has answered with this error.
    pub(super) fn wrong(&self, code: i32, what: &str) -> String {
        let advice = match code {
            code::NO_AUTH | -115 => "; are user and passwordFile those of the nodes' ACL?",
            _ => "",
        };
        self.said(&format!("{what}: {} ({code}){advice}", meaning(code)))
    }

    pub(super) fn said(&self, why: &str) -> String {
        format!("ZooKeeper at {}: {why}", self.at)
    }
}

/// What is read from files, at each connection anew.
struct Credentials {
    password: Option<String>,
    tls: Option<Arc<ClientConfig>>,
}

impl Credentials {
    fn read(settings: &ZooKeeperSettings) -> Result<Self, String> {
        let password = Self::password(settings.password_file.as_deref())?;
        let wants_tls = settings.endpoints.iter().any(|endpoint| endpoint.starts_with("tls://"));
        let files = Files {
            ca: settings.ca_file.as_deref(),
            cert: settings.cert_file.as_deref(),
            key: settings.key_file.as_deref(),
        };
        let tls = wants_tls.then(|| files.tls(&[])).transpose()?;
        Ok(Self { password, tls })
    }

    fn password(file: Option<&Path>) -> Result<Option<String>, String> {
        let password = file.map(read_text).transpose()?;
        Ok(password.map(|text| text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_with_or_without_tls() {
        assert_eq!(place("zk1").unwrap().authority(), "zk1:2181");
        let tls = place("tls://zk1").unwrap();
        assert!(tls.tls && tls.port == 2281);
        assert_eq!(place("[fd00::7]:2182").unwrap().authority(), "[fd00::7]:2182");
        for bad in ["", "http://zk1:2181", "zk1:2181,zk2:2181", "zk1:2181/chroot"] {
            assert!(place(bad).unwrap_err().contains("HOST:PORT"), "{bad}");
        }
    }
}
