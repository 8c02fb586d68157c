//! Wakes the connections of a worker for what hardly ever comes: the drain, or the end of one of them.
//!
//! A future per connection that waits for each of these would be larger than most of what an idle connection keeps, and be
//! polled with every request. So each task leaves its waker in a place here, and looks at the flags when it runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use outrigger_telemetry::Drain;
use slab::Slab;

#[derive(Default)]
struct Inner {
    places: RefCell<Slab<Option<Waker>>>,
    watching: Cell<bool>,
}

/// The wakers of a worker's connections; a clone is another handle.
#[derive(Clone, Default)]
pub struct Alarm(Rc<Inner>);

/// One task's place.
pub struct Place {
    alarm: Rc<Inner>,
    key: usize,
}

impl Alarm {
    /// A place that is rung at each step of the drain. Call it on the worker's runtime.
    pub fn place(&self, drain: &Drain) -> Place {
        if !self.0.watching.replace(true) {
            let (alarm, drain) = (self.0.clone(), drain.clone());
            tokio::task::spawn_local(async move {
                drain.draining().await;
                alarm.ring_all();
                drain.forced().await;
                alarm.ring_all();
            });
        }
        let key = self.0.places.borrow_mut().insert(None);
        Place { alarm: self.0.clone(), key }
    }
}

impl Inner {
    fn ring_all(&self) {
        // Whoever is woken runs later, on this thread: nobody comes or goes meanwhile.
        self.places.borrow().iter().filter_map(|(_, waker)| waker.as_ref()).for_each(Waker::wake_by_ref);
    }
}

impl Place {
    /// The task that is woken from now on.
    pub fn register(&self, cx: &Context<'_>) {
        if let Some(waker) = self.alarm.places.borrow_mut().get_mut(self.key)
            && !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Wakes this task.
    pub fn ring(&self) {
        if let Some(Some(waker)) = self.alarm.places.borrow().get(self.key) {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Dropping a waker may drop a task, and its place.
        let waker = self.alarm.places.borrow_mut().try_remove(self.key);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::task::LocalSet;

    use super::*;

    async fn until(place: Place, come: impl Fn() -> bool) {
        poll_fn(|cx| {
            place.register(cx);
            if come() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[tokio::test]
    async fn every_place_hears_each_step_of_the_drain() {
        let set = LocalSet::new();
        set.run_until(async {
            let (alarm, drain) = (Alarm::default(), Drain::new());
            let waiting = |forced: bool| {
                let (place, drain) = (alarm.place(&drain), drain.clone());
                let come = move || if forced { drain.is_forced() } else { drain.is_draining() };
                tokio::task::spawn_local(until(place, come))
            };
            let (draining, forced) = (waiting(false), waiting(true));
            drain.begin();
            draining.await.unwrap();
            assert!(!forced.is_finished());
            drain.force();
            forced.await.unwrap();
            assert!(alarm.0.places.borrow().is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn one_place_is_rung_alone() {
        let set = LocalSet::new();
        set.run_until(async {
            let (alarm, drain) = (Alarm::default(), Drain::new());
            let flag = Rc::new(Cell::new(false));
            let place = Rc::new(alarm.place(&drain));
            let (mine, come) = (place.clone(), flag.clone());
            let task = tokio::task::spawn_local(poll_fn(move |cx| {
                mine.register(cx);
                if come.get() { Poll::Ready(()) } else { Poll::Pending }
            }));
            tokio::task::yield_now().await;
            flag.set(true);
            place.ring();
            task.await.unwrap();
        })
        .await;
    }
}
