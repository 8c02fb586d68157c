//! Asks for keys: one request, no redirects, an answer of bounded length that is a JWKS.

use std::time::Duration;

use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use outrigger_identity::upstream::{UpstreamTls, upstream_client_config};
use outrigger_model::token::check_keys;
use outrigger_rules::intent::KeySource;
use serde::Deserialize;
use tokio::time::timeout;

use crate::outside::{Http1, Place};

/// The longest answer.
const MOST_BYTES: usize = 256 * 1024;

/// The keys at a place, as a JWKS.
pub(super) async fn keys(source: &KeySource, patience: Duration) -> Result<String, String> {
    let fetched = timeout(patience, fetch(source)).await;
    fetched.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}

async fn fetch(source: &KeySource) -> Result<String, String> {
    let first = source.url();
    let text = match source {
        KeySource::Url(_) => get(&first).await?,
        KeySource::Discovery(issuer) => {
            let named = named_in(&get(&first).await?, issuer)?;
            get(&named).await.map_err(|why| format!("{named}: {why}"))?
        }
    };
    check_keys(&text).map_err(|why| format!("what is there {why}"))?;
    Ok(text)
}

/// OpenID Connect Discovery 1.0, section 4.3: the document must be of the issuer that was asked.
fn named_in(document: &str, issuer: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Document {
        issuer: String,
        jwks_uri: String,
    }
    let document: Document = serde_json::from_str(document)
        .map_err(|error| format!("is no document of OpenID Connect Discovery: {error}"))?;
    match document.issuer.trim_end_matches('/') == issuer.trim_end_matches('/') {
        true if issuer.starts_with("https://") && !document.jwks_uri.starts_with("https://") => {
            Err(format!("names keys that are not at https://: \"{}\"", document.jwks_uri.escape_debug()))
        }
        true => Ok(document.jwks_uri),
        false => Err(format!("is of the issuer \"{}\", not of \"{issuer}\"", document.issuer.escape_debug())),
    }
}

async fn get(url: &str) -> Result<String, String> {
    let uri: Uri = url.parse().map_err(|error| format!("\"{}\" is no URL: {error}", url.escape_debug()))?;
    if url.contains('@') {
        return Err(format!("\"{}\" has a user in it, who is not sent", url.escape_debug()));
    }
    let (Some(host), Some(scheme)) = (uri.host(), uri.scheme_str()) else {
        return Err(format!("\"{}\" is no URL, http:// or https://", url.escape_debug()));
    };
    let is_tls = match scheme {
        "https" => true,
        "http" => false,
        other => return Err(format!("the scheme {other} is none that is asked; use http or https")),
    };
    let place = Place {
        tls: is_tls,
        host: host.trim_matches(['[', ']']).to_owned(),
        port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
    };
    let tls = if is_tls {
        Some(upstream_client_config(&UpstreamTls::default()).map_err(|error| error.to_string())?)
    } else {
        None
    };
    let stream = place.connect(tls.as_ref(), None).await;
    let stream = stream.map_err(|error| format!("{} cannot be reached: {error}", place.authority()))?;
    ask(Http1::over(stream).await.map_err(|error| error.to_string())?, &uri).await
}

async fn ask(mut connection: Http1, uri: &Uri) -> Result<String, String> {
    let target = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let request = Request::get(target)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "outrigger-control")
        .body(Full::default())
        .map_err(|error| error.to_string())?;
    let response = connection.sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("the answer is {}", head.status));
    }
    let body = Limited::new(body, MOST_BYTES).collect().await.map_err(|error| error.to_string())?;
    String::from_utf8(body.to_bytes().to_vec()).map_err(|_| "the answer is no text".to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const KEYS: &str = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#;

    /// Answers each path with a text until the test ends.
    async fn server(answer: impl Fn(&str, &str) -> String + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = format!("http://{}", listener.local_addr().unwrap());
        let base = own.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let path = head.split(' ').nth(1).unwrap();
                let _ = stream.write_all(answer(&base, path).as_bytes()).await;
            }
        });
        own
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn issuer(base: &str, path: &str) -> String {
        match path {
            "/keys?v=1" => ok(KEYS),
            "/good/.well-known/openid-configuration" => {
                ok(&format!(r#"{{"issuer": "{base}/good", "jwks_uri": "{base}/keys?v=1"}}"#))
            }
            "/liar/.well-known/openid-configuration" => {
                ok(&format!(r#"{{"issuer": "https://elsewhere", "jwks_uri": "{base}/keys?v=1"}}"#))
            }
            "/user/.well-known/openid-configuration" => {
                ok(&format!(r#"{{"issuer": "{base}/user", "jwks_uri": "http://u@127.0.0.1/"}}"#))
            }
            "/moved" => "HTTP/1.1 302 Found\r\nlocation: /keys?v=1\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "/long" => ok(&" ".repeat(MOST_BYTES + 1)),
            "/silent" => String::new(),
            _ => ok("<html>"),
        }
    }

    #[test]
    fn an_issuer_behind_tls_names_keys_behind_tls() {
        let document = |keys: &str| format!(r#"{{"issuer": "https://a", "jwks_uri": "{keys}"}}"#);
        assert_eq!(named_in(&document("https://b/keys"), "https://a/").as_deref(), Ok("https://b/keys"));
        assert!(named_in(&document("http://b/keys"), "https://a").unwrap_err().contains("not at https://"));
    }

    #[tokio::test]
    async fn keys_come_from_a_url_or_where_the_issuer_says() {
        let base = server(issuer).await;
        let second = Duration::from_secs(5);
        let url = |path: &str| KeySource::Url(format!("{base}{path}"));
        assert_eq!(keys(&url("/keys?v=1"), second).await, Ok(KEYS.to_owned()));
        let of = |path: &str| KeySource::Discovery(format!("{base}{path}"));
        assert_eq!(keys(&of("/good"), second).await, Ok(KEYS.to_owned()));
        for (source, said) in [
            (of("/liar"), "is of the issuer \"https://elsewhere\""),
            (of("/user"), "has a user in it"),
            (of("/none"), "is no document of OpenID Connect Discovery"),
            (url("/html"), "what is there is no JSON"),
            (url("/moved"), "the answer is 302 Found"),
            (url("/long"), "length limit exceeded"),
            (KeySource::Url("http://127.0.0.1:1/".to_owned()), "cannot be reached"),
            (KeySource::Url("gopher://a/".to_owned()), "use http or https"),
            (KeySource::Url("http://[".to_owned()), "is no URL"),
        ] {
            let why = keys(&source, second).await.unwrap_err();
            assert!(why.contains(said), "{source}: {why}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = KeySource::Url(format!("http://{}/", listener.local_addr().unwrap()));
        let why = keys(&silent, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(why, "no answer within 50ms");
    }
}
