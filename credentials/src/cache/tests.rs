use std::cell::Cell;
use std::time::Duration;

use countersign_identity::{BundleSet, verify_svid};
use rcgen::KeyPair;

use super::*;
use crate::testing::{HOUR, START, TestCa};

const ME: &str = "spiffe://cluster.local/ns/shop/sa/frontend";

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// A cache, a chain, and how often the verifier was asked.
struct Fixture {
    cache: VerifiedCache,
    bundles: BundleSet,
    chain: Vec<CertificateDer<'static>>,
    asked: Cell<u32>,
}

impl Fixture {
    fn new() -> Self {
        let ca = TestCa::new("cluster.local");
        let chain = ca.sign(ME, &KeyPair::generate().unwrap(), START, START + HOUR);
        Self { cache: VerifiedCache::default(), bundles: ca.bundles(), chain, asked: Cell::new(0) }
    }

    fn ask(&self, purpose: Purpose, now: UnixTime) -> Result<VerifiedId, VerifyError> {
        self.cache.verified(&self.chain, purpose, now, || {
            self.asked.set(self.asked.get() + 1);
            verify_svid(&self.chain, &self.bundles, purpose, now)
        })
    }
}

#[test]
fn a_known_chain_costs_no_second_verification() {
    let fixture = Fixture::new();
    let first = fixture.ask(Purpose::Client, at(START)).unwrap();
    let second = fixture.ask(Purpose::Client, at(START + 1)).unwrap();
    assert_eq!(first, second);
    assert_eq!(fixture.asked.get(), 1);
}

#[test]
fn a_known_chain_is_refused_once_it_has_expired() {
    let fixture = Fixture::new();
    fixture.ask(Purpose::Client, at(START)).unwrap();
    fixture.ask(Purpose::Client, at(START + HOUR)).unwrap();
    let error = fixture.ask(Purpose::Client, at(START + HOUR + 1)).unwrap_err();
    assert!(matches!(error, VerifyError::Expired { .. }));
}

#[test]
fn a_root_that_ends_before_the_leaf_ends_the_memory_of_it() {
    let ca = TestCa::ending("cluster.local", START + 60);
    let chain = ca.sign(ME, &KeyPair::generate().unwrap(), START, START + HOUR);
    let fixture = Fixture { bundles: ca.bundles(), chain, ..Fixture::new() };
    fixture.ask(Purpose::Client, at(START)).unwrap();
    fixture.ask(Purpose::Client, at(START + 60)).unwrap();
    fixture.ask(Purpose::Client, at(START + 61)).unwrap_err();
}

#[test]
fn a_clock_that_goes_back_asks_the_verifier_again() {
    let fixture = Fixture::new();
    fixture.ask(Purpose::Client, at(START + 10)).unwrap();
    let error = fixture.ask(Purpose::Client, at(START - 10)).unwrap_err();
    assert!(matches!(error, VerifyError::NotYetValid { .. }));
}

#[test]
fn one_purpose_does_not_vouch_for_the_other() {
    let fixture = Fixture::new();
    fixture.ask(Purpose::Client, at(START)).unwrap();
    fixture.ask(Purpose::Server, at(START)).unwrap();
    assert_eq!(fixture.asked.get(), 2);
}

#[test]
fn refusals_are_not_remembered() {
    let fixture = Fixture::new();
    for _ in 0..2 {
        fixture.ask(Purpose::Client, at(START - 1)).unwrap_err();
    }
    assert_eq!(fixture.asked.get(), 2);
    fixture.ask(Purpose::Client, at(START)).unwrap();
}

#[test]
fn chains_that_differ_only_in_where_they_are_cut_are_different() {
    let cut = |parts: &[&[u8]]| {
        let chain: Vec<_> = parts.iter().map(|part| CertificateDer::from(*part)).collect();
        key(&chain, Purpose::Client)
    };
    assert_ne!(cut(&[b"ab", b"c"]), cut(&[b"a", b"bc"]));
    assert_ne!(cut(&[b"abc"]), cut(&[b"abc", b""]));
}

#[test]
fn a_flood_of_chains_stays_within_the_bound_and_keeps_what_is_used() {
    let fixture = Fixture::new();
    let id = fixture.ask(Purpose::Client, at(START)).unwrap();
    for number in 0..10 * HALF as u64 {
        let junk = [CertificateDer::from(number.to_be_bytes().to_vec())];
        fixture.cache.verified(&junk, Purpose::Client, at(START), || Ok(id.clone())).unwrap();
        if number % 100 == 0 {
            fixture.ask(Purpose::Client, at(START)).unwrap();
        }
        let halves = fixture.cache.lock();
        assert!(halves.young.len() <= HALF && halves.old.len() <= HALF);
    }
    assert_eq!(fixture.asked.get(), 1);
}
