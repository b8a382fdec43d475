//! The CA client against a CA that speaks the real protocol. Time stands still but for `advance`.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::ca as wire;
use tokio::task::JoinHandle;
use tonic::Status as Refusal;

use super::fake::{CA_ID, FakeCa, ME};
use super::*;
use crate::Credentials;
use crate::testing;
use crate::testing::{Frozen, HOUR, START, TestCa, advance, freeze, id, settle, soon};

/// The second report of a bundle comes so long after the first: three quarters of 5 s, to five quarters.
const REPORTED_AGAIN: (Duration, Duration) = (Duration::from_millis(3750), Duration::from_millis(6250));

/// A client at work.
struct Client {
    ca: Arc<FakeCa>,
    credentials: Watch,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
    _frozen: Frozen,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    fn of(ca: Arc<FakeCa>, config: CaClient) -> Self {
        let Started { credentials, status, task } = start(config, id(ME), testing::shared(&ca.clock));
        Self { ca, credentials, status, task: tokio::spawn(task), _frozen: freeze() }
    }

    async fn new() -> Self {
        let (ca, config) = FakeCa::start().await;
        Self::of(ca, config)
    }

    /// One that holds its first SVID and follows the bundle.
    async fn settled() -> Self {
        let mut client = Self::new().await;
        client.published(|_| true).await;
        client.told(|status| status.following && status.renewals == 1).await;
        client
    }

    async fn published(&mut self, wanted: impl Fn(&Credentials) -> bool) -> Arc<Credentials> {
        let came = soon(self.credentials.wait_for(|held| held.as_deref().is_some_and(&wanted))).await;
        came.unwrap().clone().unwrap()
    }

    async fn told(&mut self, wanted: impl Fn(&Status) -> bool) -> Status {
        soon(self.status.wait_for(|status| wanted(status))).await.unwrap().clone()
    }

    fn now(&self) -> Arc<Credentials> {
        self.credentials.borrow().clone().unwrap()
    }

    /// One failed attempt more than so far, and the time until the next.
    async fn fails_again(&mut self) -> Status {
        let before = self.status.borrow().failures;
        let status = self.told(|status| status.failures > before).await;
        assert_eq!(status.failures, before + 1);
        status
    }

    /// Lets the next delay pass: no delay is longer than half a minute.
    async fn past_the_delay(&self) {
        advance(Duration::from_secs(30)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_svid_is_obtained_with_the_token_and_published() {
    let (ca, mut config) = FakeCa::start().await;
    config.ttl = Some(Duration::from_secs(1800));
    let mut client = Client::of(ca, config);
    let credentials = client.published(|_| true).await;
    assert_eq!(credentials.id().as_str(), ME);
    assert_eq!(credentials.generation(), 1);
    assert!(credentials.own_chain_trusted());
    let asked = client.ca.asked.borrow().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].token, "token-1", "trimmed");
    assert_eq!((asked[0].ttl, asked[0].generation), (1800, 0));
    let status = client.told(|status| status.renewals == 1).await;
    assert_eq!(status.expires_at.unwrap().as_secs(), START + HOUR);
    assert!(status.last_error.is_none() && !status.expired(credentials.clock().now()));
}

#[tokio::test(start_paused = true)]
async fn an_svid_is_renewed_at_half_its_life_with_a_new_key_and_a_fresh_token() {
    let mut client = Client::settled().await;
    let first = client.now();
    client.ca.write_token("token-2");
    advance(Duration::from_secs(HOUR * 44 / 100)).await;
    assert_eq!(client.ca.asked.borrow().len(), 1, "too early");
    advance(Duration::from_secs(HOUR * 12 / 100)).await;
    let second = client.published(|held| held.svid().spki_sha256() != first.svid().spki_sha256()).await;
    assert!(second.expires_at() > first.expires_at());
    let asked = client.ca.asked.borrow().clone();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].token, "token-2");
    assert_eq!(asked[1].generation, 1);
    assert_ne!(asked[0].key, asked[1].key);
}

#[tokio::test(start_paused = true)]
async fn the_old_svid_serves_until_it_ends_while_the_ca_refuses() {
    let mut client = Client::settled().await;
    let first = client.now();
    client.ca.refuse(Some(Refusal::unavailable("maintenance")));
    advance(Duration::from_secs(HOUR * 56 / 100)).await;
    let status = client.fails_again().await;
    let error = status.last_error.unwrap();
    assert_eq!(error.label, "ca_unavailable");
    assert!(error.text.contains("maintenance"), "{}", error.text);
    client.past_the_delay().await;
    assert_eq!(client.fails_again().await.failures_in_a_row, 2);
    assert!(Arc::ptr_eq(&first, &client.now()) && !first.expired());

    advance(Duration::from_secs(HOUR / 2)).await;
    client.fails_again().await;
    assert!(first.expired() && Arc::ptr_eq(&first, &client.now()), "nothing is published for an expiry");
    assert!(client.status.borrow().expired(first.clock().now()));

    client.ca.refuse(None);
    client.past_the_delay().await;
    let second = client.published(|held| !held.expired()).await;
    assert!(second.expires_at() > first.expires_at());
    let status = client.told(|status| status.renewals == 2).await;
    assert!(status.last_error.is_none() && status.failures_in_a_row == 0);
}

#[tokio::test(start_paused = true)]
async fn an_svid_for_somebody_else_is_not_published() {
    let (ca, config) = FakeCa::start().await;
    ca.manners.lock().unwrap().id = "spiffe://cluster.local/ns/shop/sa/backend".into();
    let mut client = Client::of(ca, config);
    let error = client.fails_again().await.last_error.unwrap();
    assert_eq!(error.label, "wrong_id");
    assert!(client.credentials.borrow().is_none());
    client.ca.manners.lock().unwrap().id = ME.into();
    client.past_the_delay().await;
    client.published(|_| true).await;
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_our_own_verifier_refuses_is_not_published() {
    let (ca, config) = FakeCa::start().await;
    let good = ca.signer();
    ca.manners.lock().unwrap().signer = Arc::new(TestCa::new("cluster.local"));
    let mut client = Client::of(ca, config);
    assert_eq!(client.fails_again().await.last_error.unwrap().label, "unknown_issuer");
    assert!(client.credentials.borrow().is_none());
    client.ca.manners.lock().unwrap().signer = good;
    client.past_the_delay().await;
    client.published(|_| true).await;
}

#[tokio::test(start_paused = true)]
async fn clocks_too_far_apart_are_both_named() {
    let (ca, config) = FakeCa::start().await;
    ca.manners.lock().unwrap().clock_off_ms = 361_000;
    let mut client = Client::of(ca, config);
    let error = client.fails_again().await.last_error.unwrap();
    assert_eq!(error.label, "clock_skew");
    let (ours, theirs) = (START * 1000, START * 1000 + 361_000);
    assert!(error.text.contains(&ours.to_string()) && error.text.contains(&theirs.to_string()), "{}", error.text);
    assert!(client.credentials.borrow().is_none());

    client.ca.manners.lock().unwrap().clock_off_ms = -360_000;
    client.past_the_delay().await;
    client.published(|_| true).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_the_ca_never_sees_the_token() {
    let (ca, config) = FakeCa::start_as("spiffe://cluster.local/ns/shop/sa/intruder").await;
    let mut client = Client::of(ca, config);
    let error = client.fails_again().await.last_error.unwrap();
    assert_eq!(error.label, "unexpected_identity");
    assert!(error.text.contains(CA_ID) && error.text.contains("intruder"), "{}", error.text);
    assert!(client.ca.asked.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_the_bootstrap_file_does_not_vouch_for_never_sees_the_token() {
    let (ca, config) = FakeCa::start().await;
    ca.write_bootstrap(&TestCa::new("cluster.local"));
    let mut client = Client::of(ca, config);
    assert_eq!(client.fails_again().await.last_error.unwrap().label, "unknown_issuer");
    assert!(client.ca.asked.borrow().is_empty());
    // The file is read anew for each attempt.
    client.ca.write_bootstrap(&client.ca.signer());
    client.past_the_delay().await;
    client.published(|_| true).await;
}

#[tokio::test(start_paused = true)]
async fn missing_files_are_named_and_waited_for() {
    let (ca, config) = FakeCa::start().await;
    std::fs::remove_file(&config.token_file).unwrap();
    std::fs::write(&config.bootstrap, "no PEM here").unwrap();
    let mut client = Client::of(ca, config);
    let error = client.fails_again().await.last_error.unwrap();
    assert_eq!(error.label, "bootstrap");
    assert!(error.text.contains("roots.pem") && error.text.contains("no certificate"), "{}", error.text);
    client.ca.write_bootstrap(&client.ca.signer());
    client.past_the_delay().await;
    let error = client.fails_again().await.last_error.unwrap();
    assert_eq!(error.label, "token");
    assert!(error.text.contains("/token: "), "{}", error.text);
    client.ca.write_token("token-1");
    client.past_the_delay().await;
    client.published(|_| true).await;
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_not_there_is_asked_again_with_growing_delays() {
    let (ca, config) = FakeCa::start().await;
    ca.stop().await;
    let mut client = Client::of(ca, config);
    for attempt in 1..=4 {
        let status = client.fails_again().await;
        assert_eq!(status.last_error.unwrap().label, "connect");
        assert_eq!(status.failures_in_a_row, attempt);
        if attempt < 4 {
            client.past_the_delay().await;
        }
    }
    client.ca.start_again().await;
    client.past_the_delay().await;
    client.published(|_| true).await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_bundle_is_published_at_once_with_the_same_svid() {
    let mut client = Client::settled().await;
    let first = client.now();
    let (old, next) = (client.ca.signer(), TestCa::new("cluster.local"));
    client.ca.publish(2, &[&old, &next]);
    let second = client.published(|held| held.generation() == 2).await;
    assert!(Arc::ptr_eq(first.svid(), second.svid()));
    assert!(second.own_chain_trusted());
    let of_next = next.svid(ME);
    assert!(first.reverify(of_next.chain(), countersign_identity::Purpose::Client).is_err());
    assert!(second.reverify(of_next.chain(), countersign_identity::Purpose::Client).is_ok());
    assert_eq!(client.status.borrow().bundle_generation, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_bad_bundle_keeps_the_last_good_one_and_the_stream() {
    let mut client = Client::settled().await;
    let signer = client.ca.signer();
    client.ca.publish(5, &[&signer]);
    client.published(|held| held.generation() == 5).await;

    client.ca.publish(4, &[&signer]);
    let status = client.told(|status| status.bundles_refused == 1).await;
    assert_eq!(status.last_bundle_error.unwrap().label, "older_bundle");

    client.ca.publish(5, &[&TestCa::new("cluster.local")]);
    let status = client.told(|status| status.bundles_refused == 2).await;
    assert_eq!(status.last_bundle_error.unwrap().label, "changed_bundle");

    let elsewhere = TestCa::new("elsewhere.example");
    client.ca.bundle.send_replace(elsewhere.wire_bundle(6));
    let status = client.told(|status| status.bundles_refused == 3).await;
    assert_eq!(status.last_bundle_error.unwrap().label, "other_trust_domain");

    let mut garbage = signer.wire_bundle(6);
    garbage.roots.push(vec![0x30, 0x03, 1, 2, 3]);
    client.ca.bundle.send_replace(garbage);
    let status = client.told(|status| status.bundles_refused == 4).await;
    assert_eq!(status.last_bundle_error.unwrap().label, "bad_bundle");

    assert_eq!(client.now().generation(), 5);
    assert_eq!(client.ca.followers.borrow().len(), 1, "the same stream all the time");
    client.ca.publish(6, &[&signer]);
    client.published(|held| held.generation() == 6).await;
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_drops_our_root_is_published_and_our_svid_renewed_at_once() {
    let mut client = Client::settled().await;
    let first = client.now();
    let new = client.ca.rotate();
    client.ca.refuse(Some(Refusal::resource_exhausted("wait")));
    client.ca.publish(2, &[&new]);

    let cut = client.published(|held| held.generation() == 2).await;
    assert!(!cut.own_chain_trusted(), "peers are judged by the new bundle although ours fails it");
    assert!(Arc::ptr_eq(first.svid(), cut.svid()));
    assert!(cut.reverify(first.svid().chain(), countersign_identity::Purpose::Client).is_err());

    // Spread over a second, but far from half the life.
    advance(Duration::from_secs(1)).await;
    client.fails_again().await;
    client.ca.refuse(None);
    client.past_the_delay().await;
    let cured = client.published(|held| held.own_chain_trusted() && held.generation() == 2).await;
    assert_ne!(cured.svid().spki_sha256(), first.svid().spki_sha256());
    // And the stream, which hung on the old root, is opened anew.
    let leaf = cured.svid().spki_sha256();
    client.past_the_delay().await;
    soon(client.ca.followers.subscribe().wait_for(|all| all.last() == Some(&leaf))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_renewal_opens_the_bundle_stream_anew_with_the_new_svid() {
    let mut client = Client::settled().await;
    let first = client.now();
    advance(Duration::from_secs(HOUR * 56 / 100)).await;
    let second = client.published(|held| held.svid().spki_sha256() != first.svid().spki_sha256()).await;
    let wanted = vec![first.svid().spki_sha256(), second.svid().spki_sha256()];
    soon(client.ca.followers.subscribe().wait_for(|all| *all == wanted)).await.unwrap();
    let status = client.told(|status| status.following).await;
    assert!(status.last_bundle_error.is_none(), "a renewal is no failure");
}

#[tokio::test(start_paused = true)]
async fn a_lost_bundle_stream_is_told_and_opened_again() {
    let mut client = Client::settled().await;
    client.ca.stop().await;
    let status = client.told(|status| !status.following).await;
    assert!(status.last_bundle_error.is_some());
    let signer = client.ca.signer();
    client.ca.publish(2, &[&signer]);
    client.ca.start_again().await;
    client.past_the_delay().await;
    client.published(|held| held.generation() == 2).await;
    client.told(|status| status.following).await;
}

#[tokio::test(start_paused = true)]
async fn who_slept_through_a_rotation_comes_back_by_the_bootstrap_file_once_expired() {
    let mut client = Client::settled().await;
    let first = client.now();
    client.ca.stop().await;
    client.told(|status| !status.following).await;
    let new = client.ca.rotate();
    client.ca.publish(2, &[&new]);
    client.ca.write_bootstrap(&new);
    client.ca.start_again().await;

    // While its SVID is good, the file does not replace the running bundle.
    advance(Duration::from_secs(HOUR * 56 / 100)).await;
    assert_eq!(client.fails_again().await.last_error.unwrap().label, "unknown_issuer");
    client.past_the_delay().await;
    assert_eq!(client.fails_again().await.last_error.unwrap().label, "unknown_issuer");
    assert!(!first.expired());

    advance(Duration::from_secs(HOUR)).await;
    let asked = client.ca.asked.borrow().len();
    while client.credentials.borrow().as_ref().is_some_and(|held| held.expired()) {
        let before = client.status.borrow().clone();
        let step = client.told(|s| s.failures > before.failures || s.renewals > before.renewals).await;
        assert!(step.failures < 6, "{step:?}");
        client.past_the_delay().await;
    }
    assert_eq!(client.ca.asked.borrow().len(), asked + 1);
    assert_eq!(client.now().generation(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_replica_of_the_ca_that_is_a_bundle_behind_does_not_take_ours_back() {
    let mut client = Client::settled().await;
    let first = client.now();
    let signer = client.ca.signer();
    client.ca.publish(3, &[&signer, &TestCa::new("cluster.local")]);
    client.published(|held| held.generation() == 3).await;
    client.ca.manners.lock().unwrap().bundle = Some(signer.wire_bundle(2));
    advance(Duration::from_secs(HOUR * 56 / 100)).await;
    let second = client.published(|held| held.svid().spki_sha256() != first.svid().spki_sha256()).await;
    assert_eq!(second.generation(), 3);
}

#[tokio::test(start_paused = true)]
async fn neither_status_nor_errors_show_the_token() {
    let (ca, config) = FakeCa::start().await;
    ca.write_token("eyJ.secret.token");
    ca.refuse(Some(Refusal::unauthenticated("unknown key id")));
    let shown = format!("{config:?}");
    let mut client = Client::of(ca, config);
    let status = client.fails_again().await;
    assert_eq!(status.last_error.as_ref().unwrap().label, "ca_unauthenticated");
    let shown = format!("{shown} {status:?} {:?}", client.ca.asked.borrow().len());
    assert!(!shown.contains("secret"), "{shown}");
    assert_eq!(client.ca.asked.borrow()[0].token, "eyJ.secret.token");
}

#[tokio::test(start_paused = true)]
async fn each_new_bundle_is_reported_once_it_is_in_force_and_again_while_a_root_is_being_replaced() {
    let mut client = Client::settled().await;
    let (old, next) = (client.ca.signer(), TestCa::new("cluster.local"));
    let mut reports = client.ca.reports.subscribe();
    let leaf = client.now().svid().spki_sha256();
    let said = |all: &Vec<([u8; 32], u64)>, generation| all.iter().filter(|one| **one == (leaf, generation)).count();
    soon(reports.wait_for(|all| said(all, 1) >= 1)).await.unwrap();
    client.ca.publish(2, &[&old, &next]);
    client.published(|held| held.generation() == 2).await;
    for times in 1..4 {
        soon(reports.wait_for(|all| said(all, 2) >= times)).await.unwrap();
        advance(Duration::from_secs(10)).await;
    }
}

/// The bundle that ends a rotation ends connections, too: they are counted in a report that comes after it.
#[tokio::test(start_paused = true)]
async fn a_bundle_of_one_root_is_reported_again_once_what_it_ends_has_ended_and_no_more() {
    let mut client = Client::settled().await;
    let signer = client.ca.signer();
    let mut reports = client.ca.reports.subscribe();
    let said = |all: &Vec<([u8; 32], u64)>, generation| all.iter().filter(|one| one.1 == generation).count();
    client.ca.publish(2, &[&signer]);
    client.published(|held| held.generation() == 2).await;
    soon(reports.wait_for(|all| said(all, 2) == 1)).await.unwrap();
    advance(REPORTED_AGAIN.0 - Duration::from_millis(100)).await;
    settle().await;
    assert_eq!(said(&reports.borrow(), 2), 1, "not before the pause is over");
    advance(REPORTED_AGAIN.1 - REPORTED_AGAIN.0 + Duration::from_millis(200)).await;
    soon(reports.wait_for(|all| said(all, 2) == 2)).await.unwrap();
    for _ in 0..3 {
        advance(Duration::from_secs(10)).await;
    }
    client.ca.publish(3, &[&signer]);
    soon(reports.wait_for(|all| said(all, 3) == 1)).await.unwrap();
    assert_eq!(said(&reports.borrow(), 2), 2, "nobody waits for a third");
}

#[tokio::test(start_paused = true)]
async fn when_the_ca_signs_under_another_root_our_svid_is_renewed_soon() {
    let mut client = Client::settled().await;
    let (first, old) = (client.now(), client.ca.signer());
    let next = client.ca.rotate();
    let signing = first.bundles().get(&first.id().trust_domain()).unwrap().root_sha256s().next().unwrap().to_vec();
    let told = |signing_root_sha256: Vec<u8>| wire::TrustBundle {
        signing_root_sha256,
        ..crate::testing::wire_bundle(&old.trust_domain, 2, &[&old, &next])
    };
    client.ca.bundle.send_replace(told(signing.clone()));
    let both = client.published(|held| held.generation() == 2).await;
    assert!(Arc::ptr_eq(first.svid(), both.svid()), "the old root signs on: nothing to do");
    let bundle = both.bundles().get(&first.id().trust_domain()).unwrap();
    let other = bundle.root_sha256s().find(|root| root[..] != signing[..]).unwrap().to_vec();
    client.ca.bundle.send_replace(told(other));
    // A minute and a second at the most; half of the life would be half an hour.
    for _ in 0..7 {
        advance(Duration::from_secs(10)).await;
    }
    let renewed = client.published(|held| held.svid().serial() != first.svid().serial()).await;
    assert_ne!(renewed.anchor_sha256(), first.anchor_sha256());
    assert!(client.now().expires_at() > first.expires_at());
}

/// An emergency: the old root goes right after another one signs, and what was to be renewed within a minute is worth nothing now.
#[tokio::test(start_paused = true)]
async fn a_root_that_goes_while_a_renewal_is_waited_for_is_not_waited_for() {
    let mut client = Client::settled().await;
    let (first, old) = (client.now(), client.ca.signer());
    let next = client.ca.rotate();
    let signing_root_sha256 = crate::testing::bundle_of(3, &[&next]).root_sha256s().next().unwrap().to_vec();
    let both = crate::testing::wire_bundle(&old.trust_domain, 2, &[&old, &next]);
    client.ca.bundle.send_replace(wire::TrustBundle { signing_root_sha256, ..both });
    client.published(|held| held.generation() == 2).await;
    advance(Duration::ZERO).await;
    assert_eq!(client.ca.asked.borrow().len(), 1, "a second passes at the least");
    client.ca.publish(3, &[&next]);
    client.published(|held| held.generation() == 3 && !held.own_chain_trusted()).await;
    advance(Duration::from_secs(1)).await;
    let cured = client.published(|held| held.own_chain_trusted()).await;
    assert_ne!(cured.svid().serial(), first.svid().serial());
}

#[tokio::test(start_paused = true)]
async fn who_has_an_ended_svid_says_that_it_holds_nothing() {
    let mut client = Client::settled().await;
    client.ca.refuse(Some(Refusal::failed_precondition("follow the bundle")));
    let mut asked = client.ca.asked.subscribe();
    let of_old = |all: &Vec<super::fake::Asked>| all.len() > 1 && all.last().is_some_and(|one| one.generation == 1);
    for _ in 0..70 {
        advance(Duration::from_secs(30)).await;
    }
    soon(asked.wait_for(of_old)).await.unwrap();
    for _ in 0..70 {
        advance(Duration::from_secs(30)).await;
    }
    assert!(client.now().expired());
    soon(asked.wait_for(|all| all.last().is_some_and(|one| one.generation == 0))).await.unwrap();
    client.told(|status| status.failures_in_a_row > 1).await;
}
