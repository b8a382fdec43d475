//! Which replicas sign from one state: a record beside it in the same Secret, so that one version covers both. Written by `siblings`, each over the
//! version that was read; an older CA leaves it where it is. Pure.
//!
//! A replica is in the record before it signs its first leaf, and stays in it when it ends: what it signed lives on, and only it knows whose
//! that is. Bounded: in place of the oldest entry there is then only the time up to which somebody may be missing.

use serde::{Deserialize, Serialize};

/// Entries; an install has two, and each restart leaves one for a leaf's life.
pub const MAX_REPLICAS: usize = 32;
/// Longest name and address that are taken from a record.
const MAX_TEXT: usize = 128;

/// One that signs, or did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// A random name, of one process.
    pub id: String,
    /// Where its siblings can ask it, `IP:PORT`; empty where it does not know.
    pub address: String,
    /// Before that it had signed nothing, seconds since 1970.
    pub since: u64,
    /// When a sibling that could not reach it asked here whether it lives, seconds since 1970; 0: nobody asks. One that lives takes it away.
    #[serde(default)]
    pub doubted_at: u64,
}

/// All that sign from the state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicas {
    /// Whoever got a leaf before may have it from a replica that is in no entry, seconds since 1970; 0: nobody has; none: that may always be.
    #[serde(default)]
    known_from: Option<u64>,
    /// When an entry was last taken out, seconds since 1970. Whoever was taken out and lives has put itself in again soon after.
    #[serde(default)]
    removed_at: u64,
    #[serde(default)]
    all: Vec<Replica>,
}

impl Replicas {
    /// Of a state that was made just now: nobody has signed.
    pub fn first() -> Self {
        Self { known_from: Some(0), ..Self::default() }
    }

    /// The entries.
    pub fn all(&self) -> &[Replica] {
        &self.all
    }

    /// Whoever got a leaf before may have it from a replica that is in no entry; `None`: that may always be.
    pub fn known_from(&self) -> Option<u64> {
        self.known_from
    }

    /// When an entry was last taken out.
    pub fn removed_at(&self) -> u64 {
        self.removed_at
    }

    /// True if that very entry is there.
    pub fn has(&self, replica: &Replica) -> bool {
        self.all.contains(replica)
    }

    /// One more. What was at its address is no more there, and can tell nothing of those that it signed for.
    pub fn with(&self, replica: &Replica, now: u64) -> Self {
        let mut next = self.clone();
        let known_from = *next.known_from.get_or_insert(now);
        next.all.retain(|other| other.id != replica.id);
        let before = next.all.len();
        next.all.retain(|other| other.address.is_empty() || other.address != replica.address);
        if next.all.len() >= MAX_REPLICAS {
            next.all.sort_by_key(|other| other.since);
            next.all.drain(..=next.all.len() - MAX_REPLICAS);
        }
        if next.all.len() != before {
            next.known_from = Some(known_from.max(now));
            next.removed_at = now;
        }
        next.all.push(replica.clone());
        next
    }

    /// Asks one whether it lives.
    pub fn doubting(&self, id: &str, now: u64) -> Self {
        let mut next = self.clone();
        next.all.iter_mut().filter(|replica| replica.id == id).for_each(|replica| replica.doubted_at = now);
        next
    }

    /// Without one of which no leaf lives any more.
    pub fn without(&self, id: &str, now: u64) -> Self {
        let mut next = self.clone();
        next.all.retain(|replica| replica.id != id);
        next.removed_at = now;
        next
    }

    /// As it is stored.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// What was stored. One that cannot be read is as none: whoever lives puts itself in again, and nobody knows who else there was.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let read: Self = serde_json::from_slice(bytes).ok()?;
        let fits = |text: &str| text.len() <= MAX_TEXT;
        let good = read.all.len() <= MAX_REPLICAS && read.all.iter().all(|one| fits(&one.id) && fits(&one.address));
        good.then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: &str, address: &str, since: u64) -> Replica {
        Replica { id: id.to_owned(), address: address.to_owned(), since, doubted_at: 0 }
    }

    fn ids(replicas: &Replicas) -> Vec<&str> {
        replicas.all().iter().map(|one| one.id.as_str()).collect()
    }

    #[test]
    fn the_first_of_a_new_state_knows_that_nobody_signed_before_and_of_an_older_one_it_does_not() {
        let one = replica("a", "10.0.0.1:1", 50);
        assert_eq!(Replicas::first().with(&one, 50).known_from(), Some(0));
        let later = Replicas::default().with(&one, 50);
        assert_eq!(later.known_from(), Some(50));
        assert_eq!(later.with(&replica("b", "10.0.0.2:1", 60), 60).known_from(), Some(50), "it signed nothing before");
    }

    #[test]
    fn whoever_comes_to_an_address_takes_the_place_of_who_was_there_and_somebody_may_then_be_missing() {
        let first = Replicas::first().with(&replica("a", "10.0.0.1:1", 50), 50).with(&replica("b", "", 51), 51);
        let again = first.with(&replica("c", "10.0.0.1:1", 90), 90).with(&replica("d", "", 91), 91);
        assert_eq!((ids(&again), again.known_from(), again.removed_at()), (vec!["b", "c", "d"], Some(90), 90));
        let same = again.with(&replica("c", "10.0.0.1:1", 90), 99);
        assert_eq!((ids(&same), same.known_from()), (vec!["b", "d", "c"], Some(90)), "itself it does not push out");
    }

    #[test]
    fn who_is_doubted_is_another_entry_until_it_says_that_it_lives() {
        let (one, two) = (replica("a", "10.0.0.1:1", 50), replica("b", "10.0.0.2:1", 51));
        let all = Replicas::first().with(&one, 50).with(&two, 51);
        let doubted = all.doubting("b", 90);
        assert!(doubted.has(&one) && !doubted.has(&two));
        assert_eq!(doubted.with(&two, 91), all, "and nothing else has changed");
    }

    #[test]
    fn there_are_never_too_many_and_whom_the_oldest_signed_for_is_then_unknown() {
        let mut all = Replicas::first();
        for n in 0..MAX_REPLICAS {
            all = all.with(&replica(&format!("{n}"), &format!("10.0.0.{n}:1"), n as u64), n as u64);
        }
        assert_eq!((all.all().len(), all.known_from()), (MAX_REPLICAS, Some(0)));
        let more = all.with(&replica("more", "10.0.1.0:1", 100), 100);
        assert_eq!((more.all().len(), more.known_from(), more.removed_at()), (MAX_REPLICAS, Some(100), 100));
        assert!(!ids(&more).contains(&"0") && ids(&more).contains(&"1"));
    }

    #[test]
    fn what_is_stored_is_read_again_with_more_in_it_too_and_what_is_none_is_not() {
        let all = Replicas::first().with(&replica("a", "10.0.0.1:1", 50), 50).without("x", 60);
        assert_eq!(Replicas::decode(&all.encode().unwrap()), Some(all));
        let newer = br#"{"known_from":1,"all":[{"id":"a","address":"","since":1,"zone":"x"}],"more":2}"#;
        assert_eq!(Replicas::decode(newer).unwrap().all().len(), 1);
        assert_eq!(Replicas::decode(b"{}"), Some(Replicas::default()));
        let long = format!(r#"{{"all":[{{"id":"{}","address":"","since":1}}]}}"#, "x".repeat(MAX_TEXT + 1));
        for bad in [b"".as_slice(), b"7", long.as_bytes()] {
            assert_eq!(Replicas::decode(bad), None);
        }
    }
}
