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
                let body = get(&self.query, "/api/services").await?;
                let services: serde_json::Value = serde_json::from_slice(&body)?;
                for service in services["data"].as_array().into_iter().flatten().filter_map(|s| s.as_str()) {
                    println!("{service}");
                }
                eprintln!("choose one of these services with --service");
                return Ok(ExitCode::SUCCESS);
            }
        };
        if traces.is_empty() {
            eprintln!("no traces; sampling may be low, or the workload not called yet");
        }
        for trace in &traces {
            println!("{}", waterfall::render(trace));
        }
        Ok(ExitCode::SUCCESS)
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
