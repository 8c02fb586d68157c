//! Where questions of API servers arrive: each bounded in bytes and time, all of them in number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::Semaphore;

/// An API server sends objects of at most 3 MiB.
pub(super) const MOST: usize = 3 << 20;
/// Questions at once; others wait for their turn.
const QUESTIONS: usize = 16;
/// Bodies on their way at once, and how long each may take: who is slow there holds up nobody whose question is whole.
const BODIES: (usize, Duration) = (64, Duration::from_secs(2));

/// One desk for each kind of question: who asks the one in crowds does not keep the other waiting.
pub(super) struct Desk {
    bodies: Semaphore,
    places: Semaphore,
    /// For a question, its body and its turn included.
    patience: Duration,
    pub(super) unreadable: AtomicU64,
}

impl Desk {
    pub(super) fn new(patience: Duration) -> Self {
        let (bodies, places) = (Semaphore::new(BODIES.0), Semaphore::new(QUESTIONS));
        Self { bodies, places, patience, unreadable: AtomicU64::new(0) }
    }

    /// The answer to a question, or what is wrong with it.
    pub(super) async fn ask<F>(&self, body: Body, answer: impl FnOnce(Bytes) -> F) -> Response
    where
        F: Future<Output = Result<Value, String>>,
    {
        let asked = async {
            let Ok(place) = self.bodies.acquire().await else { return overdue() };
            let read = tokio::time::timeout(BODIES.1, to_bytes(body, MOST)).await;
            drop(place);
            let body: Bytes = match read {
                Err(_) => return overdue(),
                Ok(Ok(body)) => body,
                Ok(Err(error)) => {
                    return wrong(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        &format!("the body: {error}; {MOST} bytes are the most"),
                    );
                }
            };
            let Ok(_place) = self.places.acquire().await else { return overdue() };
            match answer(body).await {
                Ok(answer) => axum::Json(answer).into_response(),
                Err(why) => {
                    self.unreadable.fetch_add(1, Ordering::Relaxed);
                    wrong(StatusCode::BAD_REQUEST, &why)
                }
            }
        };
        tokio::time::timeout(self.patience, asked).await.unwrap_or_else(|_| overdue())
    }
}

fn wrong(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}

fn overdue() -> Response {
    wrong(StatusCode::SERVICE_UNAVAILABLE, "there are too many questions, or the body did not arrive in time")
}
