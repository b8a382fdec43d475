//! A table as it goes from replica to replica. Called by `siblings` on both sides.

use countersign_api::ca;

use crate::holders::{Connections, CountedFrom, Holder, Leaf, Report};

/// Leaves of one holder that are taken from a sibling; it keeps fewer.
const MAX_LEAVES: usize = 16;

/// A holder as it is sent.
pub fn told(holder: &Holder) -> ca::Holder {
    let (standing_generation, standing_root_sha256) =
        holder.standing.map_or((0, Vec::new()), |(generation, root)| (generation, root.to_vec()));
    ca::Holder {
        namespace: holder.namespace.clone(),
        pod: holder.pod.clone(),
        uid: holder.uid.clone(),
        id: holder.id.clone(),
        leaves: holder.leaves.iter().map(told_leaf).collect(),
        first_connections: holder.counted_from.map(|from| told_connections(from.carried)),
        joined: holder.joined,
        moved: holder.moved,
        standing_generation,
        standing_root_sha256,
        counted_from: holder.counted_from.map_or(0, |from| from.at),
    }
}

fn told_leaf(leaf: &Leaf) -> ca::HeldLeaf {
    let report = leaf.report.map(|report| ca::HoldingReport {
        bundle_generation: report.generation,
        connections: report.connections.map(told_connections),
    });
    ca::HeldLeaf {
        key_sha256: leaf.key.to_vec(),
        root_sha256: leaf.root.to_vec(),
        serial: leaf.serial.clone(),
        signed_at: leaf.signed_at,
        not_after: leaf.not_after,
        asked_with: leaf.asked_with,
        report,
        reported_at: leaf.report.map_or(0, |report| report.at),
    }
}

fn told_connections(connections: Connections) -> ca::ConnectionCounts {
    let Connections { open, good, failed, behind } = connections;
    ca::ConnectionCounts { open, good, failed, behind }
}

/// What came, its times by our clock: `ahead` is how far ours is before the sender's, in seconds. `None`: it is no holder.
pub fn heard(holder: ca::Holder, ahead: i64) -> Option<Holder> {
    if holder.leaves.is_empty() || holder.leaves.len() > MAX_LEAVES {
        return None;
    }
    let standing = match holder.standing_root_sha256.is_empty() {
        true => None,
        false => Some((holder.standing_generation, holder.standing_root_sha256.try_into().ok()?)),
    };
    Some(Holder {
        namespace: holder.namespace,
        pod: holder.pod,
        uid: holder.uid,
        id: holder.id,
        leaves: holder.leaves.into_iter().map(|leaf| heard_leaf(leaf, ahead)).collect::<Option<_>>()?,
        counted_from: holder
            .first_connections
            .map(|carried| CountedFrom { at: ours(holder.counted_from, ahead), carried: heard_connections(carried) }),
        joined: ours(holder.joined, ahead),
        moved: ours(holder.moved, ahead),
        standing,
    })
}

fn heard_leaf(leaf: ca::HeldLeaf, ahead: i64) -> Option<Leaf> {
    let at = ours(leaf.reported_at, ahead);
    Some(Leaf {
        key: leaf.key_sha256.try_into().ok()?,
        serial: leaf.serial,
        root: leaf.root_sha256.try_into().ok()?,
        signed_at: ours(leaf.signed_at, ahead),
        not_after: leaf.not_after,
        asked_with: leaf.asked_with,
        report: leaf.report.map(|report| Report {
            generation: report.bundle_generation,
            at,
            connections: report.connections.map(heard_connections),
        }),
    })
}

fn heard_connections(connections: ca::ConnectionCounts) -> Connections {
    let ca::ConnectionCounts { open, good, failed, behind } = connections;
    Connections { open, good, failed, behind }
}

/// A time of the sender's clock by ours; 0 stays what it is.
pub fn ours(theirs: u64, ahead: i64) -> u64 {
    if theirs == 0 { 0 } else { theirs.saturating_add_signed(ahead).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder() -> Holder {
        let connections = Some(Connections { open: 1, good: 2, failed: 3, behind: 4 });
        let report = Some(Report { generation: 2, at: 130, connections });
        let (key, root) = ([1; 32], [2; 32]);
        let leaf = Leaf { key, serial: "5e".to_owned(), root, signed_at: 120, not_after: 900, asked_with: 1, report };
        let known = Holder::new("shop", "a", "uid-a", "spiffe://x", 110);
        let standing = Some((2, root));
        let counted_from = connections.map(|carried| CountedFrom { at: 125, carried });
        Holder { leaves: vec![leaf], counted_from, moved: 130, standing, ..known }
    }

    #[test]
    fn what_is_told_is_what_is_heard() {
        let sent = holder();
        assert_eq!(format!("{:?}", heard(told(&sent), 0).unwrap()), format!("{sent:?}"));
    }

    #[test]
    fn times_are_heard_by_our_clock_and_what_is_unknown_stays_so() {
        let mut sent = holder();
        sent.joined = 0;
        let got = heard(told(&sent), -5).unwrap();
        let leaf = &got.leaves[0];
        assert_eq!((got.joined, got.moved, leaf.signed_at, leaf.report.unwrap().at), (0, 125, 115, 125));
        assert_eq!(got.counted_from.unwrap().at, 120);
        assert_eq!(leaf.not_after, 900, "that is in the certificate");
    }

    #[test]
    fn what_is_no_holder_is_not_heard() {
        let broken: [fn(&mut ca::Holder); 4] = [
            |holder| holder.leaves.clear(),
            |holder| holder.leaves[0].key_sha256.truncate(31),
            |holder| holder.standing_root_sha256.truncate(31),
            |holder| holder.leaves = vec![holder.leaves[0].clone(); MAX_LEAVES + 1],
        ];
        for spoil in broken {
            let mut sent = told(&holder());
            spoil(&mut sent);
            assert!(heard(sent, 0).is_none());
        }
    }
}
