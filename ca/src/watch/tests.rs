use tempfile::TempDir;
use tokio_stream::StreamExt as _;

use super::*;
use crate::clock::seconds;
use crate::state::{Beside, Opened, StateKey};
use crate::testing::{HOUR, Hand, LIVES, START, authority, domain, first_state, open_state, peer, private_dir};

struct Desk {
    _dir: TempDir,
    hand: Hand,
    state: Arc<State>,
    shutdown: CancellationToken,
    bundles: Bundles,
}

fn desk(max: usize) -> Desk {
    let dir = private_dir();
    let key = StateKey::from_text("x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    let opened = open_state(&dir.path().join("state"), key, &domain(), seconds(START)).unwrap();
    let Opened::Vacant(vacant) = opened else { panic!("a state is there") };
    let state = Arc::new(first_state(vacant, seconds(START)));
    let hand = Hand::at(START);
    let shutdown = CancellationToken::new();
    let bundles = Bundles::new(Arc::clone(&state), Arc::new(Holders::new(0)), hand.clock(), max, shutdown.clone());
    Desk { _dir: dir, hand, state, shutdown, bundles }
}

#[tokio::test]
async fn the_bundle_comes_at_once() {
    let desk = desk(10);
    let authority = desk.state.authority();
    let mut stream = desk.bundles.watch(Some(&peer(&authority)), 0).unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!((first.trust_domain.as_str(), first.generation), ("mesh.test", 1));
    assert_eq!(first.roots, [authority.root().certificate().to_vec()]);
}

#[tokio::test]
async fn without_an_svid_there_is_no_stream() {
    assert_eq!(desk(10).bundles.watch(None, 0).unwrap_err(), WatchRefusal::NoSvid);
}

#[tokio::test]
async fn an_svid_of_another_trust_domain_gets_no_stream() {
    let other = countersign_identity::TrustDomain::parse("other.test").unwrap();
    let stranger = Authority::create(&other, LIVES, seconds(START)).unwrap();
    let refused = desk(10).bundles.watch(Some(&peer(&stranger)), 0).unwrap_err();
    assert_eq!(refused, WatchRefusal::Stranger(domain()));
}

#[tokio::test]
async fn streams_are_bounded_for_one_leaf_and_for_all() {
    let desk = desk(6);
    let authority = desk.state.authority();
    let (one, two) = (peer(&authority), peer(&authority));
    let held: Vec<_> = (0..10).filter_map(|_| desk.bundles.watch(Some(&one), 0).ok()).collect();
    assert_eq!(held.len(), 4);
    let more: Vec<_> = (0..10).filter_map(|_| desk.bundles.watch(Some(&two), 0).ok()).collect();
    assert_eq!(more.len(), 2);
    assert_eq!(desk.bundles.watch(Some(&peer(&authority)), 0).unwrap_err(), WatchRefusal::TooMany);
    drop((held, more));
    // The followers notice that nobody reads any more.
    while desk.bundles.open() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(desk.bundles.watch(Some(&one), 0).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_the_leaf_that_opened_it() {
    let desk = desk(10);
    let mut stream = desk.bundles.watch(Some(&peer(&desk.state.authority())), 0).unwrap();
    stream.next().await.unwrap().unwrap();
    desk.hand.advance(HOUR + 1);
    assert_eq!(stream.next().await.unwrap().unwrap_err(), WatchEnd::Expired);
    assert!(stream.next().await.is_none());
    assert_eq!(desk.bundles.open(), 0);
}

#[tokio::test]
async fn shutdown_ends_every_stream() {
    let desk = desk(10);
    let mut stream = desk.bundles.watch(Some(&peer(&desk.state.authority())), 0).unwrap();
    stream.next().await.unwrap().unwrap();
    desk.shutdown.cancel();
    assert_eq!(stream.next().await.unwrap().unwrap_err(), WatchEnd::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn a_new_issuer_sends_no_bundle_and_a_new_generation_does() {
    let desk = desk(10);
    let first = desk.state.authority();
    let mut stream = desk.bundles.watch(Some(&peer(&first)), 0).unwrap();
    stream.next().await.unwrap().unwrap();
    let renewed = first.with_new_issuer(LIVES, seconds(START + 1)).unwrap();
    desk.state.commit(desk.state.draft_for_test(renewed), seconds(START)).await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_secs(5), stream.next()).await;
    assert!(quiet.is_err(), "same content, same generation: nothing to send");
    let other = authority();
    let pair = |pair: &crate::state::Pair| (pair.certificate().to_vec(), pair.secret_for_test());
    let (root, issuer) = (pair(other.root()), pair(other.issuer()));
    let next =
        Authority::restore(&domain(), 2, (&root.0, &root.1), (&issuer.0, &issuer.1), Beside::default(), seconds(START))
            .unwrap();
    desk.state.commit(desk.state.draft_for_test(next), seconds(START)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().generation, 2);
}
