use super::*;
use crate::testing::{TestCa, links_between, tcp_pair};
use crate::wire::frame::Took;
use countersign_credentials::Credentials;
use countersign_identity::BundleSet;
use countersign_kit::TestClock;
use std::task::Poll;

const LIMITS: Limits = Limits { total: 3, each: 2, idle: Duration::from_secs(30) };

struct Case {
    pool: Pool,
    key: Key,
    life: Duration,
    clock: TestClock,
    servers: Vec<Link>,
}

impl Case {
    fn new(life: Duration) -> Self {
        let credentials = TestCa::new("cluster.local").credentials("frontend", life);
        let key = Key {
            address: SocketAddr::from(([10, 0, 0, 1], 80)),
            id: SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/backend").unwrap(),
            credentials: Generation::of(&credentials),
        };
        Self { pool: Pool::new(LIMITS, Gauge::default()), key, life, clock: TestClock::from_now(), servers: Vec::new() }
    }

    async fn put(&mut self, key: Key) {
        let ca = TestCa::new("cluster.local");
        let [frontend, backend] =
            ["frontend", "backend"].map(|name| ca.credentials_by(name, self.life, self.clock.clock()));
        let limit = Duration::from_secs(10);
        let (client, server) = links_between(tcp_pair().await, &frontend, &backend, limit).await;
        let (mut link, peer) = client;
        self.servers.push(*server.0);
        // Past what the handshake left, so that it stands between two application connections.
        std::future::poll_fn(|cx| {
            assert!(link.poll_events(cx, &mut |_| Ok(Took::All)).is_pending());
            Poll::Ready(())
        })
        .await;
        self.pool.put(key, link, Arc::new(peer), Instant::now());
    }
}

#[tokio::test]
async fn a_kept_link_is_used_again_once() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    assert!(case.pool.take(&case.key, Instant::now()).is_some());
    assert!(case.pool.take(&case.key, Instant::now()).is_none());
    assert!(case.pool.is_empty());
}

#[tokio::test]
async fn how_many_are_kept_shows_with_each_change() {
    let mut case = Case::new(Duration::from_secs(3600));
    let shown = case.pool.shown.clone();
    for n in 1..=2 {
        case.put(case.key.clone()).await;
        assert_eq!(shown.get(), n);
    }
    case.put(case.key.clone()).await;
    assert_eq!(shown.get(), 2, "there was no room");
    drop(case.pool.take(&case.key, Instant::now()));
    assert_eq!(shown.get(), 1);
    case.pool.sweep(None, Instant::now());
    assert_eq!(shown.get(), 0);
}

#[tokio::test]
async fn another_identity_address_or_leaf_never_gets_it() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    let other_id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/intruder").unwrap();
    let other_leaf = TestCa::new("cluster.local").credentials("frontend", Duration::from_secs(60));
    for key in [
        Key { id: other_id, ..case.key.clone() },
        Key { address: SocketAddr::from(([10, 0, 0, 2], 80)), ..case.key.clone() },
        Key { credentials: Generation::of(&other_leaf), ..case.key.clone() },
    ] {
        assert!(case.pool.take(&key, Instant::now()).is_none());
    }
    assert!(case.pool.take(&case.key, Instant::now()).is_some());
}

/// What the bundle vouched for when the link was made it may vouch for no more.
#[tokio::test]
async fn a_new_bundle_alone_keeps_it_from_being_used_and_empties_the_pool() {
    let ca = TestCa::new("cluster.local");
    let before = ca.credentials("frontend", Duration::from_secs(3600));
    let bundles = BundleSet::new(vec![ca.bundle(before.generation() + 1)]).unwrap();
    let after = Credentials::new(Arc::clone(before.svid()), bundles, before.clock().clone()).unwrap();
    let mut case = Case::new(Duration::from_secs(3600));
    let [old, new] = [&before, &after].map(|of| Key { credentials: Generation::of(of), ..case.key.clone() });
    case.put(old.clone()).await;
    assert!(case.pool.take(&new, Instant::now()).is_none());
    assert_eq!(case.pool.len(), 1, "it is there, for the old key alone");
    case.pool.sweep(Some(new.credentials), Instant::now());
    assert!(case.pool.is_empty());
}

#[tokio::test]
async fn an_old_link_and_one_whose_credentials_end_are_not_used() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    assert!(case.pool.take(&case.key, Instant::now() + LIMITS.idle).is_none());
    let mut case = Case::new(Duration::from_secs(2));
    case.put(case.key.clone()).await;
    assert!(case.pool.take(&case.key, Instant::now() + Duration::from_secs(1)).is_none());
}

#[tokio::test]
async fn a_link_whose_credentials_ended_by_the_wall_clock_alone_is_not_used() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    case.put(case.key.clone()).await;
    case.clock.advance(3590);
    assert!(case.pool.take(&case.key, Instant::now()).is_some());
    case.clock.advance(20); // a machine that slept
    assert!(case.pool.take(&case.key, Instant::now()).is_none());
}

#[tokio::test]
async fn an_open_connection_ends_when_the_wall_clock_passes_its_credentials_end() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    let open = case.pool.take(&case.key, Instant::now()).unwrap();
    tokio::time::pause();
    let minute = Duration::from_secs(60);
    let timer = std::pin::pin!(tokio::time::sleep_until(open.peer.ends()));
    let mut over = std::pin::pin!(open.peer.over(timer));
    assert!(tokio::time::timeout(minute, &mut over).await.is_err());
    case.clock.advance(3610); // a machine that slept
    tokio::time::timeout(minute, &mut over).await.unwrap();
}

#[tokio::test]
async fn the_pool_is_bounded_in_all_and_by_endpoint() {
    let mut case = Case::new(Duration::from_secs(3600));
    for _ in 0..3 {
        case.put(case.key.clone()).await;
    }
    assert_eq!(case.pool.len(), 2);
    let other = Key { address: SocketAddr::from(([10, 0, 0, 2], 80)), ..case.key.clone() };
    for _ in 0..2 {
        case.put(other.clone()).await;
    }
    assert_eq!(case.pool.len(), 3);
}

#[tokio::test]
async fn new_credentials_empty_the_pool() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    case.pool.sweep(Some(case.key.credentials), Instant::now());
    assert_eq!(case.pool.len(), 1);
    let renewed = TestCa::new("cluster.local").credentials("frontend", Duration::from_secs(60));
    case.pool.sweep(Some(Generation::of(&renewed)), Instant::now());
    assert!(case.pool.is_empty());
}
