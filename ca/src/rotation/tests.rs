use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::FromDer as _;

use super::*;
use crate::grant::Terms;
use crate::holders::{Connections, Holder, Leaf, Report};
use crate::state::sha256;
use crate::state::{Opened, StateKey};
use crate::testing::{HOUR, Hand, LIVES, START, authority, domain, first_state, now, open_state, own_id, private_dir};

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];
/// When the rotation was prepared, and when the stage that is looked at began.
const T: u64 = START;

fn rotation(stage: Stage) -> Rotation {
    let prepared = authority().prepared(LIVES, HOUR, now()).unwrap();
    let mut rotation = prepared.rotation().unwrap().clone();
    if stage != Stage::Prepared {
        rotation.passed.push(Passed { stage, at: T, generation: 2, forced: false });
    }
    rotation
}

fn leaf(root: [u8; 32], asked_with: u64, report: Option<u64>) -> Leaf {
    let report = report.map(|generation| Report { generation, at: T, connections: None });
    Leaf { key: [9; 32], serial: "5e".to_owned(), root, signed_at: T - HOUR, not_after: T + HOUR, asked_with, report }
}

fn holder(pod: &str, leaves: Vec<Leaf>) -> Holder {
    let known = Holder::new("shop", pod, &format!("uid-of-{pod}"), "spiffe://mesh.test/ns/shop/sa/a", T - HOUR);
    Holder { leaves, moved: T, ..known }
}

fn look(stage: Stage, holders: &[Holder], complete_since: Option<u64>, at: u64) -> Gate {
    let rotation = rotation(stage);
    let second_root = if stage == Stage::Active { OLD } else { NEW };
    let unknown = &[];
    gate(View { rotation: &rotation, second_root, holders, complete_since, in_force_since: 0, unknown, now: at })
        .unwrap()
}

fn missing(gate: &Gate) -> Vec<&str> {
    gate.missing.iter().map(|missing| missing.pod.as_str()).collect()
}

#[test]
fn activate_waits_for_whoever_has_not_reported_the_bundle_and_names_it() {
    let told = holder("told", vec![leaf(OLD, 0, Some(2))]);
    let asked = holder("asked", vec![leaf(OLD, 2, None)]);
    let behind = holder("behind", vec![leaf(OLD, 1, Some(1))]);
    let silent = holder("silent", vec![leaf(OLD, 0, None)]);
    let gate = look(Stage::Prepared, &[told.clone(), asked.clone(), behind, silent], Some(0), T + 60);
    assert!(!gate.open && gate.step == "activate");
    assert_eq!((gate.holders, gate.ready, missing(&gate)), (4, 2, vec!["behind", "silent"]));
    assert_eq!(gate.missing[0].why, "has bundle generation 1 in force, not 2");
    assert_eq!(gate.missing[1].why, "was not heard since it got its leaf");
    assert!(look(Stage::Prepared, &[told, asked], Some(0), T + 60).open);
}

#[test]
fn a_process_that_was_started_again_speaks_for_itself() {
    // The former one had reported; the new one has not.
    let again = holder("again", vec![leaf(OLD, 1, Some(2)), leaf(OLD, 0, None)]);
    assert_eq!(missing(&look(Stage::Prepared, &[again], Some(0), T + 60)), ["again"]);
    let renewed = holder("renewed", vec![leaf(OLD, 1, Some(2)), leaf(OLD, 2, None)]);
    assert!(look(Stage::Prepared, &[renewed], Some(0), T + 60).open);
}

#[test]
fn those_who_cannot_report_have_the_propagation_time() {
    let told = [holder("told", vec![leaf(OLD, 0, Some(2))])];
    assert!(!look(Stage::Prepared, &told, Some(0), T + PROPAGATION - 1).open);
    assert!(look(Stage::Prepared, &told, Some(0), T + PROPAGATION).open);
}

#[test]
fn who_came_after_the_stage_began_and_who_only_renews_do_not_make_it_wait_anew() {
    let told = holder("told", vec![leaf(OLD, 0, Some(2))]);
    let late = |pod, joined, moved| Holder { joined, moved, ..holder(pod, vec![leaf(OLD, 0, Some(2))]) };
    let at = T + PROPAGATION;
    assert!(look(Stage::Prepared, &[told.clone(), late("new", T + 5, T + 6)], Some(0), at).open);
    // One that was there before, and came to it late; and one of whom nobody knows since when.
    for joined in [T - 1, 0] {
        let moved = late("slow", joined, T + 5);
        assert!(!look(Stage::Prepared, &[told.clone(), moved.clone()], Some(0), at).open);
        assert!(look(Stage::Prepared, &[told.clone(), moved], Some(0), at + 5).open);
    }
}

#[test]
fn nobody_holds_a_step_up_for_longer_than_a_leafs_life_and_a_ca_that_knows_not_all_waits_for_that() {
    let silent = [holder("silent", vec![leaf(OLD, 0, None)])];
    let told = [holder("told", vec![leaf(OLD, 0, Some(2))])];
    for (holders, complete_since) in [(&silent, Some(0)), (&told, None), (&told, Some(T - 60))] {
        let before = look(Stage::Prepared, holders, complete_since, T + HOUR - 61);
        assert!(!before.open, "{before:?}");
        assert_eq!(before.opens_at, T + HOUR + GRACE);
        assert!(look(Stage::Prepared, holders, complete_since, T + HOUR + GRACE).open);
    }
    // Started a while ago: all leaves of before have ended.
    assert!(look(Stage::Prepared, &told, Some(T - HOUR), T + 60).open);
}

#[test]
fn what_a_replica_does_not_tell_keeps_the_gate_shut_until_a_leafs_life_has_passed() {
    let (rotation, told) = (rotation(Stage::Active), [holder("told", vec![leaf(NEW, 2, Some(2))])]);
    let unknown = ["replica b does not answer".to_owned()];
    let view = View {
        rotation: &rotation,
        second_root: OLD,
        holders: &told,
        complete_since: Some(0),
        in_force_since: 0,
        unknown: &unknown,
        now: T + 60,
    };
    let gate_at = |view| gate(view).unwrap();
    let shut = gate_at(view);
    assert!(!shut.open && shut.missing.is_empty());
    assert_eq!(shut.waits, unknown);
    assert!(gate_at(View { unknown: &[], ..view }).open);
    assert!(gate_at(View { now: T + HOUR + GRACE, ..view }).open);
}

#[test]
fn calls_that_were_under_way_when_the_stage_came_to_a_replica_are_waited_for() {
    let (rotation, told) = (rotation(Stage::Active), [holder("told", vec![leaf(NEW, 2, Some(2))])]);
    let look = |now| {
        let (complete_since, in_force_since, unknown) = (Some(0), T + 30, &[]);
        gate(View {
            rotation: &rotation,
            second_root: OLD,
            holders: &told,
            complete_since,
            in_force_since,
            unknown,
            now,
        })
        .unwrap()
    };
    assert_eq!(look(T + 39).waits, ["for those who cannot report, 1 s more"]);
    assert!(look(T + 40).open);
}

#[test]
fn what_was_distributed_once_stays_so() {
    let silent = [holder("new", vec![leaf(OLD, 0, None)])];
    assert!(look(Stage::Distributed, &silent, None, T).open, "it got the bundle with its leaf");
}

#[test]
fn retire_waits_for_whoever_stands_on_the_root_that_goes() {
    let done = holder("done", vec![leaf(OLD, 2, Some(2)), leaf(NEW, 2, Some(2))]);
    let fresh = holder("fresh", vec![leaf(NEW, 0, None)]);
    let old = holder("old", vec![leaf(OLD, 2, Some(2))]);
    let unseen = holder("unseen", vec![leaf(OLD, 2, Some(2)), leaf(NEW, 2, None)]);
    let back = holder("back", vec![leaf(NEW, 2, Some(2)), leaf(OLD, 2, Some(2))]);
    let gate = look(Stage::Active, &[done.clone(), fresh.clone(), old, unseen, back.clone()], Some(0), T + 60);
    assert!(!gate.open && gate.step == "retire");
    assert_eq!(missing(&gate), ["old", "unseen", "back"]);
    assert_eq!(gate.missing[0].why, "its newest leaf stands on the root that is to go");
    assert_eq!(gate.missing[1].why, "was not seen yet with the leaf that it got last");
    assert!(look(Stage::Active, &[done.clone(), fresh], Some(0), T + 60).open);
    // On the way back it is the other root that goes.
    assert!(look(Stage::Returning, &[back], Some(0), T + 60).open);
    assert_eq!(missing(&look(Stage::Returning, &[done], Some(0), T + 60)), ["done"]);
}

#[test]
fn retire_waits_for_open_connections_that_still_stand_on_the_root_that_goes() {
    let with = |behind| {
        let connections = Some(Connections { open: 900, behind, ..Connections::default() });
        let mut leaf = leaf(NEW, 2, Some(2));
        leaf.report = leaf.report.map(|report| Report { connections, ..report });
        holder("busy", vec![leaf])
    };
    let gate = look(Stage::Active, &[with(300)], Some(0), T + 60);
    assert!(!gate.open);
    assert_eq!(gate.missing[0].why, "300 of its open connections are not yet proven anew under the root that stays");
    assert!(look(Stage::Active, &[with(0)], Some(0), T + 60).open);
    assert!(look(Stage::Active, &[with(300)], Some(0), T + HOUR + GRACE).open, "they have ended with their leaves");
}

#[test]
fn a_longer_leaf_that_is_granted_meanwhile_is_waited_for() {
    let prepared = authority().prepared(LIVES, HOUR, now()).unwrap();
    let longer = prepared.with_longest_leaf(3 * HOUR, now()).unwrap();
    assert_eq!(longer.rotation().unwrap().leaf_life, 3 * HOUR);
    assert_eq!(longer.with_longest_leaf(2 * HOUR, now()).unwrap().rotation().unwrap().leaf_life, 3 * HOUR);
    // One that is over is history.
    let over = longer.activated(LIVES, false, now()).unwrap().retired(false, now()).unwrap();
    let later = over.with_longest_leaf(9 * HOUR, now()).unwrap();
    assert_eq!(later.rotation().unwrap().leaf_life, 3 * HOUR);
}

#[test]
fn of_very_many_a_hundred_are_named_and_all_are_counted() {
    let all: Vec<_> = (0..250).map(|n| holder(&format!("pod-{n}"), vec![leaf(OLD, 0, None)])).collect();
    let gate = look(Stage::Prepared, &all, Some(0), T + 60);
    assert_eq!((gate.holders, gate.ready, gate.missing.len()), (250, 0, 100));
}

struct Desk {
    dir: tempfile::TempDir,
    hand: Hand,
    rotations: Rotations,
}

async fn desk() -> Desk {
    let (dir, hand) = (private_dir(), Hand::at(START));
    let key = StateKey::from_text("x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    let state = match open_state(&dir.path().join("state"), key, &domain(), now()).unwrap() {
        Opened::Found(_) => panic!("a state is there"),
        Opened::Vacant(vacant) => Arc::new(first_state(vacant, now())),
    };
    let audit = Audit::at(&dir.path().join("audit.jsonl")).unwrap();
    let terms = Terms { default: Duration::from_secs(HOUR), max: Duration::from_secs(HOUR) };
    let own = Arc::new(Own::new(own_id(), terms, hand.clock()));
    own.renew(&state.authority(), &audit).await.unwrap();
    let (holders, max_leaf) = (Arc::new(Holders::new(0)), Duration::from_secs(HOUR));
    let (of, known, by) = (Arc::clone(&state), Arc::clone(&holders), hand.clock());
    let siblings = Arc::new(Siblings::new(of, known, Arc::clone(&own), by, max_leaf));
    let rotations = Rotations { state, holders, audit, own, clock: hand.clock(), max_leaf, siblings };
    Desk { dir, hand, rotations }
}

impl Desk {
    fn hold(&self, pod: &str, asked_with: u64) {
        let root = self.rotations.state.authority().root().certificate_sha256();
        let (key, not_after) = (sha256(pod.as_bytes()), self.rotations.clock.now().as_secs() + HOUR);
        let leaf = Leaf { key, serial: pod.to_owned(), root, signed_at: START, not_after, asked_with, report: None };
        self.rotations.holders.signed("shop", pod, pod, "spiffe://mesh.test/ns/shop/sa/a", leaf, START);
    }

    fn recorded(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.jsonl")).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|row| format!("{} {}", row["event"].as_str().unwrap(), row["detail"].as_str().unwrap_or("-")))
            .collect()
    }
}

#[tokio::test]
async fn a_shut_gate_stops_a_step_and_force_says_in_the_state_that_it_was_force() {
    let desk = desk().await;
    let rotations = &desk.rotations;
    desk.hold("silent", 0);
    rotations.step(Step::Prepare, false).await.unwrap();
    desk.hand.advance(60);
    let refusal = rotations.step(Step::Activate, false).await.unwrap_err();
    let RotationError::TooEarly(gate) = &refusal else { panic!("{refusal}") };
    assert_eq!(missing(gate), ["silent"]);
    assert!(refusal.to_string().contains("1 of 1 holders of a leaf have not reported"), "{refusal}");
    rotations.note_distributed().await.unwrap();
    assert_eq!(rotations.state.authority().rotation().unwrap().stage(), Stage::Prepared);
    let status = rotations.step(Step::Activate, true).await.unwrap();
    assert_eq!((&status["rotation"]["stage"], &status["gate"]["step"]), (&json!("active"), &json!("retire")));
    let passed = rotations.state.authority().rotation().unwrap().passed.clone();
    assert_eq!(passed.iter().map(|passed| passed.forced).collect::<Vec<_>>(), [false, true]);
    assert_eq!(desk.recorded()[1..], ["root -", "rotation prepare: prepared", "issuer -", "rotation activate: active"]);
}

#[tokio::test]
async fn what_is_held_by_all_is_noted_and_an_open_gate_is_no_force() {
    let desk = desk().await;
    let rotations = &desk.rotations;
    rotations.step(Step::Prepare, false).await.unwrap();
    desk.hold("follows", 2);
    desk.hand.advance(PROPAGATION);
    rotations.note_distributed().await.unwrap();
    rotations.step(Step::Activate, true).await.unwrap();
    // A leaf's life later nobody is left who stood on the old root.
    desk.hand.advance(HOUR + GRACE);
    let status = rotations.step(Step::Retire, false).await.unwrap();
    let stages = status["rotation"]["stages"].as_array().unwrap();
    assert!(stages.iter().map(|passed| passed["stage"].as_str().unwrap()).eq([
        "prepared",
        "distributed",
        "active",
        "retired"
    ]));
    assert!(stages.iter().all(|passed| passed["forced"] == false));
    let refusal = rotations.step(Step::Abort, false).await.unwrap_err();
    assert!(refusal.to_string().contains("no rotation is under way"), "{refusal}");
}

#[tokio::test]
async fn without_an_audit_log_no_step_is_taken() {
    let mut desk = desk().await;
    desk.rotations.audit = Audit::on(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    assert!(matches!(desk.rotations.step(Step::Prepare, false).await, Err(RotationError::Audit(_))));
    assert!(desk.rotations.state.authority().rotation().is_none());
}

#[tokio::test]
async fn a_report_names_every_holder_and_is_signed_by_the_cas_own_svid() {
    let desk = desk().await;
    assert!(matches!(desk.rotations.report().await, Err(ReportError::None)));
    desk.hold("a", 0);
    desk.hold("b", 0);
    desk.rotations.step(Step::Prepare, false).await.unwrap();
    let report = desk.rotations.report().await.unwrap();
    assert_eq!(report["report"]["holders"].as_array().unwrap().len(), 2);
    assert_eq!(report["report"]["totals"]["holding_the_bundle"], 0);
    let own = desk.rotations.own.subscribe().borrow().clone().unwrap();
    let (_, leaf) = x509_parser::prelude::X509Certificate::from_der(&own.svid().chain()[0]).unwrap();
    let key = &leaf.public_key().subject_public_key.data;
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1, key);
    let signature = STANDARD.decode(report["signature"]["value"].as_str().unwrap()).unwrap();
    let said = countersign_api::report::canonical(&report["report"]);
    assert!(key.verify(said.as_bytes(), &signature).is_ok());
    assert!(key.verify(said.replace("shop", "shot").as_bytes(), &signature).is_err());
}

#[tokio::test]
async fn a_report_says_since_when_connections_are_counted_and_a_restart_makes_that_later() {
    let mut desk = desk().await;
    desk.rotations.step(Step::Prepare, false).await.unwrap();
    let (old, young) = (crate::testing::peer(&authority()), crate::testing::peer(&authority()));
    let hear = |desk: &Desk, peer, good| {
        desk.hand.advance(5);
        let (at, connections) =
            (desk.rotations.clock.now().as_secs(), Some(Connections { good, ..Connections::default() }));
        desk.rotations.holders.reported(peer, Report { generation: 2, at, connections });
    };
    async fn told(desk: &Desk) -> (Value, Value) {
        let totals = desk.rotations.report().await.unwrap()["report"]["totals"].take();
        (totals["counted_since"].clone(), totals["connections_good"].clone())
    }
    assert_eq!(told(&desk).await, (json!(time(START)), json!(0)), "nobody is left out of what nobody told");
    hear(&desk, &old, 100);
    hear(&desk, &old, 130);
    assert_eq!(told(&desk).await, (json!(time(START + 5)), json!(30)));
    // Who comes later and has carried nothing is counted from its start.
    hear(&desk, &young, 0);
    hear(&desk, &young, 7);
    assert_eq!(told(&desk).await, (json!(time(START + 5)), json!(37)));
    // The CA is started anew: what it had heard is gone.
    let (holders, rotations) = (Arc::new(Holders::new(START + 20)), &mut desk.rotations);
    let (state, own, clock) = (Arc::clone(&rotations.state), Arc::clone(&rotations.own), desk.hand.clock());
    rotations.siblings = Arc::new(Siblings::new(state, Arc::clone(&holders), own, clock, rotations.max_leaf));
    rotations.holders = holders;
    hear(&desk, &old, 150);
    hear(&desk, &young, 9);
    hear(&desk, &old, 151);
    assert_eq!(told(&desk).await, (json!(time(START + 30)), json!(1)), "the last of both beginnings");
}
