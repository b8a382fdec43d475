//! How the renewal fares, told to status pages, metrics and readiness. A copy: nobody can change the renewal by it.

use rustls_pki_types::UnixTime;

use super::error::CaError;

/// Longest error text kept.
const MAX_TEXT: usize = 512;

/// A snapshot of the CA client.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// SVIDs obtained and published since the start.
    pub renewals: u64,
    /// Attempts that failed since the start.
    pub failures: u64,
    /// Attempts that failed since the last success.
    pub failures_in_a_row: u32,
    /// When the SVID in force was published.
    pub last_renewal: Option<UnixTime>,
    /// When the next attempt is due.
    pub next_attempt: Option<UnixTime>,
    /// When the SVID in force ends.
    pub expires_at: Option<UnixTime>,
    /// The last failed attempt; cleared by a success.
    pub last_error: Option<LastError>,
    /// Generation of the bundle in force.
    pub bundle_generation: Option<u64>,
    /// Whether the bundle stream is open.
    pub following: bool,
    /// Bundles refused since the start: older, of another trust domain, unparsable.
    pub bundles_refused: u64,
    /// The last refused bundle, or why the stream ended last.
    pub last_bundle_error: Option<LastError>,
    /// False when the bundle in force no longer vouches for our own SVID.
    pub own_chain_trusted: bool,
}

/// An error as it is shown.
#[derive(Clone, Debug)]
pub struct LastError {
    /// Bounded word for metrics.
    pub label: &'static str,
    /// For people; bounded, holds no token and no key.
    pub text: String,
    /// When.
    pub at: UnixTime,
}

impl LastError {
    pub(super) fn new(error: &CaError, at: UnixTime) -> Self {
        let mut text = error.to_string();
        if let Some((cut, _)) = text.char_indices().nth(MAX_TEXT) {
            text.truncate(cut);
        }
        Self { label: error.label(), text, at }
    }
}

impl Status {
    /// Whether the SVID in force has ended at `now`, or none ever came.
    pub fn expired(&self, now: UnixTime) -> bool {
        self.expires_at.is_none_or(|end| now > end)
    }
}
