//! A wall clock that tests set: it stands, or goes with tokio's clock (which tests pause), until it is moved.
//!
//! Called by the unit tests of every room whose code asks a [`Clock`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use countersign_credentials::{Clock, SharedClock};
use rustls_pki_types::UnixTime;
use tokio::time::Instant;

/// Clones are the same clock.
#[derive(Clone)]
pub struct TestClock(Arc<Inner>);

struct Inner {
    /// Goes on from here; stands if there is none.
    began: Option<Instant>,
    start_ms: i64,
    moved_ms: AtomicI64,
}

impl TestClock {
    /// Stands at this time, in Unix seconds.
    #[must_use]
    pub fn at(seconds: u64) -> Self {
        Self::new(None, seconds)
    }

    /// Goes on from this time, in Unix seconds, as fast as tokio's clock.
    #[must_use]
    pub fn from(seconds: u64) -> Self {
        Self::new(Some(Instant::now()), seconds)
    }

    /// Goes on from the machine's own time.
    #[must_use]
    pub fn from_now() -> Self {
        Self::from(UnixTime::now().as_secs())
    }

    fn new(began: Option<Instant>, seconds: u64) -> Self {
        let start_ms = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        Self(Arc::new(Inner { began, start_ms, moved_ms: AtomicI64::new(0) }))
    }

    /// Steps it, as an operator, NTP or a sleep of the machine does; tokio's timers do not notice.
    pub fn step(&self, seconds: i64) {
        self.0.moved_ms.fetch_add(seconds * 1000, Ordering::SeqCst);
    }

    /// The same, forward.
    pub fn advance(&self, seconds: u64) {
        self.step(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Unix milliseconds.
    #[must_use]
    pub fn ms(&self) -> i64 {
        let gone = self.0.began.map_or(0, |began| began.elapsed().as_millis());
        self.0.start_ms + i64::try_from(gone).unwrap_or(i64::MAX) + self.0.moved_ms.load(Ordering::SeqCst)
    }

    /// As the code under test takes it.
    #[must_use]
    pub fn clock(&self) -> SharedClock {
        Arc::new(self.clone())
    }
}

impl fmt::Debug for TestClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.ms())
    }
}

impl Clock for TestClock {
    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(self.ms().unsigned_abs()))
    }

    fn now_ms(&self) -> i64 {
        self.ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_until_it_is_moved_and_its_clones_move_with_it() {
        let clock = TestClock::at(1000);
        let other = clock.clock();
        clock.advance(60);
        clock.step(-10);
        assert_eq!((other.now().as_secs(), other.now_ms()), (1050, 1_050_000));
    }

    #[test]
    fn it_goes_with_tokios() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let clock = TestClock::from(1000);
            tokio::time::advance(Duration::from_millis(1500)).await;
            assert_eq!(clock.ms(), 1_001_500);
        });
    }
}
