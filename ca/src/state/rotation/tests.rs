use countersign_identity::{Purpose, verify_svid};

use super::*;
use crate::grant::{self, Granter, Terms};
use crate::state::{Beside, Opened, State, StateKey};
use crate::testing::{
    HOUR, LIVES, START, at_once, authority, domain, first_state, now, open_state, own_id, p256, private_dir,
};

const LIFE: u64 = HOUR;

fn prepared() -> Authority {
    authority().prepared(LIVES, LIFE, now()).unwrap()
}

fn active() -> Authority {
    prepared().distributed(now()).unwrap().activated(LIVES, false, now()).unwrap()
}

/// What it signs, as verified under another's bundle.
fn signs_for(signer: &Authority, bundle: &Authority) -> bool {
    let terms = Terms { default: std::time::Duration::from_secs(HOUR), max: std::time::Duration::from_secs(HOUR) };
    let (own_id, key) = (own_id(), p256());
    let (trust_domain, issuer_end) = (signer.trust_domain(), signer.issuer().not_after());
    let grant = grant::for_self(Granter { trust_domain, issuer_end, own_id: &own_id, terms }, START * 1000).unwrap();
    let signed = crate::sign::leaf(signer, &grant, &key, now()).unwrap();
    verify_svid(signed.chain(), bundle.bundles(), Purpose::Server, now()).is_ok()
}

fn why(step: Result<Authority, StepError>) -> String {
    match step.err().unwrap() {
        StepError::Stage { why, .. } => why,
        StepError::Make(error) => panic!("{error}"),
    }
}

#[test]
fn both_roots_are_in_the_bundle_from_prepare_to_retire_and_the_generation_grows_with_each_change() {
    let first = authority();
    let prepared = first.prepared(LIVES, LIFE, now()).unwrap();
    assert_eq!((prepared.generation(), prepared.bundle().roots().len()), (2, 2));
    assert_eq!(prepared.root().certificate(), first.root().certificate(), "the old root signs on");
    assert!(signs_for(&prepared, &first), "who has the old bundle only is served as before");
    let active = prepared.activated(LIVES, false, now()).unwrap();
    assert_eq!(
        (active.generation(), active.bundle()),
        (2, prepared.bundle()),
        "the same generation is the same bundle"
    );
    assert_ne!(active.root().certificate(), first.root().certificate());
    assert!(signs_for(&active, &prepared) && !signs_for(&active, &first));
    let retired = active.retired(false, now()).unwrap();
    assert_eq!((retired.generation(), retired.bundle().roots()), (3, &[active.root().certificate().clone()][..]));
    assert!(signs_for(&active, &retired) && !signs_for(&first, &retired));
    assert!(retired.under_way().is_none() && retired.second_root().is_none());
    let stages: Vec<_> = retired.rotation().unwrap().passed.iter().map(|passed| passed.stage).collect();
    assert_eq!(
        stages,
        [Stage::Prepared, Stage::Distributed, Stage::Active, Stage::Retired],
        "noted by the step itself"
    );
    let forced = prepared.activated(LIVES, true, now()).unwrap();
    let stages: Vec<_> = forced.rotation().unwrap().passed.iter().map(|passed| passed.stage).collect();
    assert_eq!(stages, [Stage::Prepared, Stage::Active], "what nobody saw is not said");
}

#[test]
fn an_abort_before_the_new_root_signed_ends_at_once_and_after_it_by_way_of_returning() {
    let first = authority();
    let aborted = first.prepared(LIVES, LIFE, now()).unwrap().aborted(LIVES, now()).unwrap();
    assert_eq!((aborted.generation(), aborted.bundle().roots()), (3, first.bundle().roots()));
    assert_eq!(aborted.rotation().unwrap().stage(), Stage::Aborted);

    let active = first.prepared(LIVES, LIFE, now()).unwrap().activated(LIVES, false, now()).unwrap();
    let returning = active.aborted(LIVES, now()).unwrap();
    assert_eq!(returning.root().certificate(), first.root().certificate(), "the old root signs again");
    assert_eq!(returning.bundle(), active.bundle(), "leaves of the new root are still good");
    assert!(signs_for(&returning, &first) && signs_for(&active, &returning));
    let aborted = returning.retired(false, now()).unwrap();
    assert_eq!(
        (aborted.rotation().unwrap().stage(), aborted.bundle().roots()),
        (Stage::Aborted, first.bundle().roots())
    );
}

#[test]
fn a_step_out_of_turn_is_refused_and_says_where_the_rotation_is() {
    let none = authority();
    for refused in [none.activated(LIVES, true, now()), none.retired(true, now()), none.aborted(LIVES, now())] {
        assert_eq!(why(refused), "no rotation is under way");
    }
    assert_eq!(why(prepared().prepared(LIVES, LIFE, now())), "a rotation is prepared already");
    assert_eq!(why(prepared().retired(true, now())), "the rotation is prepared", "not by force either");
    assert_eq!(why(active().activated(LIVES, true, now())), "the rotation is active");
    assert_eq!(why(active().distributed(now())), "the rotation is active");
    let returning = active().aborted(LIVES, now()).unwrap();
    assert_eq!(why(returning.aborted(LIVES, now())), "the rotation is returning");
    assert_eq!(why(returning.activated(LIVES, true, now())), "the rotation is returning");
    let retired = active().retired(false, now()).unwrap();
    assert_eq!(why(retired.aborted(LIVES, now())), "no rotation is under way; the last one is retired");
    assert_eq!(retired.prepared(LIVES, LIFE, now()).unwrap().generation(), 4, "the next one may begin");
}

#[test]
fn a_renewed_issuer_changes_neither_stage_nor_bundle() {
    let active = active();
    let renewed = active.with_new_issuer(LIVES, now()).unwrap();
    assert_eq!((renewed.rotation(), renewed.bundle()), (active.rotation(), active.bundle()));
    assert_ne!(renewed.issuer().serial(), active.issuer().serial());
    assert!(signs_for(&renewed, &active));
}

fn open(dir: &tempfile::TempDir) -> State {
    let key = StateKey::from_text("x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    match open_state(dir.path(), key, &domain(), now()).unwrap() {
        Opened::Found(state) => state,
        Opened::Vacant(vacant) => first_state(vacant, now()),
    }
}

type Step = fn(&Authority) -> Result<Authority, StepError>;

/// Each stage is stored, the process dies, and the next one has the very same in force.
#[test]
fn every_stage_survives_the_death_of_the_process() {
    let dir = private_dir();
    let steps: [Step; 7] = [
        |held| held.prepared(LIVES, LIFE, now()),
        |held| held.distributed(now()),
        |held| held.activated(LIVES, false, now()),
        |held| held.aborted(LIVES, now()),
        |held| held.retired(true, now()),
        |held| held.prepared(LIVES, LIFE, now()),
        |held| held.aborted(LIVES, now()),
    ];
    for step in steps {
        let state = open(&dir);
        let draft = state.draft(step).unwrap();
        let made = draft.authority();
        // Drafted and not stored: nothing of it may stay.
        let before = state.authority();
        drop((state, draft));
        let state = open(&dir);
        assert!(state.authority().is_same(&before));
        let draft = state.draft(step).unwrap();
        assert_eq!(at_once(state.commit(draft, now())).unwrap(), crate::state::Race::Won);
        let stored = state.authority();
        drop(state);
        let again = open(&dir).authority();
        assert!(again.is_same(&stored) && again.bundle() == stored.bundle());
        assert_eq!(again.second_root().map(Pair::serial), stored.second_root().map(Pair::serial));
        assert_eq!(again.rotation().map(Rotation::stage), made.rotation().map(Rotation::stage));
        assert!(signs_for(&again, &stored), "what was restored signs");
    }
}

#[test]
fn of_two_drafts_of_one_state_only_the_first_is_stored() {
    let dir = private_dir();
    let state = open(&dir);
    let one = state.draft(|held| held.prepared(LIVES, LIFE, now())).unwrap();
    let other = state.draft(|held| held.with_new_issuer(LIVES, now())).unwrap();
    assert_eq!(at_once(state.commit(one, now())).unwrap(), crate::state::Race::Won);
    assert_eq!(at_once(state.commit(other, now())).unwrap(), crate::state::Race::Lost);
    assert!(state.authority().under_way().is_some(), "the other would have undone the step");
}

#[test]
fn a_stage_without_its_second_root_is_refused_and_so_is_a_second_root_without_a_stage() {
    let held = prepared();
    let parts = |pair: &Pair| (pair.certificate().to_vec(), pair.secret_for_test());
    let (root, issuer, second) = (parts(held.root()), parts(held.issuer()), parts(held.second_root().unwrap()));
    let restore = |second, rotation| {
        let beside = Beside { second, rotation, longest_leaf: Some(1) };
        Authority::restore(&domain(), 2, (&root.0, &root.1), (&issuer.0, &issuer.1), beside, now()).is_ok()
    };
    let second = Some((second.0.as_slice(), second.1.as_slice()));
    assert!(restore(second, held.rotation().cloned()));
    assert!(!restore(None, held.rotation().cloned()));
    assert!(!restore(second, None));
}
