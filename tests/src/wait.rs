//! Waiting for conditions; the only place of the tests that sleeps.

use std::time::{Duration, Instant};

/// Asks until the answer is there.
///
/// # Panics
/// When it does not come within 30 s; says what was waited for and what the last answer was.
pub async fn eventually<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
