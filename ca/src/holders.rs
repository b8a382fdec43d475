//! Who holds a living leaf, and which bundle its holder is known to have in force: what `rotation` asks before it takes a step. Told by
//! `issue` (a leaf was signed), by `watch` and `server` (somebody came with that leaf, and said what it holds).
//!
//! It is one process's memory. Whether it knows everybody is a question of its own ([`Holders::complete_since`]): what it signed before it was
//! started it does not know, and what other replicas signed `siblings` asks them. Bounded; a report counts for the leaf that came with it, so
//! that nobody speaks for a sibling.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use countersign_identity::VerifiedId;

/// SHA-256 of a leaf's public key (SPKI).
pub type LeafKey = [u8; 32];

/// Pods that are known at once. About 600 bytes each.
pub const MAX_PODS: usize = 65_536;
/// Living leaves of one pod that are known; the oldest is forgotten.
const MAX_LEAVES: usize = 4;

/// A leaf that was signed.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Its key.
    pub key: LeafKey,
    /// Serial number, hex; empty where only its holder was seen.
    pub serial: String,
    /// SHA-256 of the root above it.
    pub root: [u8; 32],
    /// When it was signed, seconds since 1970; 0 where only its holder was seen.
    pub signed_at: u64,
    /// End of its life, seconds since 1970.
    pub not_after: u64,
    /// Generation of the bundle that its holder said to have when it asked; 0 = none.
    pub asked_with: u64,
    /// The newest report that came with it.
    pub report: Option<Report>,
}

/// What a holder says of itself, by a connection on which it proved the leaf's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Generation of the bundle in force there.
    pub generation: u64,
    /// When it came, seconds since 1970.
    pub at: u64,
    /// Connections of the holder; none if it has none to tell of.
    pub connections: Option<Connections>,
}

/// Connections that a holder carried since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// Ended well, or by what has nothing to do with certificates: a rule, an app, a stranger.
    pub good: u64,
    /// Failed for want of trust, of a certificate, or of a peer that had been proven: the words are in docs/errors.md.
    pub failed: u64,
    /// Open, and not yet proven anew under the root that vouches for the holder now.
    pub behind: u64,
}

/// Where the count of a holder's connections begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedFrom {
    /// When that was, seconds since 1970; 0 = not known.
    pub at: u64,
    /// What it had carried by then.
    pub carried: Connections,
}

impl CountedFrom {
    /// Whether something of before is left out. Who had carried nothing by then is counted from its start.
    pub fn leaves_out(&self) -> bool {
        self.carried.good > 0 || self.carried.failed > 0
    }
}

/// Somebody with a living leaf.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Namespace of the pod; empty where only its leaf was seen.
    pub namespace: String,
    /// Name of the pod, or the identity where only its leaf was seen.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// SPIFFE id.
    pub id: String,
    /// Living leaves, the newest last; never empty.
    pub leaves: Vec<Leaf>,
    /// As it first said that it has the bundle from which on is counted ([`Holders::count_from`]); to this process, which may be younger.
    pub counted_from: Option<CountedFrom>,
    /// When it was first known, seconds since 1970; 0 = nobody knows: its leaf was signed elsewhere, or before this process.
    pub joined: u64,
    /// When it last said something new of where it stands (bundle in force, root above its leaf), seconds since 1970; 0 = never.
    pub moved: u64,
    /// What it said then.
    pub standing: Option<(u64, [u8; 32])>,
}

impl Holder {
    /// Somebody of whom nothing was heard yet.
    pub fn new(namespace: &str, pod: &str, uid: &str, id: &str, joined: u64) -> Self {
        Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: uid.to_owned(),
            id: id.to_owned(),
            leaves: Vec::new(),
            counted_from: None,
            joined,
            moved: 0,
            standing: None,
        }
    }

    /// True of somebody whose leaf was seen, and whose pod is not known here: another process signed it.
    pub fn is_nameless(&self) -> bool {
        self.namespace.is_empty()
    }

    /// The leaf that it got last.
    pub fn newest(&self) -> Option<&Leaf> {
        self.leaves.last()
    }

    /// Whether it is known to hold at least that bundle: it said so with its newest leaf, or when it asked for that.
    pub fn holds(&self, generation: u64) -> bool {
        self.newest().is_some_and(|leaf| {
            leaf.asked_with >= generation || leaf.report.is_some_and(|report| report.generation >= generation)
        })
    }

    /// Open connections that would end if the root that is being replaced went now, as its newest leaf's report says.
    pub fn behind(&self) -> u64 {
        self.newest().and_then(|leaf| leaf.report?.connections).map_or(0, |connections| connections.behind)
    }

    /// Whether it is known to be done with all leaves under `root`: it came with its newest leaf, which stands on another.
    pub fn left(&self, root: &[u8; 32]) -> bool {
        self.leaves.iter().all(|leaf| leaf.root != *root)
            || self.newest().is_some_and(|leaf| leaf.root != *root && leaf.report.is_some())
    }

    fn stands(&mut self, generation: u64, root: [u8; 32], at: u64) {
        if self.standing != Some((generation, root)) {
            (self.standing, self.moved) = (Some((generation, root)), at);
        }
    }

    /// The newest report of any of its leaves.
    pub fn last_report(&self) -> Option<Report> {
        self.leaves.iter().filter_map(|leaf| leaf.report).max_by_key(|report| report.at)
    }

    /// The newest that it told of its connections.
    pub fn connections(&self) -> Option<Connections> {
        let reports = self.leaves.iter().filter_map(|leaf| leaf.report);
        let told = reports.filter_map(|report| Some((report.at, report.connections?)));
        told.max_by_key(|(at, _)| *at).map(|(_, connections)| connections)
    }
}

/// Sorts by namespace, pod and UID.
pub fn by_name(holders: &mut [Holder]) {
    holders.sort_by(|a, b| (&a.namespace, &a.pod, &a.uid).cmp(&(&b.namespace, &b.pod, &b.uid)));
}

/// The table; one for the process.
pub struct Holders {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_uid: HashMap<String, Holder>,
    uid_of: HashMap<LeafKey, String>,
    /// Whoever got a leaf of this process before may be missing here.
    complete_since: u64,
    /// Connections are counted from the report of this bundle's generation on.
    count_from: u64,
}

impl Holders {
    /// Nobody yet. `since`: whoever gets a leaf of this process after that is told to this table; 0: nobody got one before.
    pub fn new(since: u64) -> Self {
        Self { table: Mutex::new(Table { complete_since: since, ..Table::default() }) }
    }

    /// A leaf was signed for this pod.
    pub fn signed(&self, namespace: &str, pod: &str, uid: &str, id: &str, leaf: Leaf, now: u64) {
        let mut table = self.lock();
        table.make_room(now);
        if table.by_uid.len() >= MAX_PODS && !table.by_uid.contains_key(uid) {
            // From here on somebody may be missing, for as long as this leaf lives.
            table.complete_since = table.complete_since.max(now + 1);
            return;
        }
        table.uid_of.insert(leaf.key, uid.to_owned());
        let holder = table.by_uid.entry(uid.to_owned()).or_insert_with(|| Holder::new(namespace, pod, uid, id, now));
        // Whoever asks with a bundle has it, and still stands on its older leaf.
        if let Some(root) = holder.newest().map(|before| before.root).filter(|_| leaf.asked_with > 0) {
            holder.stands(leaf.asked_with, root, now);
        }
        holder.leaves.push(leaf);
        let gone = holder.leaves.len().saturating_sub(MAX_LEAVES);
        let gone: Vec<_> = holder.leaves.drain(..gone).map(|leaf| leaf.key).collect();
        gone.iter().for_each(|key| drop(table.uid_of.remove(key)));
    }

    /// Somebody came with a leaf and said what it holds.
    pub fn reported(&self, peer: &VerifiedId, report: Report) {
        let (key, until) = (*peer.spki_sha256(), peer.not_after().as_secs());
        let mut table = self.lock();
        let uid = match table.uid_of.get(&key) {
            Some(uid) => uid.clone(),
            None => {
                // Another replica signed it, or this one before it was started.
                table.make_room(report.at);
                if table.by_uid.len() >= MAX_PODS {
                    return;
                }
                let id = peer.id().as_str().to_owned();
                let uid = format!("leaf {}", crate::state::hex(&key[..8]));
                let mut holder = Holder::new("", &id, &uid, &id, 0);
                holder.leaves.push(Leaf {
                    key,
                    serial: String::new(),
                    root: *peer.anchor_sha256(),
                    signed_at: 0,
                    not_after: until,
                    asked_with: 0,
                    report: None,
                });
                table.by_uid.insert(uid.clone(), holder);
                table.uid_of.insert(key, uid.clone());
                uid
            }
        };
        let count_from = table.count_from;
        let Some(holder) = table.by_uid.get_mut(&uid) else { return };
        if holder.counted_from.is_none() && report.generation >= count_from {
            holder.counted_from = report.connections.map(|carried| CountedFrom { at: report.at, carried });
        }
        let newest = holder.newest().is_some_and(|leaf| leaf.key == key);
        let Some(leaf) = holder.leaves.iter_mut().find(|leaf| leaf.key == key) else { return };
        let connections = report.connections.or(leaf.report.and_then(|before| before.connections));
        leaf.report = Some(Report { connections, ..report });
        let root = leaf.root;
        if newest {
            holder.stands(report.generation, root, report.at);
        }
    }

    /// Connections are counted anew, for each holder from its report on that it has the bundle of this generation: what it carried before that
    /// has nothing to do with it, and its last report may be half a leaf's life old.
    pub fn count_from(&self, generation: u64) {
        let mut table = self.lock();
        table.count_from = generation;
        table.by_uid.values_mut().for_each(|holder| holder.counted_from = None);
    }

    /// Everybody with a leaf that lives at `now`, by name.
    pub fn living(&self, now: u64) -> Vec<Holder> {
        let mut table = self.lock();
        table.forget(now);
        let mut all: Vec<_> = table.by_uid.values().cloned().collect();
        drop(table);
        by_name(&mut all);
        all
    }

    /// Whoever got a leaf of this process after that is in this table (seconds since 1970).
    pub fn complete_since(&self) -> u64 {
        self.lock().complete_since
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Looks for the dead only when it is full: that is the whole table's work.
    fn make_room(&mut self, now: u64) {
        if self.by_uid.len() >= MAX_PODS {
            self.forget(now);
        }
    }

    fn forget(&mut self, now: u64) {
        let uid_of = &mut self.uid_of;
        self.by_uid.retain(|_, holder| {
            holder.leaves.retain(|leaf| {
                let lives = leaf.not_after >= now;
                if !lives {
                    uid_of.remove(&leaf.key);
                }
                lives
            });
            !holder.leaves.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
