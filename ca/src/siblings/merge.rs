//! One table of many: what several replicas know of the same pods. Pure; called by `siblings`.
//!
//! A pod may have a leaf of one replica and speak to another, which then knows its leaf and not the pod: the two meet by the leaf's key.

use std::collections::HashMap;

use crate::holders::{Holder, Leaf, LeafKey, by_name};

/// Everybody who is in one of these tables, by name; of what two say of the same leaf the newer counts.
pub fn merge(tables: impl IntoIterator<Item = Vec<Holder>>) -> Vec<Holder> {
    let (mut nameless, named): (Vec<_>, Vec<_>) = tables.into_iter().flatten().partition(Holder::is_nameless);
    // Those of one pod in the order in which it came to stand where they say.
    nameless.sort_by_key(|holder| holder.moved);
    let (mut by_uid, mut uid_of) = (HashMap::<String, Holder>::new(), HashMap::<LeafKey, String>::new());
    for holder in named.into_iter().chain(nameless) {
        let known = holder.leaves.iter().find_map(|leaf| uid_of.get(&leaf.key)).filter(|_| holder.is_nameless());
        let uid = known.unwrap_or(&holder.uid).clone();
        uid_of.extend(holder.leaves.iter().map(|leaf| (leaf.key, uid.clone())));
        match by_uid.get_mut(&uid) {
            Some(there) => join(there, holder),
            None => drop(by_uid.insert(uid, holder)),
        }
    }
    let mut all: Vec<_> = by_uid.into_values().collect();
    // Of two leaves of one second the one that was not seen in use counts as the newer: the holder is then waited for.
    all.iter_mut().for_each(|holder| holder.leaves.sort_by_key(|leaf| (leaf.signed_at, leaf.report.is_none())));
    by_name(&mut all);
    all
}

fn join(into: &mut Holder, other: Holder) {
    for leaf in other.leaves {
        match into.leaves.iter_mut().find(|there| there.key == leaf.key) {
            Some(there) => join_leaf(there, leaf),
            None => into.leaves.push(leaf),
        }
    }
    into.joined = earlier(into.joined, other.joined);
    (into.standing, into.moved) = match (into.standing, other.standing) {
        // It came there when the first of them heard so.
        (Some(here), Some(there)) if here == there => (Some(here), earlier(into.moved, other.moved)),
        (here, Some(there)) if here.is_none() || other.moved >= into.moved => (Some(there), other.moved),
        (here, _) => (here, into.moved),
    };
    // What it had carried at first is the least that was told, and counted from then.
    let firsts = [into.counted_from, other.counted_from].into_iter().flatten();
    into.counted_from = firsts.min_by_key(|from| from.carried.good.saturating_add(from.carried.failed));
}

fn join_leaf(into: &mut Leaf, other: Leaf) {
    if into.serial.is_empty() {
        into.serial = other.serial;
    }
    into.signed_at = into.signed_at.max(other.signed_at);
    into.asked_with = into.asked_with.max(other.asked_with);
    let before = into.report.into_iter().chain(other.report).min_by_key(|report| report.at);
    let newest = into.report.into_iter().chain(other.report).max_by_key(|report| report.at);
    // One that tells of no connections takes back nothing of what was told before.
    into.report = newest.map(|mut report| {
        report.connections = report.connections.or(before.and_then(|before| before.connections));
        report
    });
}

/// 0 is not known.
fn earlier(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holders::{Connections, CountedFrom, Report};

    const OLD: [u8; 32] = [1; 32];
    const NEW: [u8; 32] = [2; 32];

    fn leaf(key: u8, root: [u8; 32], signed_at: u64, report: Option<(u64, u64)>) -> Leaf {
        let report = report.map(|(generation, at)| Report { generation, at, connections: None });
        let serial = if signed_at == 0 { String::new() } else { format!("{key}") };
        Leaf { key: [key; 32], serial, root, signed_at, not_after: 9999, asked_with: 0, report }
    }

    fn pod(name: &str, leaves: Vec<Leaf>) -> Holder {
        Holder { leaves, ..Holder::new("shop", name, &format!("uid-{name}"), "spiffe://x", 10) }
    }

    fn seen(key: u8, root: [u8; 32], generation: u64, at: u64) -> Holder {
        let known = Holder::new("", "spiffe://x", &format!("leaf {key}"), "spiffe://x", 0);
        let standing = Some((generation, root));
        Holder { leaves: vec![leaf(key, root, 0, Some((generation, at)))], moved: at, standing, ..known }
    }

    #[test]
    fn who_speaks_to_another_replica_than_signed_is_one_holder_with_its_report() {
        for turned in [false, true] {
            let mut tables = vec![vec![pod("a", vec![leaf(1, OLD, 20, None)])], vec![seen(1, OLD, 2, 30)]];
            if turned {
                tables.reverse();
            }
            let all = merge(tables);
            assert_eq!(all.len(), 1, "{all:?}");
            let (holder, leaf) = (&all[0], all[0].newest().unwrap());
            assert!(holder.pod == "a" && holder.holds(2));
            assert_eq!((leaf.serial.as_str(), leaf.signed_at, holder.joined, holder.moved), ("1", 20, 10, 30));
        }
    }

    #[test]
    fn a_pod_with_leaves_of_two_replicas_is_judged_by_the_one_that_it_got_last() {
        let one = vec![pod("a", vec![leaf(1, OLD, 20, Some((2, 25)))])];
        let two = vec![pod("a", vec![leaf(2, NEW, 40, None)])];
        let all = merge([two.clone(), one.clone()]);
        assert_eq!(all[0].leaves.iter().map(|leaf| leaf.key[0]).collect::<Vec<_>>(), [1, 2]);
        assert!(!all[0].holds(2) && !all[0].left(&OLD), "it was not seen with the newer one");
        let all = merge([one, two, vec![seen(2, NEW, 2, 50)]]);
        assert!(all[0].holds(2) && all[0].left(&OLD));
    }

    #[test]
    fn of_two_leaves_of_one_second_the_unseen_one_is_waited_for() {
        let (used, fresh) = (leaf(1, OLD, 20, Some((2, 25))), leaf(2, OLD, 20, None));
        for tables in [
            [vec![pod("a", vec![used.clone()])], vec![pod("a", vec![fresh.clone()])]],
            [vec![pod("a", vec![fresh.clone()])], vec![pod("a", vec![used.clone()])]],
        ] {
            assert!(!merge(tables)[0].holds(2));
        }
    }

    #[test]
    fn whoever_renews_at_one_replica_and_speaks_to_another_does_not_move_each_time() {
        let mut holder = pod("a", vec![leaf(1, OLD, 20, None), leaf(2, OLD, 40, None)]);
        (holder.standing, holder.moved) = (Some((2, OLD)), 21);
        let all = merge([vec![holder], vec![seen(2, OLD, 2, 45), seen(1, OLD, 2, 25)]]);
        assert_eq!(all[0].moved, 21);
        let all = merge([all, vec![seen(3, NEW, 2, 60)], vec![pod("a", vec![leaf(3, NEW, 55, None)])]]);
        assert_eq!((all[0].moved, all[0].standing), (60, Some((2, NEW))));
    }

    #[test]
    fn strangers_to_all_stay_by_themselves_and_all_are_told_by_name() {
        let all = merge([
            vec![pod("b", vec![leaf(1, OLD, 20, None)]), seen(9, OLD, 1, 5)],
            vec![pod("a", vec![leaf(2, OLD, 20, None)]), seen(9, OLD, 2, 8)],
        ]);
        assert_eq!(all.iter().map(|holder| holder.pod.as_str()).collect::<Vec<_>>(), ["spiffe://x", "a", "b"]);
        assert_eq!(all[0].newest().unwrap().report.unwrap().generation, 2, "the newest report");
    }

    #[test]
    fn connections_are_those_of_the_newest_report_that_tells_of_some() {
        let told = |at, good: Option<u64>| {
            let mut holder = seen(1, OLD, 2, at);
            let connections = good.map(|good| Connections { good, ..Connections::default() });
            holder.leaves[0].report = Some(Report { generation: 2, at, connections });
            holder.counted_from = connections.map(|carried| CountedFrom { at, carried });
            holder
        };
        let all = merge([vec![told(30, Some(9))], vec![told(20, Some(4))], vec![told(40, None)]]);
        let from = all[0].counted_from.unwrap();
        assert_eq!((all[0].connections().unwrap().good, from.carried.good, from.at), (9, 4, 20));
    }
}
