//! Where the wall time comes from. Every expiry check in this crate asks a [`Clock`] that was passed in; tests pass their own.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::UnixTime;

/// A source of wall time. It need not be monotonic: who computes with it must bear steps both ways.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> UnixTime;

    /// The time now in Unix milliseconds, as it is sent to the CA to measure skew.
    fn now_ms(&self) -> i64 {
        i64::try_from(self.now().as_secs().saturating_mul(1000)).unwrap_or(i64::MAX)
    }
}

/// A clock that many share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixTime {
        UnixTime::now()
    }

    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The machine's clock, shared.
pub fn system_clock() -> SharedClock {
    Arc::new(SystemClock)
}

/// A [`Clock`] as rustls wants it: the handshake's verifier is called with this time.
#[derive(Debug)]
pub(crate) struct RustlsTime(pub(crate) SharedClock);

impl rustls::time_provider::TimeProvider for RustlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.now())
    }
}
