//! `traces`: waterfalls from anything that speaks Jaeger's query API.

use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::waterfall::{self, Trace};

/// Show traces.
#[derive(Debug, clap::Args)]
pub(crate) struct Traces {
    /// Jaeger's query API, `http://host:port`: a Jaeger, or the control plane's own store
    #[arg(long, env = "OUTRIGGER_TRACES", default_value = "http://127.0.0.1:15019")]
    query: String,
    /// Service, such as web.shop
    #[arg(long)]
    service: Option<String>,
    /// One trace by id
    #[arg(long, conflicts_with = "service")]
    id: Option<String>,
    /// Newest traces to show
    #[arg(long, default_value_t = 1)]
    limit: u32,
}

impl Traces {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let traces = match (&self.id, &self.service) {
            (Some(id), _) => fetch(&self.query, &format!("/api/traces/{id}")).await?,
            (None, Some(service)) => {
                fetch(&self.query, &format!("/api/traces?service={service}&limit={}", self.limit)).await?
            }
            (None, None) => {
                services(&self.query).await?.iter().for_each(|service| println!("{service}"));
                eprintln!("choose one of these services with --service");
                return Ok(ExitCode::SUCCESS);
            }
        };
        if traces.is_empty() {
            let known = services(&self.query).await?;
            match &self.service {
                Some(asked) if !known.contains(asked) => {
                    eprintln!("{}", unknown(asked, &known));
                    return Ok(ExitCode::FAILURE);
                }
                _ => eprintln!("no traces; sampling may be low, or the workload not called yet"),
            }
        }
        for trace in &traces {
            println!("{}", waterfall::render(trace));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The services that have sent spans.
async fn services(base: &str) -> anyhow::Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Services {
        data: Option<Vec<String>>,
    }
    let body = get(base, "/api/services").await?;
    let services: Services = serde_json::from_slice(&body).with_context(|| format!("{base}/api/services"))?;
    Ok(services.data.unwrap_or_default())
}

/// A name without its namespace is the usual slip.
fn unknown(asked: &str, known: &[String]) -> String {
    let same = |name: &&String| name.split('.').next() == asked.split('.').next();
    let near: Vec<&str> = known.iter().filter(same).map(String::as_str).collect();
    let said = format!("no service \"{asked}\" has sent a span");
    match (near.as_slice(), known) {
        ([], []) => {
            format!("{said}, nor has any other: is tracing.otlp set in the sidecars' bootstrap files?")
        }
        ([], known) => format!("{said}; these have: {}", known.join(", ")),
        (near, _) => format!("{said}; did you mean {}?", near.join(" or ")),
    }
}

/// Traces of a query.
pub(crate) async fn fetch(base: &str, path: &str) -> anyhow::Result<Vec<Trace>> {
    waterfall::parse(&get(base, path).await?)
}

/// A GET over plain HTTP.
pub(crate) async fn get(base: &str, path: &str) -> anyhow::Result<Bytes> {
    let authority =
        base.strip_prefix("http://").with_context(|| format!("\"{base}\" is not http://host:port"))?;
    let authority = authority.trim_end_matches('/');
    let tcp = TcpStream::connect(authority).await.with_context(|| format!("cannot connect to {base}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let connection = tokio::spawn(connection);
    let request =
        hyper::Request::get(path).header(hyper::header::HOST, authority).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), 64 << 20).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("{base}{path}: {error}"))?.to_bytes();
    if !status.is_success() {
        bail!("{base}{path}: {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::unknown;

    #[test]
    fn an_unknown_service_is_told_from_one_without_traces() {
        let known = ["catalog.shop".to_owned(), "web.shop".to_owned(), "web.bank".to_owned()];
        assert!(unknown("catalog", &known).ends_with("did you mean catalog.shop?"));
        assert!(unknown("web.shp", &known).ends_with("did you mean web.shop or web.bank?"));
        assert!(unknown("stock", &known).ends_with("these have: catalog.shop, web.shop, web.bank"));
        assert!(unknown("stock", &[]).contains("tracing.otlp"));
    }
}
