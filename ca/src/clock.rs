//! Wall time in the forms that the CA needs. The clock itself is passed in (`countersign_credentials::SharedClock`), so that
//! tests own it; every step of issuance is given the time and asks nobody.

use std::time::Duration;

use countersign_credentials::Clock;
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since 1970; 0 for any time before.
pub fn millis(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.now_ms()).unwrap_or(0)
}

/// `UnixTime` of seconds since 1970.
pub fn seconds(since_1970: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(since_1970))
}

/// RFC 3339 in UTC, for people and records. A time beyond the year 9999 prints as its seconds.
pub fn rfc3339(unix_millis: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_millis) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{} s since 1970", unix_millis / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_prints() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_500), "1970-01-01T00:00:01.5Z");
        assert!(rfc3339(u64::MAX).ends_with("s since 1970"));
    }
}
