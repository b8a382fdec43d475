use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::clock::seconds;
use crate::grant::Terms;
use crate::state::{Opened, StateKey};
use crate::testing::{
    DAY, HOUR, Hand, START, TokenIssuer, domain, first_state, open_state, own_id, private_dir, rules, write_jwks,
};

struct Desk {
    dir: TempDir,
    hand: Hand,
    upkeep: Upkeep,
}

fn desk() -> Desk {
    let dir = private_dir();
    let tokens = TokenIssuer::es256("k1");
    write_jwks(&dir.path().join("jwks"), &[tokens.jwk()]);
    let hand = Hand::at(START);
    let upkeep = Upkeep {
        state: Arc::new(open(&dir, START)),
        own: Arc::new(own(&hand)),
        jwks: Some(Arc::new(Jwks::open(&dir.path().join("jwks"), rules()).unwrap())),
        audit: Audit::at(&dir.path().join("audit.jsonl")).unwrap(),
        clock: hand.clock(),
        metrics: Arc::new(Metrics::new()),
    };
    Desk { dir, hand, upkeep }
}

fn own(hand: &Hand) -> Own {
    let terms = Terms { default: Duration::from_secs(HOUR), max: Duration::from_secs(DAY) };
    Own::new(own_id(), terms, hand.clock())
}

fn open(dir: &TempDir, at: u64) -> State {
    let key = StateKey::from_text("x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    match open_state(&dir.path().join("state"), key, &domain(), seconds(at)).unwrap() {
        Opened::Found(state) => state,
        Opened::Vacant(vacant) => first_state(vacant, seconds(at)),
    }
}

impl Desk {
    fn own_serial(&self) -> Option<String> {
        self.upkeep.own.subscribe().borrow().as_ref().map(|credentials| credentials.svid().serial().to_owned())
    }

    fn events(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.jsonl")).unwrap();
        let event = |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned();
        text.lines().map(event).collect()
    }
}

#[tokio::test]
async fn the_own_svid_is_made_at_the_start_and_renewed_at_half_its_life() {
    let desk = desk();
    desk.upkeep.renew().await.unwrap();
    let first = desk.own_serial().unwrap();
    // It began 300 s before it was made, so half of its life is over after 25 minutes.
    desk.hand.advance(24 * 60);
    desk.upkeep.renew().await.unwrap();
    assert_eq!(desk.own_serial().unwrap(), first);
    desk.hand.advance(7 * 60);
    desk.upkeep.renew().await.unwrap();
    assert_ne!(desk.own_serial().unwrap(), first);
    assert_eq!(desk.events(), ["own_leaf", "own_leaf"]);
}

#[tokio::test]
async fn a_due_issuer_is_recorded_stored_and_used_for_the_next_own_leaf() {
    let desk = desk();
    desk.upkeep.renew().await.unwrap();
    let before = desk.upkeep.state.authority().issuer().serial().to_owned();
    desk.hand.advance(21 * DAY);
    desk.upkeep.renew().await.unwrap();
    let authority = desk.upkeep.state.authority();
    assert_ne!(authority.issuer().serial(), before);
    assert_eq!(desk.events(), ["own_leaf", "issuer", "own_leaf"]);
    let credentials = desk.upkeep.own.subscribe().borrow().clone().unwrap();
    assert_eq!(&credentials.svid().chain()[1], authority.issuer().certificate());
    let after = authority.issuer().serial().to_owned();
    let Desk { dir, upkeep, .. } = desk;
    drop(upkeep);
    assert_eq!(open(&dir, START + 21 * DAY).authority().issuer().serial(), after, "it survives a restart");
}

#[tokio::test]
async fn without_an_audit_log_neither_issuer_nor_own_leaf_is_made() {
    let mut desk = desk();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    desk.upkeep.audit = Audit::on(full);
    assert!(matches!(desk.upkeep.renew().await, Err(UpkeepError::Own(OwnError::Audit(_)))));
    assert!(desk.own_serial().is_none());
    let before = desk.upkeep.state.authority().issuer().serial().to_owned();
    desk.hand.advance(21 * DAY);
    assert!(matches!(desk.upkeep.renew().await, Err(UpkeepError::Audit(_))));
    assert_eq!(desk.upkeep.state.authority().issuer().serial(), before);
}

#[tokio::test]
async fn a_ca_that_slept_beyond_its_issuers_end_renews_it_when_it_wakes() {
    let desk = desk();
    desk.upkeep.renew().await.unwrap();
    desk.hand.advance(31 * DAY);
    desk.upkeep.renew().await.unwrap();
    assert_eq!(desk.upkeep.state.authority().issuer().not_after().as_secs(), START + 61 * DAY);
    assert!(desk.upkeep.own.not_after().unwrap().as_secs() > START + 31 * DAY);
}

#[tokio::test]
async fn an_issuer_that_cannot_be_stored_does_not_keep_the_own_leaf_from_being_renewed() {
    let desk = desk();
    desk.upkeep.renew().await.unwrap();
    let (own, issuer) = (desk.own_serial(), desk.upkeep.state.authority().issuer().serial().to_owned());
    // The temporary file cannot be made where a directory has its name.
    std::fs::create_dir(desk.dir.path().join("state/ca.state.tmp")).unwrap();
    desk.hand.advance(21 * DAY);
    assert!(matches!(desk.upkeep.renew().await, Err(UpkeepError::Issuer(_))));
    assert_eq!(desk.upkeep.state.authority().issuer().serial(), issuer);
    assert_ne!(desk.own_serial(), own);
}

#[test]
fn a_bad_key_file_is_told_once() {
    let desk = desk();
    let jwks = desk.upkeep.jwks.clone().unwrap();
    let mut told = None;
    std::fs::write(desk.dir.path().join("jwks"), "{").unwrap();
    desk.upkeep.refresh_keys(&jwks, &mut told);
    let first = told.clone().unwrap();
    desk.upkeep.refresh_keys(&jwks, &mut told);
    assert_eq!(told.unwrap(), first);
    write_jwks(&desk.dir.path().join("jwks"), &[TokenIssuer::es256("k2").jwk()]);
    let mut told = Some(first);
    desk.upkeep.refresh_keys(&jwks, &mut told);
    assert!(told.is_none());
    assert_eq!(jwks.key_ids(), ["k2"]);
}
