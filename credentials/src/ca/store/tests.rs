use super::*;
use crate::testing;
use crate::testing::{TestCa, id};

const ME: &str = "spiffe://cluster.local/ns/shop/sa/frontend";

struct Fixture {
    ca: TestCa,
    next: TestCa,
    store: Store,
    published: Watch,
    status: watch::Receiver<Status>,
}

fn fixture() -> Fixture {
    let (ca, next) = (TestCa::new("cluster.local"), TestCa::new("cluster.local"));
    let clock = testing::shared(&testing::clock());
    let (store, published, status) = Store::new(ca.trust_domain.clone(), id(ME), clock);
    Fixture { ca, next, store, published, status }
}

impl Fixture {
    fn both(&self, generation: u64) -> wire::TrustBundle {
        crate::testing::wire_bundle(&self.ca.trust_domain, generation, &[&self.ca, &self.next])
    }

    fn generation(&self) -> u64 {
        self.published.borrow().as_ref().unwrap().generation()
    }
}

#[tokio::test]
async fn of_two_reloads_in_flight_the_newer_wins_whichever_ends_first() {
    // The renewal was asked under bundle 1; meanwhile bundle 2 came by stream.
    let it = fixture();
    it.store.take_svid(it.ca.svid(ME), it.ca.wire_bundle(1), false).unwrap();
    it.store.take_bundle(it.both(2)).unwrap();
    it.store.take_svid(it.ca.svid(ME), it.ca.wire_bundle(1), false).unwrap();
    assert_eq!(it.generation(), 2);

    // The renewal brought bundle 2 before the stream told of bundle 1.
    let it = fixture();
    it.store.take_svid(it.ca.svid(ME), it.both(2), false).unwrap();
    assert_eq!(it.store.take_bundle(it.ca.wire_bundle(1)).unwrap_err().label(), "older_bundle");
    assert_eq!(it.generation(), 2);
}

#[tokio::test]
async fn an_svid_below_a_root_that_was_dropped_meanwhile_is_not_published() {
    let it = fixture();
    it.store.take_svid(it.ca.svid(ME), it.ca.wire_bundle(1), false).unwrap();
    it.store.take_bundle(it.next.wire_bundle(2)).unwrap();
    let error = it.store.take_svid(it.ca.svid(ME), it.ca.wire_bundle(1), false).unwrap_err();
    assert_eq!(error.label(), "unknown_issuer");
    assert!(!it.published.borrow().as_ref().unwrap().own_chain_trusted());
    it.store.take_svid(it.next.svid(ME), it.next.wire_bundle(2), false).unwrap();
    assert!(it.published.borrow().as_ref().unwrap().own_chain_trusted());
}

#[tokio::test]
async fn the_same_bundle_again_publishes_nothing() {
    let mut it = fixture();
    it.store.take_svid(it.ca.svid(ME), it.ca.wire_bundle(1), false).unwrap();
    it.published.mark_unchanged();
    assert!(!it.store.take_bundle(it.ca.wire_bundle(1)).unwrap());
    assert!(!it.published.has_changed().unwrap());
    assert_eq!(it.status.borrow().bundles_refused, 0);
}

#[tokio::test]
async fn an_empty_bundle_trusts_nobody() {
    let it = fixture();
    it.store.take_svid(it.ca.svid(ME), it.ca.wire_bundle(1), false).unwrap();
    let empty = wire::TrustBundle { roots: Vec::new(), ..it.ca.wire_bundle(2) };
    assert!(it.store.take_bundle(empty).unwrap());
    let held = it.published.borrow().clone().unwrap();
    assert!(held.reverify(it.ca.svid(ME).chain(), countersign_identity::Purpose::Client).is_err());
}

#[tokio::test]
async fn a_distrusted_svid_asks_for_renewal_until_it_is_cured() {
    let it = fixture();
    it.store.take_svid(it.ca.svid(ME), it.ca.wire_bundle(1), false).unwrap();
    it.store.take_bundle(it.next.wire_bundle(2)).unwrap();
    it.store.distrusted().await;
    // Told once more, but cured before anybody listened.
    it.store.take_bundle(TestCa::new("cluster.local").wire_bundle(3)).unwrap();
    let cured = TestCa::new("cluster.local");
    it.store.take_svid(cured.svid(ME), cured.wire_bundle(4), false).unwrap();
    let told = tokio::time::timeout(std::time::Duration::ZERO, it.store.distrusted()).await;
    assert!(told.is_err(), "asked for a renewal that nobody needs");
}

#[tokio::test]
async fn a_long_foreign_name_is_cut() {
    let it = fixture();
    let long = wire::TrustBundle { trust_domain: "x".repeat(100_000), ..it.ca.wire_bundle(1) };
    let error = it.store.take_bundle(long).unwrap_err();
    assert_eq!(error.label(), "other_trust_domain");
    assert!(error.to_string().len() < 400);
    assert!(it.status.borrow().last_bundle_error.as_ref().unwrap().text.len() <= 512);
}

#[tokio::test]
async fn another_root_under_a_known_or_an_older_generation_is_taken_only_where_the_file_vouched_for_the_ca() {
    let it = fixture();
    it.store.take_svid(it.ca.svid(ME), it.ca.wire_bundle(2), false).unwrap();
    for (generation, why) in [(2, "changed_bundle"), (1, "unknown_issuer")] {
        let error = it.store.take_svid(it.next.svid(ME), it.next.wire_bundle(generation), false).unwrap_err();
        assert_eq!(error.label(), why);
    }
    // A root that was lost and replaced begins to count anew.
    it.store.take_svid(it.next.svid(ME), it.next.wire_bundle(1), true).unwrap();
    assert_eq!(it.generation(), 1);
    assert_eq!(it.store.take_bundle(it.ca.wire_bundle(1)).unwrap_err().label(), "changed_bundle");
}
