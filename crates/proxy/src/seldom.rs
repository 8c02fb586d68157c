//! Waiting for what hardly ever comes (a drain, a change of policy) beside what comes all the time.
//!
//! A future that waits for a notification has to be polled once for each waker, not each time that its task runs: looking
//! at a flag is ten times cheaper.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Remembers who was registered.
#[derive(Debug, Default)]
pub struct Seldom {
    waker: Option<Waker>,
}

impl Seldom {
    /// Polls `future` if it is `due`, or if it does not know this waker yet. It must register its waker whenever it is
    /// pending (`tokio::task::unconstrained`: a used-up budget would keep it from that).
    pub fn poll<F: Future>(
        &mut self,
        cx: &mut Context<'_>,
        due: bool,
        future: Pin<&mut F>,
    ) -> Poll<F::Output> {
        let known = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if known && !due {
            return Poll::Pending;
        }
        if !known {
            self.waker = Some(cx.waker().clone());
        }
        future.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn a_registered_waiter_is_polled_only_when_it_is_due() {
        let mut polls = 0;
        let mut seldom = Seldom::default();
        let waker = Waker::from(Arc::new(Nobody));
        let mut cx = Context::from_waker(&waker);
        {
            let mut future = pin!(poll_fn(|_| {
                polls += 1;
                if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
            }));
            assert!(seldom.poll(&mut cx, false, future.as_mut()).is_pending());
            assert!(seldom.poll(&mut cx, false, future.as_mut()).is_pending());
            assert!(seldom.poll(&mut cx, true, future.as_mut()).is_ready());
        }
        assert_eq!(polls, 2);
        assert!(Seldom::default().poll(&mut cx, true, pin!(pending::<()>())).is_pending());
    }
}
