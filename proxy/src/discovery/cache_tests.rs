//! What is remembered, for how long, and what is asked: each rule with the time given.

use super::*;
use crate::discovery::Endpoint;

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 77, 0, 11], port))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn endpoint(port: u16, identity: Identity) -> Arc<Endpoint> {
    Arc::new(Endpoint { address: at(port), identity, ready: true, node: "node-a".into() })
}

fn meshed() -> Identity {
    Identity::Meshed(countersign_identity::SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/backend").unwrap())
}

fn pod() -> Who {
    Who::Endpoint(endpoint(1, meshed()))
}

fn service(endpoints: Vec<Arc<Endpoint>>) -> Who {
    let (namespace, name) = ("shop".into(), "backend".into());
    Who::Service(Arc::new(Service { namespace, name, endpoints, local_only: false, affinity: None }))
}

/// A cache whose stream is up, and the time it began.
fn up() -> (Cache, Instant) {
    let now = Instant::now();
    let mut cache = Cache::new(now);
    cache.up(now);
    (cache, now)
}

fn known(cache: &mut Cache, addr: SocketAddr, now: Instant) -> Option<Who> {
    match cache.find(addr, now) {
        Find::Known { who, .. } => Some(who),
        Find::Wait { .. } => {
            cache.waiter_left(addr);
            None
        }
        Find::TooMany => panic!("too many"),
    }
}

/// Asks and answers.
fn learn(cache: &mut Cache, addr: SocketAddr, who: Who, ttl: Option<Duration>, now: Instant) {
    assert!(matches!(cache.find(addr, now), Find::Wait { .. }));
    assert_eq!(cache.say(), Some(Say::Lookup(addr)));
    assert!(cache.answer(addr, who, ttl, now));
    cache.waiter_left(addr);
}

#[test]
fn many_who_ask_for_one_address_share_one_lookup() {
    let (mut cache, now) = up();
    for _ in 0..10 {
        assert!(matches!(cache.find(at(1), now), Find::Wait { .. }));
    }
    assert_eq!((cache.say(), cache.say()), (Some(Say::Lookup(at(1))), None));
}

#[test]
fn a_meshed_answer_goes_on_without_end() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), pod(), None, now);
    assert_eq!(known(&mut cache, at(1), now + secs(100_000)), Some(pod()));
    cache.down(now);
    assert_eq!(known(&mut cache, at(1), now + secs(200_000)), Some(pod()));
}

#[test]
fn an_unmeshed_answer_ends_with_its_life_even_while_nobody_can_be_asked() {
    for outage in [false, true] {
        let (mut cache, now) = up();
        learn(&mut cache, at(1), Who::NotMeshed, Some(secs(30)), now);
        if outage {
            cache.down(now);
        }
        assert_eq!(known(&mut cache, at(1), now + secs(29)), Some(Who::NotMeshed));
        assert_eq!(known(&mut cache, at(1), now + secs(30)), None, "outage: {outage}");
        assert_eq!(cache.last_known(at(1), now + secs(30)), None);
    }
}

#[test]
fn an_unmeshed_answer_holds_its_whole_life_from_when_the_controller_was_lost() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), Who::NotMeshed, Some(secs(30)), now);
    cache.down(now + secs(14));
    assert_eq!(known(&mut cache, at(1), now + secs(43)), Some(Who::NotMeshed));
    assert_eq!(known(&mut cache, at(1), now + secs(44)), None);
}

#[test]
fn a_stream_that_comes_and_goes_keeps_no_unmeshed_answer_that_it_did_not_give() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), Who::NotMeshed, Some(secs(30)), now);
    for second in 1..=10 {
        cache.down(now + secs(second));
        cache.up(now + secs(second));
    }
    cache.down(now + secs(11));
    assert_eq!(known(&mut cache, at(1), now + secs(30)), Some(Who::NotMeshed), "from the first loss on");
    assert_eq!(known(&mut cache, at(1), now + secs(31)), None);
}

#[test]
fn an_unmeshed_answer_that_was_asked_for_again_in_vain_is_not_held_longer() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), Who::NotMeshed, Some(secs(30)), now);
    assert!(matches!(cache.find(at(1), now + secs(16)), Find::Known { refresh: true, .. }));
    cache.down(now + secs(20));
    assert_eq!(known(&mut cache, at(1), now + secs(30)), None, "the stream had died before it was lost");
}

#[test]
fn of_a_mixed_service_only_the_meshed_part_outlives_an_outage() {
    let (mut cache, now) = up();
    let mixed = service(vec![endpoint(1, meshed()), endpoint(2, Identity::NotMeshed)]);
    learn(&mut cache, at(80), mixed.clone(), Some(secs(30)), now);
    assert_eq!(known(&mut cache, at(80), now + secs(1)), Some(mixed));
    // The controller is there: it is asked, and the old answer is only for whoever waited in vain.
    assert_eq!(known(&mut cache, at(80), now + secs(31)), None);
    let meshed_part = service(vec![endpoint(1, meshed())]);
    assert_eq!(cache.last_known(at(80), now + secs(31)), Some(meshed_part.clone()));
    // It is not: nobody need wait.
    cache.down(now + secs(31));
    assert_eq!(known(&mut cache, at(80), now + secs(32)), Some(meshed_part));
}

#[test]
fn a_service_of_unmeshed_endpoints_alone_does_not_outlive_them() {
    let (mut cache, now) = up();
    learn(&mut cache, at(80), service(vec![endpoint(2, Identity::NotMeshed)]), Some(secs(30)), now);
    cache.down(now);
    assert_eq!(known(&mut cache, at(80), now + secs(31)), None);
}

#[test]
fn an_unmeshed_answer_in_use_is_asked_again_before_it_ends() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), Who::NotMeshed, Some(secs(30)), now);
    assert!(matches!(cache.find(at(1), now + secs(14)), Find::Known { refresh: false, .. }));
    assert!(matches!(cache.find(at(1), now + secs(16)), Find::Known { refresh: true, .. }));
    assert!(matches!(cache.find(at(1), now + secs(17)), Find::Known { refresh: false, .. }), "asked twice");
    assert_eq!((cache.say(), cache.say()), (Some(Say::Lookup(at(1))), None));
    cache.answer(at(1), Who::NotMeshed, Some(secs(30)), now + secs(18));
    assert_eq!(known(&mut cache, at(1), now + secs(47)), Some(Who::NotMeshed));
}

#[test]
fn a_pushed_change_replaces_the_answer() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), Who::Unknown, None, now);
    assert!(cache.answer(at(1), pod(), None, now));
    assert_eq!(known(&mut cache, at(1), now), Some(pod()));
}

#[test]
fn an_answer_that_nobody_asked_for_is_not_kept() {
    let (mut cache, now) = up();
    assert!(!cache.answer(at(1), pod(), None, now));
    assert_eq!(cache.remembered(now, 10).0, 0);
}

#[test]
fn a_distrusted_answer_is_gone_and_asked_once_more() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), pod(), None, now);
    cache.distrust(at(1), now);
    assert_eq!(known(&mut cache, at(1), now), None);
    assert_eq!(cache.say(), Some(Say::Lookup(at(1))));
    assert_eq!(cache.last_known(at(1), now), None);
}

#[test]
fn one_wrong_endpoint_does_not_use_up_the_lookups_of_all() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), pod(), None, now);
    cache.distrust(at(1), now);
    learn(&mut cache, at(1), pod(), None, now);
    for _ in 0..2 * LOOKUP_BURST {
        cache.distrust(at(1), now + secs(1) - Duration::from_millis(1));
        assert!(known(&mut cache, at(1), now).is_some());
    }
    assert_eq!(cache.say(), None);
    cache.distrust(at(1), now + secs(1));
    assert_eq!(known(&mut cache, at(1), now + secs(1)), None);
}

#[test]
fn without_a_controller_a_wrong_endpoint_does_not_take_the_others_away() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), service(vec![endpoint(1, meshed()), endpoint(2, meshed())]), None, now);
    cache.down(now);
    cache.distrust(at(1), now);
    assert!(known(&mut cache, at(1), now).is_some());
}

#[test]
fn after_a_reconnect_everything_is_asked_again_the_awaited_first() {
    let (mut cache, now) = up();
    for port in [1, 2, 3] {
        learn(&mut cache, at(port), pod(), None, now);
    }
    cache.down(now);
    known(&mut cache, at(1), now);
    assert!(matches!(cache.find(at(9), now), Find::Wait { .. }));
    cache.up(now);
    let said: Vec<_> = std::iter::from_fn(|| cache.say()).collect();
    assert_eq!(said, [9, 1, 3, 2].map(|port| Say::Lookup(at(port))));
    // Until the new answer came, the old one holds; then it is replaced.
    assert_eq!(known(&mut cache, at(2), now), Some(pod()));
    cache.answer(at(2), Who::Unknown, None, now);
    assert_eq!(known(&mut cache, at(2), now), Some(Who::Unknown));
}

#[test]
fn what_nobody_waits_for_and_nobody_answered_is_dropped_in_an_outage() {
    let now = Instant::now();
    let mut cache = Cache::new(now);
    for port in 1..100 {
        assert_eq!(known(&mut cache, at(port), now), None);
    }
    assert_eq!(cache.remembered(now, 10).0, 0);
    let (mut cache, now) = up();
    assert_eq!(known(&mut cache, at(1), now), None);
    assert_eq!(cache.remembered(now, 10).0, 1, "the answer may come late");
    cache.down(now);
    assert_eq!(cache.remembered(now, 10).0, 0);
}

#[test]
fn a_lookup_that_is_never_answered_is_sent_again_but_not_at_once() {
    let (mut cache, now) = up();
    assert_eq!(known(&mut cache, at(1), now), None);
    assert_eq!(known(&mut cache, at(1), now + secs(9)), None);
    assert_eq!((cache.say(), cache.say()), (Some(Say::Lookup(at(1))), None));
    assert_eq!(known(&mut cache, at(1), now + secs(10)), None);
    assert_eq!((cache.say(), cache.say()), (Some(Say::Lookup(at(1))), None));
}

/// Fills the memory for destinations; gives the time it took.
fn fill(cache: &mut Cache, mut now: Instant) -> Instant {
    for i in 0..DESTINATIONS {
        now += Duration::from_millis(10);
        learn(cache, nth(i), pod(), None, now);
    }
    now
}

const DESTINATIONS: usize = MAX_REMEMBERED[0];

fn nth(i: usize) -> SocketAddr {
    at(u16::try_from(i + 1).unwrap())
}

#[test]
fn the_least_recently_used_gives_way_and_the_controller_is_told() {
    let (mut cache, now) = up();
    let mut now = fill(&mut cache, now);
    assert_eq!(known(&mut cache, nth(0), now), Some(pod()));
    now += secs(1);
    assert!(matches!(cache.find(nth(DESTINATIONS), now), Find::Wait { .. }));
    let said: Vec<_> = std::iter::from_fn(|| cache.say()).collect();
    assert_eq!(said, [Say::Forget(nth(1)), Say::Lookup(nth(DESTINATIONS))]);
    assert_eq!(cache.remembered(now, 10).0, DESTINATIONS);
}

#[test]
fn strangers_do_not_have_the_apps_destinations_forgotten() {
    let (mut cache, mut now) = up();
    learn(&mut cache, at(1), pod(), None, now);
    for i in 0..2 * MAX_ENTRIES {
        now += Duration::from_millis(10);
        let [a, b] = u16::try_from(i).unwrap().to_be_bytes();
        asks(&mut cache, SocketAddr::from(([10, 77, a, b], 0)), now);
        while cache.say().is_some() {}
    }
    assert_eq!(cache.remembered(now, 10).0, 1 + MAX_REMEMBERED[1]);
    assert_eq!(known(&mut cache, at(1), now), Some(pod()));
}

#[test]
fn without_a_controller_nothing_learned_gives_way() {
    let (mut cache, now) = up();
    let now = fill(&mut cache, now);
    cache.down(now);
    for i in 0..100 {
        let _ = cache.find(nth(DESTINATIONS + i), now + secs(i as u64));
    }
    assert!((0..DESTINATIONS).all(|i| known(&mut cache, nth(i), now).is_some()));
}

#[test]
fn new_lookups_are_limited_in_rate_and_known_answers_are_not() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), pod(), None, now);
    let asked = (0..1000).filter(|i| asks(&mut cache, at(1000 + i), now)).count();
    assert_eq!(asked, LOOKUP_BURST as usize - 1);
    assert_eq!(known(&mut cache, at(1), now), Some(pod()));
    let asked = (0..1000).filter(|i| asks(&mut cache, at(3000 + i), now + Duration::from_millis(500))).count();
    assert_eq!(asked, LOOKUPS_PER_SECOND as usize / 2);
}

/// Whether a lookup for `addr` was let through; it is answered at once.
fn asks(cache: &mut Cache, addr: SocketAddr, now: Instant) -> bool {
    let asked = matches!(cache.find(addr, now), Find::Wait { .. });
    if asked {
        cache.answer(addr, Who::Unknown, None, now);
        cache.waiter_left(addr);
    }
    asked
}

#[test]
fn questions_about_sources_cannot_starve_questions_about_destinations() {
    let (mut cache, now) = up();
    let source = |i: u8| SocketAddr::from(([10, 77, 0, i], 0));
    while !matches!(cache.find(source(1), now), Find::TooMany) {}
    for i in 2..=255 {
        cache.find(source(i), now);
    }
    assert!(matches!(cache.find(source(1), now), Find::TooMany));
    assert!(matches!(cache.find(at(80), now), Find::Wait { .. }));
}

#[test]
fn those_who_wait_are_bounded() {
    let (mut cache, now) = up();
    for _ in 0..MAX_WAITING {
        assert!(matches!(cache.find(at(1), now), Find::Wait { .. }));
    }
    assert!(matches!(cache.find(at(1), now), Find::TooMany));
    cache.waiter_left(at(1));
    assert!(matches!(cache.find(at(1), now), Find::Wait { .. }));
}

#[test]
fn the_unanswered_are_bounded_and_one_that_nobody_awaits_gives_way() {
    let (mut cache, mut now) = up();
    for port in 1..=u16::try_from(MAX_UNANSWERED).unwrap() {
        now += Duration::from_millis(10);
        assert!(matches!(cache.find(at(port), now), Find::Wait { .. }));
    }
    now += secs(1);
    assert!(matches!(cache.find(at(9999), now), Find::TooMany));
    cache.waiter_left(at(7));
    assert!(matches!(cache.find(at(9999), now), Find::Wait { .. }));
    assert_eq!(cache.remembered(now, 10).0, MAX_UNANSWERED);
}

#[test]
fn what_nobody_wanted_for_long_is_forgotten() {
    let (mut cache, now) = up();
    learn(&mut cache, at(1), pod(), None, now);
    learn(&mut cache, at(2), pod(), None, now + secs(300));
    assert!(!cache.sweep(now + secs(599)));
    assert!(cache.sweep(now + secs(600)));
    assert_eq!((cache.say(), cache.say()), (Some(Say::Forget(at(1))), None));
}

#[test]
fn a_lookup_of_what_was_forgotten_meanwhile_is_not_said() {
    let (mut cache, now) = up();
    assert_eq!(known(&mut cache, at(1), now), None);
    cache.sweep(now + secs(600));
    assert_eq!(cache.say(), Some(Say::Forget(at(1))));
    assert_eq!(cache.say(), None);
}
