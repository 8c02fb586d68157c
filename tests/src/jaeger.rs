//! A real Jaeger with its memory store, and its query API.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::app::{body, get};
use crate::wait::eventually;

/// A running Jaeger; it ends with this value.
pub struct Jaeger {
    child: Child,
    places: Places,
}

/// Where it listens.
#[derive(Clone, Copy)]
pub struct Places {
    /// OTLP over gRPC.
    pub otlp: SocketAddr,
    /// The query API over HTTP.
    pub query: SocketAddr,
    /// The query API over gRPC, which it wants to have.
    pub query_grpc: SocketAddr,
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Jaeger {
    /// Starts it with its files in `directory`, and waits until it answers.
    pub async fn start(program: &Path, directory: &Path, places: Places) -> Self {
        let config = json!({
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": { "traces": { "receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"] } },
                "telemetry": { "metrics": { "level": "none" } },
            },
            "extensions": {
                "jaeger_storage": { "backends": { "memory": { "memory": { "max_traces": 10_000 } } } },
                "jaeger_query": {
                    "storage": { "traces": "memory" },
                    "grpc": { "endpoint": places.query_grpc },
                    "http": { "endpoint": places.query },
                },
            },
            "receivers": { "otlp": { "protocols": { "grpc": { "endpoint": places.otlp } } } },
            "exporters": { "jaeger_storage_exporter": { "trace_storage": "memory" } },
        });
        let file = directory.join("jaeger.json");
        std::fs::write(&file, config.to_string()).expect("a file in the test's own directory");
        let log =
            std::fs::File::create(directory.join("jaeger.log")).expect("a file in the test's own directory");
        let mut command = Command::new(program);
        command.arg("--config").arg(&file).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        let jaeger = Self { child: command.spawn().expect("Jaeger starts"), places };
        eventually("Jaeger answers", || get(places.query, "/api/services", "")).await;
        jaeger
    }

    /// The traces that a query of its API gives.
    ///
    /// # Errors
    /// What it answered instead.
    pub async fn query(&self, path: &str) -> Result<Vec<Value>, String> {
        let (_, text) = get(self.places.query, path, "").await.map_err(|error| error.to_string())?;
        // The body may be chunked: the one JSON value in it is looked for.
        let body = body(&text);
        let from = body.find('{').ok_or_else(|| text.clone())?;
        let mut values = serde_json::Deserializer::from_str(&body[from..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => Ok(value["data"].as_array().cloned().unwrap_or_default()),
            _ => Err(text),
        }
    }

    /// A trace by id, once it holds `count` spans.
    pub async fn trace(&self, id: &str, count: usize) -> Value {
        eventually("the whole trace in Jaeger", || async {
            let trace =
                self.query(&format!("/api/traces/{id}")).await?.into_iter().next().unwrap_or_default();
            let spans = trace["spans"].as_array().map_or(0, Vec::len);
            if spans == count { Ok(trace) } else { Err(format!("{spans} of {count} spans: {trace}")) }
        })
        .await
    }
}
