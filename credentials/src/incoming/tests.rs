use std::net::IpAddr;

use super::*;

#[test]
fn one_source_takes_a_quarter_of_the_handshakes_at_most() {
    let slots = Slots::new(8);
    let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
    let held: Vec<_> = (0..2).map(|_| slots.take(one).unwrap()).collect();
    assert!(slots.take(one).is_none());
    let _other = slots.take(two).unwrap();
    drop(held);
    assert!(slots.take(one).is_some());
}

#[test]
fn an_ipv4_source_in_ipv6_clothes_is_the_same_source() {
    let slots = Slots::new(4);
    let plain = IpAddr::from([10, 0, 0, 1]);
    let mapped = "::ffff:10.0.0.1".parse().unwrap();
    let _held = slots.take(plain).unwrap();
    assert!(slots.take(mapped).is_none());
}

#[test]
fn the_whole_of_the_handshakes_is_bounded_and_given_back() {
    let slots = Slots::new(4);
    let held: Vec<_> = (0..4).map(|last| slots.take(IpAddr::from([10, 0, 0, last])).unwrap()).collect();
    assert!(slots.take(IpAddr::from([10, 0, 0, 9])).is_none());
    drop(held);
    assert!(slots.used.lock().unwrap().is_empty(), "sources are forgotten");
}

#[test]
fn a_flood_of_refusals_is_a_handful_of_lines() {
    let refusals = Refusals::new();
    let spoken = |second| (0..1000).filter(|_| refusals.may_speak(second)).count();
    assert_eq!(spoken(7), LOGGED_A_SECOND as usize);
    assert_eq!(spoken(8), LOGGED_A_SECOND as usize);
    assert_eq!(refusals.unsaid.load(Ordering::Relaxed), 2 * (1000 - LOGGED_A_SECOND));
}
