use super::*;
use crate::testing::{HOUR, START, authority, peer};

fn leaf(key: u8, not_after: u64) -> Leaf {
    Leaf {
        key: [key; 32],
        serial: format!("{key}"),
        root: [0; 32],
        signed_at: START,
        not_after,
        asked_with: 0,
        report: None,
    }
}

#[test]
fn a_report_counts_for_the_leaf_that_came_with_it_and_for_no_sibling() {
    let holders = Holders::new(0);
    let peer = peer(&authority());
    for (pod, key) in [("a", *peer.spki_sha256()), ("b", [7; 32])] {
        let leaf = Leaf { key, ..leaf(0, START + HOUR) };
        holders.signed("shop", pod, &format!("uid-{pod}"), "spiffe://mesh.test/ns/shop/sa/frontend", leaf, START);
    }
    holders.reported(&peer, Report { generation: 2, at: START + 1, connections: None });
    let living = holders.living(START + 2);
    assert_eq!(living.iter().map(|holder| holder.holds(2)).collect::<Vec<_>>(), [true, false]);
    assert_eq!(living.iter().map(|holder| holder.moved).collect::<Vec<_>>(), [START + 1, 0]);
}

#[test]
fn whoever_comes_with_a_leaf_that_we_did_not_sign_is_known_from_then_on_by_its_identity() {
    let (holders, peer) = (Holders::new(0), peer(&authority()));
    holders.reported(&peer, Report { generation: 1, at: START, connections: None });
    let living = holders.living(START);
    assert_eq!(living[0].pod, "spiffe://mesh.test/ns/shop/sa/frontend");
    assert_eq!(living[0].newest().unwrap().root, *peer.anchor_sha256());
    assert!(holders.living(START + HOUR + 1).is_empty(), "until its leaf ends");
}

#[test]
fn a_holder_whose_leaf_has_ended_counts_no_longer() {
    let holders = Holders::new(0);
    holders.signed("shop", "a", "uid-a", "id", leaf(1, START + 10), START);
    assert_eq!(holders.living(START + 10).len(), 1);
    assert!(holders.living(START + 11).is_empty());
    assert!(holders.lock().uid_of.is_empty(), "nothing stays behind");
}

#[test]
fn of_one_pod_few_leaves_are_kept_and_the_newest_among_them() {
    let holders = Holders::new(0);
    for key in 0..20 {
        holders.signed("shop", "a", "uid-a", "id", leaf(key, START + HOUR), START);
    }
    let living = holders.living(START);
    assert_eq!((living.len(), living[0].leaves.len()), (1, MAX_LEAVES));
    assert_eq!(living[0].newest().unwrap().serial, "19");
    assert_eq!(holders.lock().uid_of.len(), MAX_LEAVES);
}

#[test]
fn a_full_table_says_that_somebody_may_be_missing() {
    let holders = Holders::new(0);
    for n in 0..=MAX_PODS {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        holders.signed("shop", "a", &format!("uid-{n}"), "id", Leaf { key, ..leaf(0, START + HOUR) }, START);
    }
    assert_eq!(holders.living(START).len(), MAX_PODS);
    assert_eq!(holders.complete_since(), START + 1, "whoever got a leaf up to then");
}

#[test]
fn a_renewal_moves_nobody_and_another_bundle_or_root_does() {
    let (holders, peer) = (Holders::new(0), peer(&authority()));
    let key = *peer.spki_sha256();
    let sign = |key, root, asked_with, at| {
        let leaf = Leaf { key, root, asked_with, ..leaf(0, START + HOUR) };
        holders.signed("shop", "a", "uid-a", "id", leaf, at);
    };
    let hear = |generation, at| holders.reported(&peer, Report { generation, at, connections: None });
    let moved = || holders.living(START)[0].moved;
    sign(key, [0; 32], 0, START);
    hear(1, START + 1);
    sign([7; 32], [0; 32], 1, START + 2); // it has one more leaf of the same root
    sign(key, [0; 32], 1, START + 3);
    hear(1, START + 4);
    assert_eq!(moved(), START + 1);
    hear(2, START + 5);
    assert_eq!(moved(), START + 5);
    sign([7; 32], [0; 32], 3, START + 6);
    assert_eq!(moved(), START + 6, "who asks with a bundle has it");
    sign(key, [1; 32], 3, START + 7);
    assert_eq!(moved(), START + 6);
    hear(3, START + 8);
    assert_eq!(moved(), START + 8, "the first time with a leaf of another root");
}

#[test]
fn connections_are_counted_from_the_report_of_the_rotations_bundle() {
    let holders = Holders::new(0);
    let peer = peer(&authority());
    let told = |generation, good, at| {
        let connections = Some(Connections { open: 1, good, ..Connections::default() });
        holders.reported(&peer, Report { generation, at, connections });
        holders.living(at)[0].counted_from.map(|from| (from.carried.good, from.at))
    };
    assert_eq!(told(1, 5, START), Some((5, START)));
    holders.count_from(2);
    assert_eq!(told(1, 8, START + 1), None, "it is where it was");
    assert_eq!(told(2, 9, START + 2), Some((9, START + 2)));
    assert_eq!(told(3, 12, START + 3), Some((9, START + 2)));
    assert_eq!(holders.living(START + 3)[0].last_report().unwrap().connections.unwrap().good, 12);
}
