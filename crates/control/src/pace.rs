//! The pauses of a watch that fails: they grow until the API server has answered.
//!
//! The client's own back-off begins anew with every word of a watch, and a watch says `Init` before each listing that it tries: one that fails
//! again and again would be tried at the shortest pause for ever, by each watch of each of us.

use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use kube::runtime::watcher::{Error, Event};

/// The pause before the next try: at first, at most, and now.
pub(crate) struct Pace {
    first: Duration,
    most: Duration,
    now: Duration,
}

impl Pace {
    pub(crate) fn new((first, most): (Duration, Duration)) -> Self {
        Self { first, most, now: first }
    }

    /// Up to half of it more by chance.
    fn pause(&mut self) -> Duration {
        let now = self.now;
        self.now = (now * 2).min(self.most);
        now.mul_f64(1.0 + fastrand::f64() / 2.0)
    }

    /// What is listed to its end, or heard, was answered.
    fn hear<K>(&mut self, event: &Event<K>) {
        if !matches!(event, Event::Init | Event::InitApply(_)) {
            self.now = self.first;
        }
    }
}

/// A watch that is asked for more only after a pause, when it has failed.
pub(crate) fn paced<K: Send + 'static>(
    watch: impl Stream<Item = Result<Event<K>, Error>> + Send + 'static,
    pace: Pace,
) -> BoxStream<'static, Result<Event<K>, Error>> {
    let begin = (watch.boxed(), pace, None::<Duration>);
    let following = stream::unfold(begin, |(mut watch, mut pace, pause)| async move {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let event = watch.next().await?;
        let pause = match &event {
            Ok(event) => {
                pace.hear(event);
                None
            }
            Err(_) => Some(pace.pause()),
        };
        Some((event, (watch, pace, pause)))
    });
    following.boxed()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn listings_that_fail_are_tried_less_and_less_until_one_is_whole() {
        let fails = || Err(Error::NoResourceVersion);
        let words: Vec<Result<Event<u8>, Error>> = vec![
            Ok(Event::Init),
            fails(),
            Ok(Event::Init),
            Ok(Event::InitApply(1)),
            fails(),
            Ok(Event::Init),
            fails(),
            Ok(Event::Init),
            Ok(Event::InitDone),
            fails(),
            Ok(Event::Apply(1)),
        ];
        let pace = Pace::new((Duration::from_millis(500), Duration::from_secs(1)));
        let mut watch = paced(stream::iter(words), pace);
        let (mut pauses, mut failed) = (Vec::new(), None);
        while let Some(word) = watch.next().await {
            pauses.extend(failed.take().map(|at: Instant| at.elapsed().as_millis()));
            failed = word.is_err().then(Instant::now);
        }
        let bounds = [500..=751, 1000..=1501, 1000..=1501, 500..=751];
        assert_eq!(pauses.len(), bounds.len());
        for (pause, bound) in pauses.iter().zip(bounds) {
            assert!(bound.contains(pause), "{pauses:?}");
        }
    }
}
