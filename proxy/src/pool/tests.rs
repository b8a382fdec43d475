use super::*;
use crate::testing::{TestCa, links_between, tcp_pair};
use crate::wire::frame::{Event, Took};
use countersign_credentials::Credentials;
use countersign_identity::BundleSet;
use countersign_kit::TestClock;
use std::task::Poll;

const LIMITS: Limits = Limits { total: 3, each: 2, idle: Duration::from_secs(30) };

struct Case {
    pool: Pool,
    ca: TestCa,
    ours: Arc<Credentials>,
    key: Key,
    life: Duration,
    clock: TestClock,
    servers: Vec<Link>,
}

impl Case {
    fn new(life: Duration) -> Self {
        let (ca, clock) = (TestCa::new("cluster.local"), TestClock::from_now());
        let ours = ca.credentials_by("frontend", life, clock.clock());
        let key = Key {
            address: SocketAddr::from(([10, 0, 0, 1], 80)),
            id: SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/backend").unwrap(),
            credentials: Generation::of(&ours),
        };
        Self { pool: Pool::new(LIMITS, Gauge::default()), ca, ours, key, life, clock, servers: Vec::new() }
    }

    fn take(&self, key: &Key, now: Instant) -> Option<Kept> {
        self.pool.take(key, &self.ours, now)
    }

    async fn put(&mut self, key: Key) {
        let link = self.link().await;
        self.pool.put(key, link.0, link.1, Instant::now());
    }

    async fn link(&mut self) -> (Box<Link>, Arc<Peer>) {
        let backend = self.ca.credentials_by("backend", self.life, self.clock.clock());
        let limit = Duration::from_secs(10);
        let (client, server) = links_between(tcp_pair().await, &self.ours, &backend, limit).await;
        let (mut link, peer) = client;
        self.servers.push(*server.0);
        // Past what the handshake left, so that it stands between two application connections.
        std::future::poll_fn(|cx| {
            assert!(link.poll_events(cx, &mut |_| Ok(Took::All)).is_pending());
            Poll::Ready(())
        })
        .await;
        (link, Arc::new(peer))
    }

    /// A link whose `FIN` is due.
    async fn put_owing(&mut self, now: Instant) {
        let (mut link, peer) = self.link().await;
        link.owe_fin();
        self.pool.put(self.key.clone(), link, peer, now);
    }
}

async fn hears_fin(server: &mut Link) {
    let mut heard = false;
    while !heard {
        let step = std::future::poll_fn(|cx| {
            server.poll_events(cx, &mut |event| {
                heard |= event == Event::Fin;
                Ok(Took::All)
            })
        });
        tokio::time::timeout(Duration::from_secs(10), step).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_kept_link_is_used_again_once() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    assert!(case.take(&case.key, Instant::now()).is_some());
    assert!(case.take(&case.key, Instant::now()).is_none());
    assert!(case.pool.is_empty());
}

#[tokio::test]
async fn a_fin_that_no_next_connection_takes_along_is_sent_in_time() {
    let mut case = Case::new(Duration::from_secs(3600));
    let now = Instant::now();
    case.put_owing(now).await;
    assert_eq!(case.pool.settle(now), 1, "it waits for the next connection");
    assert_eq!(case.pool.settle(now + FIN_WAITS), 0);
    hears_fin(&mut case.servers[0]).await;
    assert_eq!(case.pool.settle(now + FIN_WAITS), 0);
    assert!(case.take(&case.key, Instant::now()).is_some(), "the link is as good as before");

    case.put_owing(Instant::now()).await;
    tokio::select! {
        () = case.pool.settle_in_time() => unreachable!(),
        () = hears_fin(&mut case.servers[1]) => {}
    }
    assert_eq!(case.pool.len(), 1);
}

#[tokio::test]
async fn a_link_that_is_not_kept_sends_the_fin_that_is_due() {
    let mut case = Case::new(Duration::from_secs(3600));
    for _ in 0..=LIMITS.each {
        case.put_owing(Instant::now()).await; // one finds no room
    }
    case.pool.sweep(None, Instant::now());
    for server in &mut case.servers {
        hears_fin(server).await;
    }
    assert_eq!(case.pool.settle(Instant::now()), 0);
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
    drop(case.take(&case.key, Instant::now()));
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
        assert!(case.take(&key, Instant::now()).is_none());
    }
    assert!(case.take(&case.key, Instant::now()).is_some());
}

/// What the bundle vouched for when the link was made it may vouch for no more.
#[tokio::test]
async fn a_new_bundle_alone_keeps_it_from_being_used_and_empties_the_pool() {
    let mut case = Case::new(Duration::from_secs(3600));
    let bundles = BundleSet::new(vec![case.ca.bundle(case.ours.generation() + 1)]).unwrap();
    let after = Credentials::new(Arc::clone(case.ours.svid()), bundles, case.ours.clock().clone()).unwrap();
    let new = Key { credentials: Generation::of(&after), ..case.key.clone() };
    case.put(case.key.clone()).await;
    assert!(case.pool.take(&new, &after, Instant::now()).is_none());
    assert_eq!(case.pool.len(), 1, "it is there, for the old key alone");
    case.pool.sweep(Some(&after), Instant::now());
    assert!(case.pool.is_empty());
}

#[tokio::test]
async fn an_old_link_and_one_whose_credentials_end_are_not_used() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    assert!(case.take(&case.key, Instant::now() + LIMITS.idle).is_none());
    let mut case = Case::new(Duration::from_secs(2));
    case.put(case.key.clone()).await;
    assert!(case.take(&case.key, Instant::now() + Duration::from_secs(1)).is_none());
}

#[tokio::test]
async fn a_link_whose_credentials_ended_by_the_wall_clock_alone_is_not_used() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    case.put(case.key.clone()).await;
    case.clock.advance(3590);
    assert!(case.take(&case.key, Instant::now()).is_some());
    case.clock.advance(20); // a machine that slept
    assert!(case.take(&case.key, Instant::now()).is_none());
}

#[tokio::test]
async fn an_open_connection_ends_when_the_wall_clock_passes_its_credentials_end() {
    let mut case = Case::new(Duration::from_secs(3600));
    case.put(case.key.clone()).await;
    let open = case.take(&case.key, Instant::now()).unwrap();
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
    case.pool.sweep(Some(&case.ours), Instant::now());
    assert_eq!(case.pool.len(), 1);
    let renewed = case.ca.credentials("frontend", Duration::from_secs(60));
    case.pool.sweep(Some(&renewed), Instant::now());
    assert!(case.pool.is_empty());
}

/// We have renewed under the new root, the other end has not: else short connections over kept links would keep the old root for as long as leaves live.
#[tokio::test]
async fn a_link_to_an_end_on_another_root_is_used_for_some_seconds_and_no_longer() {
    let mut case = Case::new(Duration::from_secs(3600));
    // As the key, these are ours; the links stand on what vouched for both ends before.
    let renewed = TestCa::new("cluster.local").credentials("frontend", Duration::from_secs(3600));
    let made = Instant::now();
    for _ in 0..2 {
        case.put(case.key.clone()).await;
    }
    let kept = case.pool.take(&case.key, &renewed, made + reauth::BEHIND / 2).unwrap();
    let later = Instant::now() + reauth::BEHIND;
    // Used again and again, it is as old as it was.
    case.pool.put(case.key.clone(), kept.link, kept.peer, later);
    assert_eq!(case.pool.len(), 2);
    assert!(case.pool.take(&case.key, &renewed, later).is_none());
    assert!(case.pool.is_empty());

    // And who lies there with nobody on it goes, too.
    case.put(case.key.clone()).await;
    let key = Key { credentials: Generation::of(&renewed), ..case.key.clone() };
    case.put(key.clone()).await;
    case.pool.sweep(Some(&renewed), Instant::now());
    assert_eq!(case.pool.len(), 1, "made with the credentials in force, and new");
    case.pool.sweep(Some(&renewed), Instant::now() + reauth::BEHIND);
    assert!(case.pool.is_empty());
}
