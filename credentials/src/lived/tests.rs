use std::sync::Arc;

use countersign_identity::BundleSet;
use rcgen::KeyPair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::watch;

use super::*;
use crate::testing;
use crate::testing::{HOUR, START, TestCa, TestClock};
use crate::{Clock as _, Credentials};

const ME: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const PEER: &str = "spiffe://cluster.local/ns/shop/sa/backend";

struct Fixture {
    ca: TestCa,
    clock: TestClock,
    published: watch::Sender<Option<Arc<Credentials>>>,
    lived: Lived<DuplexStream>,
    far: DuplexStream,
}

/// A connection with a peer of our own CA, which lives until `until`.
fn fixture(until: u64) -> Fixture {
    let (ca, clock) = (TestCa::new("cluster.local"), testing::clock());
    let (published, mut watch) = watch::channel(Some(Arc::new(ca.credentials(ME, &clock))));
    watch.mark_unchanged();
    let life = Life {
        until: UnixTime::since_unix_epoch(Duration::from_secs(until)),
        clock: testing::shared(&clock),
        watch: Some(watch),
        bundles: ca.bundles(),
        chain: ca.sign(PEER, &KeyPair::generate().unwrap(), START - 60, START + HOUR),
        purpose: Purpose::Server,
        most: None,
    };
    let (near, far) = duplex(1024);
    Fixture { ca, clock, published, lived: Lived::new(near, life), far }
}

fn ended(error: io::Error) -> Ended {
    *error.get_ref().unwrap().downcast_ref().unwrap()
}

#[tokio::test(start_paused = true)]
async fn bytes_pass_while_the_credentials_hold() {
    let mut it = fixture(START + HOUR);
    it.far.write_all(b"to us").await.unwrap();
    let mut got = [0; 5];
    it.lived.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"to us");
    it.lived.write_all(b"to them").await.unwrap();
    it.lived.shutdown().await.unwrap();
    let mut got = String::new();
    it.far.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "to them");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_reader_is_woken_when_the_credentials_expire() {
    let mut it = fixture(START + 100);
    let began = Instant::now();
    assert_eq!(ended(it.lived.read_u8().await.unwrap_err()), Ended::Expired);
    assert_eq!(began.elapsed().as_secs(), 101, "the last second belongs to the certificate");
    assert_eq!(ended(it.lived.write_all(b"x").await.unwrap_err()), Ended::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_forward_ends_the_connection_within_half_a_minute() {
    let mut it = fixture(START + HOUR);
    it.clock.step(HOUR as i64 + 1);
    let began = Instant::now();
    assert_eq!(ended(it.lived.read_u8().await.unwrap_err()), Ended::Expired);
    assert!(began.elapsed() <= LOOK_AGAIN);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_lost_the_peers_root_ends_the_connection_at_once() {
    let mut it = fixture(START + HOUR);
    let next = TestCa::new("cluster.local");
    let old = it.published.borrow().clone().unwrap();
    let moved = old.with_bundles(BundleSet::new(vec![next.bundle(2)]).unwrap()).unwrap();
    let began = Instant::now();
    it.published.send_replace(Some(Arc::new(moved)));
    assert_eq!(ended(it.lived.read_u8().await.unwrap_err()), Ended::Revoked);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_or_a_bundle_that_gained_a_root_ends_nothing() {
    let mut it = fixture(START + HOUR);
    it.published.send_replace(Some(Arc::new(it.ca.credentials(ME, &it.clock))));
    let began = Instant::now();
    assert_eq!(ended(it.lived.read_u8().await.unwrap_err()), Ended::Expired);
    assert!(began.elapsed().as_secs() > HOUR - 1);
    assert!(it.clock.now().as_secs() > START + HOUR);
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_is_gone_does_not_end_the_connection_nor_spin() {
    let it = fixture(START + 60);
    drop(it.published);
    let mut lived = it.lived;
    let began = Instant::now();
    assert_eq!(ended(lived.read_u8().await.unwrap_err()), Ended::Expired);
    assert_eq!(began.elapsed().as_secs(), 61);
}
