//! Questions over HTTP/1 to a registry of others, over one connection that is kept: what Eureka and Nacos are asked by.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;

use crate::outside::{Files, Http1, Place, read_text, unescaped};

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer.
const MAX_ANSWER: usize = 64 << 20;
/// What an error says is cut to this.
const MAX_ERROR: usize = 512;

/// Where a registry is asked.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) place: Place,
    /// Before every path; without a `/` at its end.
    pub(super) base: String,
    /// Name and password of the URL.
    pub(super) user: Option<(String, String)>,
}

impl Url {
    /// `http://[NAME:PASSWORD@]HOST[:PORT][/BASE]`, or `https://`. What is wrong is said without the password.
    pub(super) fn parse(text: &str, ports: (u16, u16)) -> Result<Self, String> {
        let wrong = || "it is no URL; write http://HOST:PORT/PATH or https://HOST:PORT/PATH".to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.split_once(':').ok_or_else(wrong)?), host),
            None => (None, authority),
        };
        let place = Place::parse(&format!("{scheme}://{host}"), ports).map_err(|_| wrong())?;
        let base = base.trim_end_matches('/');
        if base.contains(['?', '#', ' ']) || base.chars().any(char::is_control) {
            return Err(wrong());
        }
        let user = user.map(|(name, password)| (unescaped(name), unescaped(password)));
        Ok(Self { place, base: base.to_owned(), user })
    }
}

/// URLs as they may be kept: without names and passwords.
pub(super) fn without_users<S: serde::Serializer>(urls: &[String], out: S) -> Result<S::Ok, S::Error> {
    let bare = |url: &String| {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (_, host) = authority.rsplit_once('@')?;
        Some(format!("{scheme}://{host}{base}"))
    };
    out.collect_seq(urls.iter().map(|url| bare(url).unwrap_or_else(|| url.clone())))
}

/// How the servers of a row are asked.
pub(super) struct Access<'a> {
    /// What they are, for errors.
    pub(super) what: &'static str,
    pub(super) user: Option<&'a String>,
    pub(super) password_file: Option<&'a PathBuf>,
    pub(super) ca_file: Option<&'a PathBuf>,
    pub(super) cert_file: Option<&'a PathBuf>,
    pub(super) key_file: Option<&'a PathBuf>,
    pub(super) server_name: Option<&'a String>,
}

impl Access<'_> {
    /// What cannot work.
    pub(super) fn validate(&self, urls: &[String], ports: (u16, u16)) -> Result<(), String> {
        if urls.is_empty() {
            return Err("urls: at least one is needed".to_owned());
        }
        for (i, url) in urls.iter().enumerate() {
            let url = Url::parse(url, ports).map_err(|why| format!("urls[{i}]: {why}"))?;
            let tls = [self.ca_file.is_some(), self.cert_file.is_some(), self.server_name.is_some()];
            if !url.place.tls && tls.contains(&true) {
                return Err(format!(
                    "urls[{i}]: is http://, but caFile, certFile and serverName are for https://"
                ));
            }
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err("user, passwordFile: one needs the other".to_owned());
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err("certFile, keyFile: one needs the other".to_owned());
        }
        Ok(())
    }

    /// The user's password. Blocks.
    pub(super) fn password(&self) -> Result<Option<(String, String)>, String> {
        let Some((user, file)) = self.user.zip(self.password_file) else { return Ok(None) };
        Ok(Some((user.clone(), read_text(file)?.trim_end_matches(['\r', '\n']).to_owned())))
    }

    /// One of them; nothing is connected yet. Blocks.
    pub(super) fn open(&self, url: &Url) -> Result<Http, String> {
        let files = Files {
            ca: self.ca_file.map(PathBuf::as_path),
            cert: self.cert_file.map(PathBuf::as_path),
            key: self.key_file.map(PathBuf::as_path),
        };
        let tls = url.place.tls.then(|| files.tls(&[])).transpose()?;
        let authority = url.place.authority();
        let (what, server_name) = (self.what, self.server_name.cloned());
        Ok(Http { what, authority, url: url.clone(), tls, server_name, authorization: None, kept: None })
    }
}

/// An answer.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// One server.
pub(super) struct Http {
    what: &'static str,
    pub(super) authority: String,
    url: Url,
    tls: Option<Arc<ClientConfig>>,
    server_name: Option<String>,
    authorization: Option<HeaderValue>,
    kept: Option<Http1>,
}

impl Http {
    /// With a name and a password at every question (RFC 7617): of the settings, else of the URL.
    pub(super) fn with_basic(mut self, of_settings: Option<(String, String)>) -> Result<Self, String> {
        let Some((name, password)) = of_settings.or_else(|| self.url.user.clone()) else { return Ok(self) };
        let value = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
        let mut value = HeaderValue::try_from(value).map_err(|error| self.failed(&error))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// How TLS is spoken with it.
    pub(super) fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    pub(super) fn failed(&self, error: &dyn std::fmt::Display) -> String {
        format!("{} at {}: {error}", self.what, self.authority)
    }

    /// What an answer that is none says; `advice` where it is about who we are.
    pub(super) fn refused(&self, path: &str, reply: &Reply, advice: &str) -> String {
        let path = path.split('?').next().unwrap_or_default();
        let said = String::from_utf8_lossy(&reply.body[..reply.body.len().min(MAX_ERROR)]);
        let is_auth = matches!(reply.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let advice = if is_auth { advice } else { "" };
        format!(
            "{} at {} answers {path} with {}: {}{advice}",
            self.what,
            self.authority,
            reply.status,
            said.trim()
        )
    }

    /// Asks on the connection that was kept, or where there is none or it has ended meanwhile on a new one: what is asked may be asked twice.
    pub(super) async fn ask(
        &mut self,
        method: &Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Reply, String> {
        if let Some(kept) = self.kept.take()
            && let Ok(reply) = self.ask_on(kept, method, path, body.clone()).await
        {
            return Ok(reply);
        }
        let stream = self.url.place.connect(self.tls.as_ref(), self.server_name.as_deref()).await;
        let stream = stream
            .map_err(|error| format!("{} at {} cannot be reached: {error}", self.what, self.authority))?;
        let connection = Http1::over(stream).await.map_err(|error| self.failed(&error))?;
        self.ask_on(connection, method, path, body).await
    }

    async fn ask_on(
        &mut self,
        mut connection: Http1,
        method: &Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Reply, String> {
        let uri = format!("{}{path}", self.url.base);
        let mut request = Request::builder().method(method).uri(uri).header(HOST, &self.authority);
        request = request.header(ACCEPT, "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let body = body.map(|(kind, body)| {
            request = std::mem::take(&mut request).header(CONTENT_TYPE, kind);
            body
        });
        let request =
            request.body(Full::new(body.unwrap_or_default())).map_err(|error| self.failed(&error))?;
        let asked = timeout(PATIENCE, async {
            let response = connection.sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Reply { status: head.status, body })
        });
        let asked =
            asked.await.map_err(|_| self.failed(&format!("is silent for {} s", PATIENCE.as_secs())))?;
        let reply = asked.map_err(|error| self.failed(&error))?;
        if connection.sender.ready().await.is_ok() {
            self.kept = Some(connection);
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_base_and_perhaps_a_password_that_no_error_tells() {
        let url = Url::parse("https://me:p%40ss@eureka.internal:8761/eureka/", (80, 443)).unwrap();
        assert_eq!((&*url.base, url.place.authority()), ("/eureka", "eureka.internal:8761".to_owned()));
        assert_eq!(url.user, Some(("me".to_owned(), "p@ss".to_owned())));
        let bare = Url::parse("http://[fd00::7]", (8848, 443)).unwrap();
        assert_eq!((&*bare.base, bare.place.port), ("", 8848));
        for bad in [
            "eureka:8761",
            "http://me:secret@",
            "http://secret@eureka",
            "ftp://a:secret@b",
            "http://a/secret?b",
        ] {
            let why = Url::parse(bad, (80, 443)).err().unwrap();
            assert!(why.contains("no URL") && !why.contains("secret"), "{why}");
        }
    }
}
