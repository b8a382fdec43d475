use super::*;

#[test]
fn a_flood_of_refusals_is_a_handful_of_lines() {
    let refusals = Refusals::new(|_| ());
    let spoken = |second| (0..1000).filter(|_| refusals.may_speak(second)).count();
    assert_eq!(spoken(7), LOGGED_A_SECOND as usize);
    assert_eq!(spoken(8), LOGGED_A_SECOND as usize);
    assert_eq!(refusals.unsaid.load(Ordering::Relaxed), 2 * (1000 - LOGGED_A_SECOND));
}
