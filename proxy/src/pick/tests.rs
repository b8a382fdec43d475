use super::*;
use crate::discovery::Identity;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::Duration;

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 80))
}

fn asked() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 1], 80))
}

fn service(endpoints: &[(u8, bool, &str)]) -> Service {
    Service {
        namespace: "shop".into(),
        name: "backend".into(),
        endpoints: endpoints
            .iter()
            .map(|(n, ready, node)| {
                let identity = Identity::NotMeshed;
                Arc::new(Endpoint { address: address(*n), identity, ready: *ready, node: (*node).into() })
            })
            .collect(),
        local_only: false,
        affinity: None,
    }
}

struct Case {
    picks: Arc<Picks>,
    random: StdRng,
    now: Instant,
}

impl Case {
    fn new() -> Self {
        Self { picks: Arc::default(), random: StdRng::seed_from_u64(1), now: Instant::now() }
    }
    fn pick(&mut self, service: &Service, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let picked = self.picks.pick(service, asked(), "node-a", tried, self.now, &mut self.random);
        picked.map(|e| e.address)
    }
}

#[test]
fn only_ready_endpoints_that_were_not_tried_are_picked() {
    let (mut case, s) = (Case::new(), service(&[(1, true, ""), (2, false, ""), (3, true, "")]));
    for _ in 0..50 {
        assert!([address(1), address(3)].contains(&case.pick(&s, &[]).unwrap()));
        assert_eq!(case.pick(&s, &[address(1)]), Some(address(3)));
    }
    assert_eq!(case.pick(&s, &[address(1), address(3)]), None);
    assert_eq!(case.pick(&service(&[]), &[]), None);
}

#[test]
fn all_endpoints_are_used_and_the_one_with_fewer_connections_wins() {
    let (mut case, s) = (Case::new(), service(&[(1, true, ""), (2, true, "")]));
    let loads: Vec<Load> = (0..100)
        .map(|_| {
            let a = case.pick(&s, &[]).unwrap();
            case.picks.load(a)
        })
        .collect();
    let first = loads.iter().filter(|l| l.address == address(1)).count();
    assert_eq!(first, 50, "of two, the one with fewer open connections is always taken");
    drop(loads);
    assert!(case.picks.lock().open.is_empty());
}

#[test]
fn one_that_failed_is_left_alone_while_others_are_there() {
    let (mut case, s) = (Case::new(), service(&[(1, true, ""), (2, true, ""), (3, true, "")]));
    case.picks.load(address(1)).failed(case.now);
    // The others have connections, and it has none: that is no reason to go there.
    let _busy: Vec<Load> = [2, 3, 2, 3].map(|n| case.picks.load(address(n))).into();
    for _ in 0..50 {
        assert_ne!(case.pick(&s, &[]), Some(address(1)));
    }
    assert_eq!(case.pick(&s, &[address(2), address(3)]), Some(address(1)), "better than nobody");
}

#[test]
fn one_that_failed_is_tried_again_by_one_connection_at_a_time_until_it_works() {
    let (mut case, s) = (Case::new(), service(&[(1, true, ""), (2, true, "")]));
    case.picks.load(address(1)).failed(case.now);
    let _busy: Vec<Load> = (0..3).map(|_| case.picks.load(address(2))).collect();
    for _ in 0..3 {
        assert_eq!(case.pick(&s, &[]), Some(address(2)));
        case.now += AILING;
        assert_eq!(case.pick(&s, &[]), Some(address(1)), "due for a try");
    }
    assert_eq!(case.pick(&s, &[]), Some(address(2)), "nobody knows yet what came of it");
    case.picks.load(address(1)).worked();
    assert_eq!(case.pick(&s, &[]), Some(address(1)));
    assert!(case.picks.lock().ailing.is_empty());
}

#[test]
fn connections_that_are_still_being_opened_count() {
    let (mut case, s) = (Case::new(), service(&[(1, true, ""), (2, true, "")]));
    let mut dialling = Vec::new();
    for _ in 0..40 {
        let chosen = case.pick(&s, &[]).unwrap();
        dialling.push(case.picks.load(chosen));
    }
    assert_eq!(dialling.iter().filter(|load: &&Load| load.address == address(1)).count(), 20);
}

#[test]
fn remembered_failures_are_bounded() {
    let case = Case::new();
    for n in 0..2000u32 {
        let address = SocketAddr::from((n.to_be_bytes(), 80));
        case.picks.load(address).failed(case.now + Duration::from_millis(n.into()));
    }
    assert_eq!(case.picks.lock().ailing.len(), MOST_AILING);
}

#[test]
fn a_local_service_stays_on_its_node() {
    let (mut case, mut s) = (Case::new(), service(&[(1, true, "node-a"), (2, true, "node-b")]));
    s.local_only = true;
    for _ in 0..20 {
        assert_eq!(case.pick(&s, &[]), Some(address(1)));
    }
    assert_eq!(case.pick(&s, &[address(1)]), None);
}

#[test]
fn affinity_holds_for_its_time_and_while_the_endpoint_is_ready() {
    let (mut case, mut s) = (Case::new(), service(&[(1, true, ""), (2, true, ""), (3, true, "")]));
    s.affinity = Some(Duration::from_secs(60));
    let first = case.pick(&s, &[]).unwrap();
    for _ in 0..20 {
        case.now += Duration::from_secs(50);
        assert_eq!(case.pick(&s, &[]), Some(first));
    }
    s.endpoints.retain(|e| e.address != first);
    let second = case.pick(&s, &[]).unwrap();
    assert_ne!(second, first);
    assert_eq!(case.pick(&s, &[]), Some(second));
}

#[test]
fn remembered_affinities_are_bounded() {
    let (mut case, mut s) = (Case::new(), service(&[(1, true, "")]));
    s.affinity = Some(Duration::from_secs(60));
    for n in 0..2000u32 {
        case.now += Duration::from_millis(1);
        let asked = SocketAddr::from((n.to_be_bytes(), 80));
        case.picks.pick(&s, asked, "", &[], case.now, &mut case.random);
    }
    assert_eq!(case.picks.lock().affinity.len(), MOST_AFFINITIES);
}
