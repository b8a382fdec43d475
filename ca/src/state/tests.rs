use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::place::STATE;
use super::*;
use crate::clock::seconds;
use crate::testing::{DAY, LIVES, START, at_once, domain, first_state, now, open_state, private_dir};

fn key(byte: u8) -> StateKey {
    StateKey::from_text("test", &STANDARD.encode([byte; 32])).unwrap()
}

fn open_at(path: &Path, byte: u8, at: u64) -> Result<Opened, StateError> {
    open_state(path, key(byte), &domain(), seconds(at))
}

fn create(path: &Path) -> State {
    match open_at(path, 1, START).unwrap() {
        Opened::Vacant(vacant) => first_state(vacant, now()),
        Opened::Found(_) => panic!("a state is there"),
    }
}

fn found(path: &Path, at: u64) -> State {
    match open_at(path, 1, at).unwrap() {
        Opened::Found(state) => state,
        Opened::Vacant(_) => panic!("no state"),
    }
}

fn failure(opened: Result<Opened, StateError>) -> StateError {
    opened.err().expect("an error")
}

/// Name and content of every file.
fn snapshot(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn root_issuer_and_generation_survive_a_restart() {
    let dir = private_dir();
    let first = create(dir.path());
    let before = first.authority();
    drop(first);
    let after = found(dir.path(), START + DAY).authority();
    assert_eq!(after.root().certificate(), before.root().certificate());
    assert_eq!(after.issuer().certificate(), before.issuer().certificate());
    assert_eq!(after.issuer().key_sha256(), before.issuer().key_sha256());
    assert_eq!((after.generation(), before.generation()), (1, 1));
    assert_eq!(after.issuer().serial(), before.issuer().serial());
}

#[test]
fn keys_are_never_on_the_disk_in_the_clear() {
    let dir = private_dir();
    let state = create(dir.path());
    let authority = state.authority();
    let stored = std::fs::read(dir.path().join(STATE)).unwrap();
    for pair in [authority.root(), authority.issuer()] {
        let der = pair.key_der();
        // The 32 secret bytes of a P-256 key in PKCS#8.
        let secret = &der[36..68];
        assert!(der.windows(32).any(|window| window == secret));
        for hidden in [der.to_vec(), secret.to_vec(), STANDARD.encode(der).into_bytes()] {
            assert!(!stored.windows(hidden.len()).any(|window| window == hidden));
        }
    }
}

#[test]
fn a_wrong_key_is_a_clear_error_and_touches_nothing() {
    let dir = private_dir();
    drop(create(dir.path()));
    let before = snapshot(dir.path());
    let error = failure(open_at(dir.path(), 2, START));
    assert!(error.to_string().contains("wrong state key"), "{error}");
    assert_eq!(snapshot(dir.path()), before);
    found(dir.path(), START);
}

#[test]
fn a_damaged_or_foreign_state_is_a_clear_error_and_touches_nothing() {
    let dir = private_dir();
    drop(create(dir.path()));
    let file = dir.path().join(STATE);
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (content, said) in [
        (flipped.as_slice(), "damaged"),
        (&good[..good.len() - 10], "damaged"),
        (b"", "not a state file"),
        (b"-----BEGIN PRIVATE KEY-----\n", "not a state file"),
    ] {
        std::fs::write(&file, content).unwrap();
        let error = failure(open_at(dir.path(), 1, START));
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), content);
    }
}

#[test]
fn a_sealed_content_that_is_no_state_is_refused_without_quoting_it() {
    let dir = private_dir();
    drop(create(dir.path()));
    let file = dir.path().join(STATE);
    for content in [&b"{}"[..], b"{\"trust_domain\":\"SECRET\"", b"\"SECRET\"", b"[1]"] {
        std::fs::write(&file, seal::seal(&key(1), content).unwrap()).unwrap();
        let text = failure(open_at(dir.path(), 1, START)).to_string();
        assert!(text.contains("does not parse") && !text.contains("SECRET"), "{text}");
    }
}

#[test]
fn stored_keys_and_certificates_must_belong_together() {
    let (one, two) = (crate::testing::authority(), crate::testing::authority());
    let pair = |pair: &Pair| (pair.certificate().to_vec(), pair.key_der().to_vec());
    let restore = |root: &(Vec<u8>, Vec<u8>), issuer: &(Vec<u8>, Vec<u8>)| {
        Authority::restore(&domain(), 1, (&root.0, &root.1), (&issuer.0, &issuer.1), Beside::default(), now()).err()
    };
    let (root, issuer, other) = (pair(one.root()), pair(one.issuer()), pair(two.issuer()));
    assert!(restore(&root, &issuer).is_none());
    assert!(matches!(restore(&root, &other), Some(AuthorityError::NotSignedByRoot)));
    let mixed = (issuer.0.clone(), other.1.clone());
    assert!(matches!(restore(&root, &mixed), Some(AuthorityError::KeyMismatch("issuer"))));
    let torn = (issuer.0[1..].to_vec(), issuer.1.clone());
    assert!(matches!(restore(&root, &torn), Some(AuthorityError::Malformed("issuer"))));
}

#[test]
fn a_state_of_another_trust_domain_is_refused() {
    let dir = private_dir();
    drop(create(dir.path()));
    let other = TrustDomain::parse("other.test").unwrap();
    let error = failure(open_state(dir.path(), key(1), &other, now()));
    assert!(matches!(&error, StateError::TrustDomain { .. }), "{error}");
}

#[test]
fn a_lost_state_is_not_replaced_by_a_new_root() {
    let dir = private_dir();
    let state = create(dir.path());
    std::fs::write(dir.path().join(BUNDLE), b"pem").unwrap();
    drop(state);
    std::fs::remove_file(dir.path().join(STATE)).unwrap();
    let error = failure(open_at(dir.path(), 1, START));
    assert!(matches!(&error, StateError::Lost { .. }), "{error}");
    assert!(!dir.path().join(STATE).exists());
}

#[test]
fn two_never_share_a_state() {
    let dir = private_dir();
    let state = create(dir.path());
    let error = failure(open_at(dir.path(), 1, START));
    assert!(matches!(error, StateError::Directory(DirectoryError::InUse(_))));
    drop(state);
}

#[test]
fn a_crash_while_the_issuer_is_renewed_keeps_the_old_state() {
    let dir = private_dir();
    let state = create(dir.path());
    let before = state.authority().issuer().serial().to_owned();
    let draft = state.draft_issuer(seconds(START + 21 * DAY)).unwrap().unwrap();
    assert_ne!(draft.issuer().serial(), before);
    // The process dies after the temporary file was begun and before it got its name.
    std::fs::write(dir.path().join("ca.state.tmp"), b"countersign-ca state v1 key=half").unwrap();
    drop((draft, state));
    assert_eq!(found(dir.path(), START + 21 * DAY).authority().issuer().serial(), before);
}

#[test]
fn a_state_that_cannot_be_written_keeps_the_old_issuer_in_force() {
    let dir = private_dir();
    let state = create(dir.path());
    let before = state.authority().issuer().serial().to_owned();
    let draft = state.draft_issuer(seconds(START + 21 * DAY)).unwrap().unwrap();
    // The temporary file cannot be made where a directory has its name.
    std::fs::create_dir(dir.path().join("ca.state.tmp")).unwrap();
    assert!(matches!(at_once(state.commit(draft, now())), Err(StateError::Directory(DirectoryError::Io { .. }))));
    assert_eq!(state.authority().issuer().serial(), before);
    drop(state);
    assert_eq!(found(dir.path(), START).authority().issuer().serial(), before);
}

#[test]
fn the_issuer_is_renewed_when_a_third_is_left_and_the_bundle_stays() {
    let dir = private_dir();
    let state = create(dir.path());
    let first = state.authority();
    assert!(state.draft_issuer(seconds(START + 20 * DAY - 1)).unwrap().is_none());
    let draft = state.draft_issuer(seconds(START + 20 * DAY)).unwrap().unwrap();
    at_once(state.commit(draft, now())).unwrap();
    let second = state.authority();
    assert_eq!(second.issuer().not_after().as_secs(), START + 50 * DAY);
    assert_ne!(second.issuer().key_sha256(), first.issuer().key_sha256(), "a new key");
    assert_eq!(second.root().certificate(), first.root().certificate());
    assert_eq!(second.generation(), first.generation());
    assert!(state.draft_issuer(seconds(START + 20 * DAY)).unwrap().is_none());
    drop(state);
    assert_eq!(found(dir.path(), START).authority().issuer().serial(), second.issuer().serial());
}

#[test]
fn an_issuer_never_outlives_its_root_and_is_not_renewed_for_nothing() {
    let lives = Lifetimes { root: Duration::from_secs(40 * DAY), issuer: Duration::from_secs(30 * DAY), ..LIVES };
    let first = Authority::create(&domain(), lives, now()).unwrap();
    let at = seconds(START + 25 * DAY);
    assert!(first.issuer_due(lives, at));
    let second = first.with_new_issuer(lives, at).unwrap();
    assert_eq!(second.issuer().not_after(), first.root().not_after());
    assert!(!second.issuer_due(lives, seconds(START + 39 * DAY)), "a new one would end with the root too");
}

#[test]
fn an_expired_root_is_a_clear_error() {
    let dir = private_dir();
    drop(create(dir.path()));
    let error = failure(open_at(dir.path(), 1, START + 3651 * DAY));
    assert!(error.to_string().contains("the root makes no trust bundle"), "{error}");
}
