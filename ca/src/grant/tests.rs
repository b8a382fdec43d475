use proptest::prelude::*;

use super::*;
use crate::testing::{DAY, HOUR, START, domain, own_id};

const NOW_MS: u64 = START * 1000 + 250;

struct Desk {
    domain: TrustDomain,
    own_id: SpiffeId,
    issuer_end: u64,
    terms: Terms,
}

fn desk() -> Desk {
    let terms = Terms { default: Duration::from_secs(HOUR), max: Duration::from_secs(DAY) };
    Desk { domain: domain(), own_id: own_id(), issuer_end: START + 30 * DAY, terms }
}

impl Desk {
    fn granter(&self) -> Granter<'_> {
        Granter {
            trust_domain: &self.domain,
            issuer_end: seconds(self.issuer_end),
            own_id: &self.own_id,
            terms: self.terms,
        }
    }

    /// A wish for `ttl` seconds by a caller whose clock is `skew_ms` ahead.
    fn ask(&self, ttl: u32, skew_ms: i64) -> Result<Grant, GrantError> {
        let wish = Wish { ttl_seconds: ttl, client_time_ms: NOW_MS as i64 + skew_ms };
        decide(&Caller::for_test("shop", "frontend"), wish, self.granter(), NOW_MS)
    }
}

fn life(grant: &Grant) -> u64 {
    grant.not_after().as_secs() - START
}

fn backdate(grant: &Grant) -> u64 {
    START - grant.not_before().as_secs()
}

#[test]
fn the_identity_is_the_callers_account() {
    assert_eq!(desk().ask(0, 0).unwrap().id().as_str(), "spiffe://mesh.test/ns/shop/sa/frontend");
}

#[test]
fn nobody_gets_the_cas_own_identity_on_request() {
    let desk = desk();
    let caller = Caller::for_test("countersign-system", "countersign-ca");
    let wish = Wish { ttl_seconds: 0, client_time_ms: NOW_MS as i64 };
    assert!(matches!(decide(&caller, wish, desk.granter(), NOW_MS), Err(GrantError::Reserved(_))));
}

#[test]
fn without_a_wish_the_default_is_granted_and_a_long_wish_is_cut() {
    let desk = desk();
    assert_eq!(life(&desk.ask(0, 0).unwrap()), HOUR);
    assert_eq!(life(&desk.ask(600, 0).unwrap()), 600);
    assert_eq!(life(&desk.ask(u32::MAX, 0).unwrap()), DAY, "136 years become a day");
}

#[test]
fn less_than_the_floor_is_refused() {
    let desk = desk();
    assert_eq!(life(&desk.ask(10, 0).unwrap()), 10);
    for ttl in 1..10 {
        assert!(matches!(desk.ask(ttl, 0), Err(GrantError::TooShort { .. })));
    }
}

#[test]
fn issued_end_is_never_beyond_the_issuers() {
    let mut desk = desk();
    desk.issuer_end = START + 100;
    assert_eq!(life(&desk.ask(0, 0).unwrap()), 100);
    desk.issuer_end = START + 9;
    assert!(matches!(desk.ask(0, 0), Err(GrantError::IssuerEnding { left: 9 })));
    desk.issuer_end = START - 1;
    assert!(matches!(desk.ask(0, 0), Err(GrantError::IssuerEnding { left: 0 })));
}

#[test]
fn the_begin_is_back_dated_by_the_measured_skew_and_at_most_a_tenth_of_the_life() {
    let desk = desk();
    assert_eq!(backdate(&desk.ask(3600, 0).unwrap()), 60, "for clocks that were not measured");
    assert_eq!(backdate(&desk.ask(3600, 100_000).unwrap()), 60, "a clock that is ahead needs none");
    assert_eq!(backdate(&desk.ask(3600, -200_000).unwrap()), 201);
    assert_eq!(backdate(&desk.ask(3600, -300_000).unwrap()), 301);
    assert_eq!(backdate(&desk.ask(600, -59_000).unwrap()), 60, "a tenth of ten minutes");
    assert_eq!(backdate(&desk.ask(10, -900).unwrap()), 1);
}

#[test]
fn a_clock_too_far_off_is_refused_naming_both() {
    let desk = desk();
    for skew_ms in [300_001, -300_001, 86_400_000, i64::MAX / 2] {
        assert!(matches!(desk.ask(3600, skew_ms), Err(GrantError::Skew { .. })), "{skew_ms}");
    }
    assert!(matches!(desk.ask(600, -60_001), Err(GrantError::Skew { .. })), "more than a tenth cannot be bridged");
    let text = desk.ask(3600, -400_000).unwrap_err().to_string();
    assert!(text.contains("2027-01-15T08:00:00.25Z") && text.contains("2027-01-15T07:53:20.25Z"), "{text}");
}

#[test]
fn a_missing_or_absurd_clock_is_refused() {
    let desk = desk();
    for (client_time_ms, named) in [(0, "not set"), (-5, "before 1970"), (i64::MIN, "1970"), (i64::MAX, "since 1970")] {
        let wish = Wish { ttl_seconds: 0, client_time_ms };
        let refused = decide(&Caller::for_test("shop", "frontend"), wish, desk.granter(), NOW_MS).unwrap_err();
        assert!(refused.to_string().contains(named), "{refused}");
    }
}

#[test]
fn the_own_leaf_begins_early_enough_for_every_clock_that_is_accepted() {
    let desk = desk();
    let grant = for_self(desk.granter(), NOW_MS).unwrap();
    assert_eq!((backdate(&grant), life(&grant)), (300, HOUR));
    assert_eq!(*grant.id(), desk.own_id);
}

proptest! {
    #[test]
    fn no_wish_breaks_a_bound(ttl in any::<u32>(), skew in -400_000i64..400_000, left in 0u64..40 * DAY) {
        let mut desk = desk();
        desk.issuer_end = START + left;
        if let Ok(grant) = desk.ask(ttl, skew) {
            let life = life(&grant);
            prop_assert!((10..=DAY).contains(&life));
            prop_assert!(grant.not_after().as_secs() <= desk.issuer_end);
            prop_assert!(backdate(&grant) * 10 <= life);
            // Valid by the caller's own clock, but for what the request's way may have added.
            prop_assert!(grant.not_before().as_secs() as i64 * 1000 <= NOW_MS as i64 + skew + 2000);
        }
    }
}
