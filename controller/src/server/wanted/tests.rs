use std::time::Duration;

use countersign_api::controller::answer::Who;

use super::*;
use crate::testing::{MESH, SERVICES, index, small_mesh, workloads};

fn asked(ip: &str, port: u16) -> Asked {
    Asked { ip: ip.parse().unwrap(), port }
}

fn wanted() -> Wanted {
    Wanted::new(Instant::now())
}

fn drain(wanted: &mut Wanted, index: &Index) -> Vec<Due> {
    std::iter::from_fn(|| wanted.next(index)).collect()
}

#[tokio::test]
async fn only_what_changed_is_said_again() {
    let before = small_mesh(&[]);
    let mut wanted = wanted();
    for lookup in [asked("10.77.0.11", 1), asked("10.77.0.12", 1), asked("10.96.0.10", 80), asked("10.77.0.99", 1)] {
        wanted.ask(lookup);
    }
    assert_eq!(drain(&mut wanted, &before).len(), 4);
    wanted.recheck(&before);
    assert!(!wanted.is_due());
    let after = index(&[MESH, &workloads().replace(", ready: false", ""), SERVICES]);
    wanted.recheck(&after);
    let mut said: Vec<_> = drain(&mut wanted, &after)
        .into_iter()
        .map(|due| {
            assert!(!due.asked);
            Asked::from_wire(due.answer.address.as_ref().unwrap()).unwrap().ip.to_string()
        })
        .collect();
    said.sort();
    assert_eq!(said, ["10.77.0.12", "10.96.0.10"]);
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_and_nothing_that_came_and_went() {
    let before = small_mesh(&[]);
    let after = index(&[MESH, &workloads().replace(", ready: false", ""), SERVICES]);
    let mut wanted = wanted();
    wanted.ask(asked("10.77.0.12", 1));
    drain(&mut wanted, &before);
    for _ in 0..10 {
        wanted.recheck(&after);
        wanted.recheck(&before);
    }
    assert!(drain(&mut wanted, &before).is_empty(), "it is as it was said");
    wanted.recheck(&after);
    wanted.recheck(&after);
    let said = drain(&mut wanted, &after);
    assert_eq!(said.len(), 1);
    let Some(Who::Endpoint(endpoint)) = &said[0].answer.who else { panic!() };
    assert!(endpoint.ready);
}

#[tokio::test]
async fn each_lookup_is_answered_even_if_nothing_changed() {
    let index = small_mesh(&[]);
    let mut wanted = wanted();
    for _ in 0..3 {
        wanted.ask(asked("10.77.0.13", 5432));
        assert_eq!(drain(&mut wanted, &index).len(), 1, "an un-meshed answer expires and is asked for again");
    }
    assert_eq!(wanted.followed(), 1);
}

#[tokio::test]
async fn what_is_forgotten_is_not_pushed() {
    let before = small_mesh(&[]);
    let after = index(&[MESH, &workloads().replace(", ready: false", ""), SERVICES]);
    let mut wanted = wanted();
    wanted.ask(asked("10.77.0.12", 1));
    drain(&mut wanted, &before);
    wanted.recheck(&after);
    wanted.forget(asked("10.77.0.12", 1));
    assert!(drain(&mut wanted, &after).is_empty());
    assert_eq!(wanted.followed(), 0);
    wanted.ask(asked("10.77.0.12", 1));
    wanted.forget(asked("10.77.0.12", 1));
    wanted.ask(asked("10.77.0.12", 1));
    assert_eq!(drain(&mut wanted, &after).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn messages_are_bounded_in_rate_in_waiting_and_in_memory() {
    let index = small_mesh(&[]);
    let mut wanted = wanted();
    let mut number = 0u32;
    let mut next = || {
        number += 1;
        Asked { ip: std::net::Ipv4Addr::from(0x0a4d_0000 + number).into(), port: 1 }
    };
    let take = |wanted: &mut Wanted, asked| {
        wanted.spend();
        wanted.ask(asked);
    };
    while wanted.ready_at(Instant::now()).is_some() {
        take(&mut wanted, next());
    }
    assert_eq!(wanted.due.len(), MAX_WAITING, "nobody reads: no more is taken");
    drain(&mut wanted, &index);
    for _ in MAX_WAITING..MESSAGE_BURST as usize {
        assert_eq!(wanted.ready_at(Instant::now()), Some(Instant::now()));
        take(&mut wanted, next());
        drain(&mut wanted, &index);
    }
    assert!(wanted.ready_at(Instant::now()).unwrap() > Instant::now(), "the burst is used up");
    tokio::time::advance(Duration::from_secs(2)).await;
    for _ in 0..2 * MESSAGES_PER_SECOND {
        assert_eq!(wanted.ready_at(Instant::now()), Some(Instant::now()));
        take(&mut wanted, next());
        drain(&mut wanted, &index);
    }
    assert!(wanted.ready_at(Instant::now()).unwrap() > Instant::now());

    while wanted.followed() < MAX_FOLLOWED {
        wanted.ask(next());
        assert!(drain(&mut wanted, &index)[0].followed);
    }
    wanted.ask(next());
    let beyond = drain(&mut wanted, &index);
    assert!(beyond[0].asked && !beyond[0].followed, "answered, not followed");
    assert_eq!(wanted.followed(), MAX_FOLLOWED);
}

#[tokio::test(start_paused = true)]
async fn asking_and_forgetting_by_turns_does_not_grow_what_waits() {
    let mut wanted = wanted();
    let mut number = 0u32;
    while wanted.ready_at(Instant::now()).is_some() {
        tokio::time::advance(Duration::from_secs(1)).await;
        number += 1;
        let asked = Asked { ip: std::net::Ipv4Addr::from(0x0a4d_0000 + number).into(), port: 1 };
        wanted.spend();
        wanted.ask(asked);
        wanted.forget(asked);
        assert!(wanted.due.len() <= MAX_FOLLOWED + MAX_WAITING);
    }
}
