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
/// What questions may weigh together while they are answered: an object of seven bytes is hundreds in memory.
const ROOM: u32 = 96 << 20;
/// A map with anything in it, as serde_json keeps it; a list; what is in either.
const WEIGHTS: (u32, u32, u32) = (640, 128, 64);
/// Bodies on their way at once, and how long each may take: who is slow there holds up nobody whose question is whole.
const BODIES: (usize, Duration) = (64, Duration::from_secs(2));

/// One desk for each kind of question: who asks the one in crowds does not keep the other waiting.
pub(super) struct Desk {
    bodies: Semaphore,
    places: Semaphore,
    room: Semaphore,
    /// For a question, its body and its turn included.
    patience: Duration,
    pub(super) unreadable: AtomicU64,
}

impl Desk {
    pub(super) fn new(patience: Duration) -> Self {
        let (bodies, places) = (Semaphore::new(BODIES.0), Semaphore::new(QUESTIONS));
        let room = Semaphore::new(ROOM as usize);
        Self { bodies, places, room, patience, unreadable: AtomicU64::new(0) }
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
            let weight = weight(&body);
            if weight > ROOM {
                let why = "the body has more maps and lists than an object of a cluster ever has";
                return wrong(StatusCode::PAYLOAD_TOO_LARGE, why);
            }
            let Ok(_place) = self.places.acquire().await else { return overdue() };
            let Ok(_room) = self.room.acquire_many(weight).await else { return overdue() };
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

/// What JSON weighs in memory once it is read, at most.
fn weight(json: &[u8]) -> u32 {
    let (mut weight, mut in_string, mut escaped) = (json.len().min(MOST) as u32, false, false);
    for (at, byte) in json.iter().enumerate() {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'{') if json.get(at + 1) != Some(&b'}') => weight = weight.saturating_add(WEIGHTS.0),
            (false, b'[') => weight = weight.saturating_add(WEIGHTS.1),
            (false, b',' | b':') => weight = weight.saturating_add(WEIGHTS.2),
            _ => {}
        }
    }
    weight
}

fn wrong(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}

fn overdue() -> Response {
    wrong(StatusCode::SERVICE_UNAVAILABLE, "there are too many questions, or the body did not arrive in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_weighed_by_what_it_becomes() {
        let maps = |count: usize| format!("[{}]", vec![r#"{"":0}"#; count].join(","));
        let heavy = maps(MOST / 7 - 1);
        assert!(heavy.len() <= MOST && weight(heavy.as_bytes()) > ROOM, "3 MiB that would be 270");
        assert!(weight(maps(30_000).as_bytes()) < ROOM, "a large object of a cluster");
        let text = format!("{:?}", "{[,:".repeat(100_000) + "\\\"");
        assert_eq!(weight(text.as_bytes()) as usize, text.len(), "what is in a text is text");
        assert_eq!(weight(b"{}"), 2);
    }

    #[tokio::test]
    async fn what_is_too_heavy_is_not_read() {
        let desk = Desk::new(Duration::from_secs(9));
        let body = Body::from(format!("[{}]", vec![r#"{"":0}"#; 200_000].join(",")));
        let answer = desk.ask(body, |_| async { Err("read".to_owned()) }).await;
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let answer = desk.ask(Body::from("{}"), |_| async { Ok(Value::Null) }).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
}
