//! How long a stream of a route may last, and how long it may be silent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Of the streams of a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamLimits {
    /// From the request's head to the end of the response, whatever is on its way (`max_stream_duration`). Zero: for ever; absent: as the
    /// listener says.
    pub max_duration: Option<Duration>,
    /// In a call's own `grpc-timeout` there is another.
    pub grpc_duration: Option<GrpcTimeout>,
    /// The same for the route's timeout, of calls of gRPC with and without a time of their own (`max_grpc_timeout`).
    pub grpc_timeout: Option<GrpcTimeout>,
    /// Without a byte in either direction. Zero: for ever. Absent: as the listener says.
    pub idle_timeout: Option<Duration>,
}

/// What a call's own `grpc-timeout` counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrpcTimeout {
    /// At most so much; zero: whatever it says.
    pub max: Duration,
    /// So much less of it.
    pub offset: Duration,
}

impl StreamLimits {
    /// Nothing, if there is no limit.
    pub fn if_any(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }

    /// Whether they say anything of a request, which is a call of gRPC's or is not.
    #[inline]
    pub fn concern(&self, is_grpc: bool) -> bool {
        is_grpc || self.max_duration.is_some() || self.grpc_duration.is_some() || self.idle_timeout.is_some()
    }

    /// Whether they say how long a stream may last, or leave it to the listener.
    pub fn says_duration(&self, said: Option<Duration>) -> bool {
        self.max_duration.is_some() || (self.grpc_duration.is_some() && said.is_some())
    }

    /// How long a stream may last, by its `grpc-timeout`. As Envoy: of a call that says a time its own holds where that counts, even
    /// where it is none after all.
    pub fn duration(&self, said: Option<Duration>) -> Option<Duration> {
        match (self.grpc_duration, said) {
            (Some(rule), Some(said)) => Some(rule.capped(said).saturating_sub(rule.offset)),
            _ => self.max_duration.filter(|limit| !limit.is_zero()),
        }
    }

    /// The route's timeout for a call of gRPC; `None`: what it is for all requests. Zero is for ever.
    pub fn timeout(&self, said: Option<Duration>) -> Option<Duration> {
        let rule = self.grpc_timeout?;
        let said = said.unwrap_or_default();
        // An offset that leaves nothing would make it last for ever.
        let said = if rule.offset < said { said - rule.offset } else { said };
        let endless = said.is_zero() && !rule.max.is_zero();
        Some(if endless { rule.max } else { rule.capped(said) })
    }
}

impl GrpcTimeout {
    fn capped(self, said: Duration) -> Duration {
        if self.max.is_zero() { said } else { said.min(self.max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_call_has_its_own_time_up_to_a_limit_and_less_an_offset() {
        let of = |max, offset| StreamLimits {
            max_duration: Some(seconds(60)),
            grpc_duration: Some(GrpcTimeout { max: seconds(max), offset: seconds(offset) }),
            ..StreamLimits::default()
        };
        assert_eq!(of(10, 0).duration(Some(seconds(5))), Some(seconds(5)));
        assert_eq!(of(10, 1).duration(Some(seconds(50))), Some(seconds(9)));
        assert_eq!(of(0, 1).duration(Some(seconds(50))), Some(seconds(49)));
        assert_eq!(of(0, 9).duration(Some(seconds(5))), Some(Duration::ZERO));
        assert_eq!(of(10, 1).duration(None), Some(seconds(60)));
        let none = StreamLimits { max_duration: Some(Duration::ZERO), ..StreamLimits::default() };
        assert_eq!(none.duration(Some(seconds(5))), None);
    }

    #[test]
    fn the_timeout_of_a_route_may_be_that_of_the_call() {
        let of = |max, offset| StreamLimits {
            grpc_timeout: Some(GrpcTimeout { max: seconds(max), offset: seconds(offset) }),
            ..StreamLimits::default()
        };
        assert_eq!(of(10, 0).timeout(None), Some(seconds(10)));
        assert_eq!(of(0, 0).timeout(None), Some(Duration::ZERO), "for ever");
        assert_eq!(of(10, 1).timeout(Some(seconds(5))), Some(seconds(4)));
        assert_eq!(of(10, 5).timeout(Some(seconds(5))), Some(seconds(5)), "it would last for ever");
        assert_eq!(of(10, 1).timeout(Some(seconds(50))), Some(seconds(10)));
        assert_eq!(StreamLimits::default().timeout(Some(seconds(5))), None);
    }
}
