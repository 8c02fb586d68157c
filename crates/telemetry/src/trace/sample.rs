//! The sampling decision, taken once per request before anything is allocated.
//!
//! Parent-based: who has already decided is honoured in both directions. Only requests that nobody decided for are
//! drawn by ratio. Ids are 5 to 10 ns of thread-local randomness, and a request that passes costs none.

use super::context::{Format, Incoming, TraceContext};

/// What to do with the trace of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Build spans. `parent` is where they hang: the caller's position, or `None` for the root of a new trace.
    Record {
        /// Trace id and flags of the spans; its `parent` is meaningless for a root.
        context: TraceContext,
        /// Whether `context.parent` is a span of the caller; a root has none.
        has_parent: bool,
        /// The notation for the headers that go on.
        format: Format,
    },
    /// A new trace that is not recorded: write this context, so that no later hop draws again.
    Announce(TraceContext),
    /// Forward the headers as they came, byte for byte.
    Pass,
}

/// Draws for roots, honours everybody else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// A draw below this records; 2^64 is written as `None`.
    threshold: Option<u64>,
}

impl Sampler {
    /// Records `percentage` (0 to 100, clamped; NaN is 0) of the traces that begin here.
    pub fn percentage(percentage: f64) -> Self {
        let percentage = if percentage > 0.0 { percentage.min(100.0) } else { 0.0 };
        let threshold = (percentage < 100.0).then_some((percentage / 100.0 * 2_f64.powi(64)) as u64);
        Self { threshold }
    }

    /// Decides for one request.
    #[inline]
    pub fn decide(&self, incoming: &Incoming) -> Decision {
        match *incoming {
            Incoming::Invalid(_) | Incoming::Context { sampled: Some(false), .. } => Decision::Pass,
            Incoming::Decision { sampled: false, .. } => Decision::Pass,
            Incoming::Context { format, context, sampled: Some(true) } => {
                Decision::Record { context, has_parent: true, format }
            }
            Incoming::Context { format, context, sampled: None } if self.draw() => {
                Decision::Record { context: context.with_sampled(true), has_parent: true, format }
            }
            // The caller defers, we decline: deferred it stays for whoever comes next.
            Incoming::Context { sampled: None, .. } => Decision::Pass,
            Incoming::Decision { format, sampled: true } => {
                Decision::Record { context: TraceContext::root(true), has_parent: false, format }
            }
            Incoming::Absent => self.root(),
        }
    }

    fn root(&self) -> Decision {
        // At 0 % nobody here traces, and headers that nobody asked for would be noise.
        if self.threshold == Some(0) {
            return Decision::Pass;
        }
        if self.draw() {
            let context = TraceContext::root(true);
            return Decision::Record { context, has_parent: false, format: Format::W3c };
        }
        Decision::Announce(TraceContext::root(false))
    }

    #[inline]
    fn draw(&self) -> bool {
        self.threshold.is_none_or(|threshold| fastrand::u64(..) < threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(sampled: Option<bool>) -> Incoming {
        let context = TraceContext::root(sampled == Some(true));
        Incoming::Context { format: Format::W3c, context, sampled }
    }

    #[test]
    fn decision_of_the_caller_is_honoured_whatever_the_ratio() {
        for percentage in [0.0, 50.0, 100.0] {
            let sampler = Sampler::percentage(percentage);
            assert_eq!(sampler.decide(&incoming(Some(false))), Decision::Pass);
            assert_eq!(sampler.decide(&Incoming::Invalid(Format::W3c)), Decision::Pass);
            let sampled = incoming(Some(true));
            let Incoming::Context { context, .. } = sampled else { unreachable!() };
            assert_eq!(
                sampler.decide(&sampled),
                Decision::Record { context, has_parent: true, format: Format::W3c }
            );
            let forced = sampler.decide(&Incoming::Decision { format: Format::B3Multi, sampled: true });
            assert!(matches!(forced, Decision::Record { has_parent: false, format: Format::B3Multi, .. }));
            let denied = Incoming::Decision { format: Format::B3Single, sampled: false };
            assert_eq!(sampler.decide(&denied), Decision::Pass);
        }
    }

    #[test]
    fn deferred_decision_follows_the_ratio_and_keeps_the_trace() {
        let deferred = incoming(None);
        let Incoming::Context { context, .. } = deferred else { unreachable!() };
        assert_eq!(Sampler::percentage(0.0).decide(&deferred), Decision::Pass);
        let want =
            Decision::Record { context: context.with_sampled(true), has_parent: true, format: Format::W3c };
        assert_eq!(Sampler::percentage(100.0).decide(&deferred), want);
    }

    #[test]
    fn roots_are_drawn_by_ratio_and_the_rest_is_announced() {
        fastrand::seed(7);
        let sampler = Sampler::percentage(10.0);
        let (mut recorded, mut announced) = (0, 0);
        for _ in 0..20_000 {
            match sampler.decide(&Incoming::Absent) {
                Decision::Record { context, has_parent: false, .. } if context.sampled() => recorded += 1,
                Decision::Announce(context) if !context.sampled() => announced += 1,
                other => panic!("{other:?}"),
            }
        }
        // 2000 expected, standard deviation 42.
        assert!((1750..2250).contains(&recorded), "{recorded}");
        assert_eq!(recorded + announced, 20_000);
    }

    #[test]
    fn extremes_never_draw_the_other_way() {
        for _ in 0..2000 {
            assert_eq!(Sampler::percentage(0.0).decide(&Incoming::Absent), Decision::Pass);
            assert_eq!(Sampler::percentage(f64::NAN).decide(&Incoming::Absent), Decision::Pass);
            let all = Sampler::percentage(250.0).decide(&Incoming::Absent);
            assert!(matches!(all, Decision::Record { .. }));
        }
    }
}
