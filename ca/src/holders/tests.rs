use super::*;
use crate::testing::{HOUR, START, authority, peer};

fn leaf(key: u8, not_after: u64) -> Leaf {
    Leaf { key: [key; 32], serial: format!("{key}"), root: [0; 32], not_after, asked_with: 0, report: None }
}

#[test]
fn a_report_counts_for_the_leaf_that_came_with_it_and_for_no_sibling() {
    let holders = Holders::new(Some(0));
    let peer = peer(&authority());
    for (pod, key) in [("a", *peer.spki_sha256()), ("b", [7; 32])] {
        let leaf = Leaf { key, ..leaf(0, START + HOUR) };
        holders.signed("shop", pod, &format!("uid-{pod}"), "spiffe://mesh.test/ns/shop/sa/frontend", leaf, START);
    }
    holders.reported(&peer, Report { generation: 2, at: START + 1, connections: None });
    let living = holders.living(START + 2);
    assert_eq!(living.iter().map(|holder| holder.holds(2)).collect::<Vec<_>>(), [true, false]);
    assert_eq!(holders.last_report(), START + 1);
}

#[test]
fn whoever_comes_with_a_leaf_that_we_did_not_sign_is_known_from_then_on_by_its_identity() {
    let (holders, peer) = (Holders::new(None), peer(&authority()));
    holders.reported(&peer, Report { generation: 1, at: START, connections: None });
    let living = holders.living(START);
    assert_eq!(living[0].pod, "spiffe://mesh.test/ns/shop/sa/frontend");
    assert_eq!(living[0].newest().unwrap().root, *peer.anchor_sha256());
    assert!(holders.living(START + HOUR + 1).is_empty(), "until its leaf ends");
}

#[test]
fn a_holder_whose_leaf_has_ended_counts_no_longer() {
    let holders = Holders::new(Some(0));
    holders.signed("shop", "a", "uid-a", "id", leaf(1, START + 10), START);
    assert_eq!(holders.living(START + 10).len(), 1);
    assert!(holders.living(START + 11).is_empty());
    assert!(holders.lock().uid_of.is_empty(), "nothing stays behind");
}

#[test]
fn of_one_pod_few_leaves_are_kept_and_the_newest_among_them() {
    let holders = Holders::new(Some(0));
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
    let holders = Holders::new(Some(0));
    for n in 0..=MAX_PODS {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        holders.signed("shop", "a", &format!("uid-{n}"), "id", Leaf { key, ..leaf(0, START + HOUR) }, START);
    }
    assert_eq!(holders.living(START).len(), MAX_PODS);
    assert_eq!(holders.complete_since(), Some(START + 1), "whoever got a leaf up to then");
}

#[test]
fn connections_are_counted_from_the_beginning_of_the_rotation() {
    let holders = Holders::new(Some(0));
    let peer = peer(&authority());
    let told = |good, at| Report { generation: 1, at, connections: Some(Connections { open: 1, good, failed: 0 }) };
    holders.reported(&peer, told(5, START));
    holders.reported(&peer, told(7, START + 1));
    holders.begin_count();
    holders.reported(&peer, told(9, START + 2));
    let living = holders.living(START + 2);
    assert_eq!(living[0].first_connections.unwrap().good, 7);
    assert_eq!(living[0].last_report().unwrap().connections.unwrap().good, 9);
}
