//! Clocks that disagree: the client that proxies use, by a clock of its own, at a CA on the machine's. The leaf lives an hour.

use countersign_credentials::Clock;
use rustls_pki_types::UnixTime;

use super::*;

/// The machine's clock, so many seconds off.
#[derive(Debug)]
struct Off(i64);

impl Clock for Off {
    fn now(&self) -> UnixTime {
        crate::clock::seconds(unix_now().saturating_add_signed(self.0))
    }

    fn now_ms(&self) -> i64 {
        system_clock().now_ms() + self.0 * 1000
    }
}

fn off(seconds: i64) -> SharedClock {
    Arc::new(Off(seconds))
}

/// The text in which the client tells why it has no SVID.
async fn refused(desk: &Desk, seconds: i64) -> String {
    let Started { credentials, mut status, task } = desk.workload_by("frontend", None, off(seconds));
    let task = tokio::spawn(task);
    let status = status.wait_for(|status| status.last_error.is_some()).await.unwrap().clone();
    assert!(credentials.borrow().is_none(), "an SVID all the same");
    task.abort();
    status.last_error.unwrap().text
}

/// The day and hour and minute as they are written: what a text must hold to name a clock.
fn minute(seconds: u64) -> String {
    crate::clock::rfc3339(seconds * 1000)[..16].to_owned()
}

#[tokio::test]
async fn a_clock_half_a_minute_off_changes_nothing() {
    let desk = desk(&[]).await;
    for seconds in [-30, 30] {
        let Started { mut credentials, status, task } = desk.workload_by("frontend", None, off(seconds));
        let task = tokio::spawn(task);
        let held = credentials.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(status.borrow().last_error.is_none());
        // Its SVID is good by its own clock, by ours, and by one that is off the other way.
        for judge in [seconds, 0, -seconds] {
            for purpose in [Purpose::Client, Purpose::Server] {
                verify_svid(held.svid().chain(), &desk.bundles(), purpose, off(judge).now()).unwrap();
            }
        }
        let life = held.expires_at().as_secs() - unix_now();
        assert!((3590..=3600).contains(&life), "the whole hour by the CA's clock: {life}");
        task.abort();
    }
}

#[tokio::test]
async fn a_clock_ten_minutes_fast_is_refused_naming_both_clocks() {
    let desk = desk(&[]).await;
    let now = unix_now();
    let text = refused(&desk, 600).await;
    assert!(text.contains("clocks differ too much"), "{text}");
    // A minute may have passed meanwhile.
    let named = |at: u64| text.contains(&minute(at)) || text.contains(&minute(at + 60));
    assert!(named(now) && named(now + 600), "{text}");
    // It is on record with what the clocks differed by; nothing was issued.
    let log = std::fs::read_to_string(desk.dir.path().join("state/audit.jsonl")).unwrap();
    let record = log.lines().rev().find(|line| line.contains(r#""outcome":"clock_skew""#)).unwrap();
    assert!(!record.contains(r#""serial""#) && !log.contains(r#""spiffe_id":"spiffe://mesh.test/ns/shop"#), "{log}");
}

#[tokio::test]
async fn a_clock_ten_minutes_slow_is_refused_naming_both_clocks() {
    // The CA's own SVID is some minutes old, as it nearly always is.
    let dir = private_dir();
    let tokens = TokenIssuer::es256("k1");
    write_jwks(&dir.path().join("jwks"), &[tokens.jwk()]);
    let hand = crate::testing::Hand::at(unix_now() - 360);
    let ca = start(config(&dir, &[]), hand.clock(), Log::none()).await.unwrap();
    hand.advance(360);
    let desk = Desk { dir, tokens, ca };
    let now = unix_now();
    let text = refused(&desk, -600).await;
    assert!(text.contains("clocks differ too much"), "{text}");
    let named =
        |at: u64| text.contains(&minute(at)) || text.contains(&minute(at + 60)) || text.contains(&minute(at - 60));
    assert!(named(now) && named(now - 600), "{text}");
}

#[tokio::test]
async fn a_clock_ten_minutes_slow_does_not_believe_a_ca_that_has_just_begun_and_names_both_clocks() {
    let desk = desk(&[]).await;
    let now = unix_now();
    let text = refused(&desk, -600).await;
    // The CA's certificate begins five minutes before the CA's now, and ours is ten behind: TLS already says so.
    assert!(text.contains("not valid before"), "{text}");
    let named =
        |at: u64| text.contains(&minute(at)) || text.contains(&minute(at + 60)) || text.contains(&minute(at - 60));
    assert!(named(now - 600) && named(now - 300), "{text}");
}
