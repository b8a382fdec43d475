//! Delays between attempts: exponential with full jitter. Used by the CA client here and by the proxy's controller client.

use std::time::Duration;

use rand::Rng as _;

/// Doubles from `base` to `cap`; each delay is drawn evenly from zero to that bound, so that many who lost the same server
/// at the same moment do not come back at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

/// No delay is shorter: full jitter alone would now and then retry at once.
const FLOOR: Duration = Duration::from_millis(20);

impl Backoff {
    /// First bound and last bound.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// How long to wait after one more failure.
    pub fn failed(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        up_to(bound).max(FLOOR)
    }

    /// The next failure counts as the first.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Changes the last bound (as when a shorter-lived SVID came).
    pub fn set_cap(&mut self, cap: Duration) {
        self.cap = cap;
    }

    fn bound(&self) -> Duration {
        let factor = 1u32.checked_shl(self.failures.min(20)).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }
}

/// `span` times a factor drawn evenly from `1 - part` to `1 + part`.
pub(crate) fn jittered(span: Duration, part: f64) -> Duration {
    span.mul_f64(1.0 + part * (2.0 * rand::rng().random::<f64>() - 1.0))
}

/// A span drawn evenly from zero to `most`.
pub fn up_to(most: Duration) -> Duration {
    most.mul_f64(rand::rng().random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let bounds: Vec<_> = (0..8)
            .map(|_| {
                let bound = backoff.bound();
                let delay = backoff.failed();
                assert!(delay <= bound && delay >= FLOOR, "{delay:?} of {bound:?}");
                bound.as_millis()
            })
            .collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1600, 3000, 3000, 3000]);
        backoff.succeeded();
        assert_eq!(backoff.bound(), Duration::from_millis(100));
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for _ in 0..1000 {
            assert!(backoff.failed() <= Duration::from_secs(30));
        }
        assert_eq!(backoff.failures(), 1000);
    }

    #[test]
    fn delays_are_spread_over_the_whole_bound() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(10));
        let delays: Vec<_> = (0..200).map(|_| backoff.failed()).collect();
        assert!(delays.iter().any(|d| *d < Duration::from_secs(2)));
        assert!(delays.iter().any(|d| *d > Duration::from_secs(8)));
    }

    #[test]
    fn jitter_stays_within_its_part() {
        for _ in 0..200 {
            let span = jittered(Duration::from_secs(100), 0.1);
            assert!(span >= Duration::from_secs(90) && span <= Duration::from_secs(110));
        }
    }
}
