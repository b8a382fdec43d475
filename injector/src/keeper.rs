//! Which serving certificates there are, which is served, and which roots the API server must know meanwhile.
//!
//! Called by `upkeep` with what the shared Secret holds. Pure but for making a new pair. All replicas come to the same answer from
//! the same ring and the same time, so none leads. It must never serve a certificate whose root was not announced for a while,
//! unless there is nothing else to serve.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::certificate::{MakeError, Pair};

/// Longest time from a root's announcement to the first use of its leaf: API servers follow the webhook's configuration by a watch.
const ANNOUNCED: Duration = Duration::from_secs(120);
/// Pairs in a ring; there are two or three, unless somebody's clock runs wild.
const MOST: usize = 8;

/// All pairs that have not ended, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    pairs: Vec<Pair>,
}

/// What a pair is made of.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Names of the service, the one that the API server asks for first.
    pub names: Vec<String>,
    /// Life of a pair; the next is made at half of it.
    pub life: Duration,
}

impl Terms {
    fn announced(&self) -> u64 {
        (self.life / 10).min(ANNOUNCED).as_secs().max(1)
    }

    /// How often to look whether something is due.
    #[must_use]
    pub fn tick(&self) -> Duration {
        (self.life / 100).clamp(Duration::from_secs(1), Duration::from_secs(10))
    }
}

impl Ring {
    /// The ring as it should be now; the same one if nothing is due.
    ///
    /// # Errors
    /// No pair could be made.
    pub fn tended(&self, terms: &Terms, now: u64) -> Result<Self, MakeError> {
        let mut pairs: Vec<Pair> = self.pairs.iter().filter(|pair| pair.ends > now).cloned().collect();
        let half = |pair: &Pair| pair.made.saturating_add(pair.ends.saturating_sub(pair.made) / 2);
        // A life that the operator has made shorter counts at once, not only when the longer one is half over.
        let too_long = |pair: &Pair| pair.ends.saturating_sub(pair.made) > terms.life.as_secs();
        if pairs.last().is_none_or(|newest| half(newest) <= now || too_long(newest)) {
            let mut pair = Pair::make(&terms.names, now, terms.life)?;
            // Not so late that the last one has ended: an operator may have made the life longer.
            if let Some(left) = pairs.iter().map(|pair| pair.ends - now).max() {
                pair.serve_from = now.saturating_add(terms.announced().min(left / 2));
            }
            pairs.push(pair);
        }
        let surplus = pairs.len().saturating_sub(MOST);
        pairs.drain(..surplus);
        Ok(Self { pairs })
    }

    /// The pair to serve: the newest whose time has come, or, if there is none, the newest.
    #[must_use]
    pub fn serving(&self, now: u64) -> Option<&Pair> {
        let living = || self.pairs.iter().rev().filter(|pair| pair.ends > now);
        living().find(|pair| pair.serve_from <= now).or_else(|| living().next())
    }

    /// How long until the next look: never past the moment from which a pair that is made may be served, as the last one may end soon after it.
    #[must_use]
    pub fn next_look(&self, terms: &Terms, now: u64) -> Duration {
        let later = self.pairs.iter().filter_map(|pair| pair.serve_from.checked_sub(now)).filter(|left| *left > 0);
        later.map(Duration::from_secs).fold(terms.tick(), Duration::min)
    }

    /// The roots that the API server must know, old and new.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.pairs.iter().map(|pair| pair.root.as_str()).collect()
    }

    /// Number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;

    fn terms() -> Terms {
        Terms { names: vec!["i.s.svc".to_owned()], life: Duration::from_secs(DAY) }
    }

    fn at(ring: &Ring, now: u64) -> Ring {
        ring.tended(&terms(), now).unwrap()
    }

    #[test]
    fn a_longer_life_takes_over_before_a_short_one_ends_however_seldom_one_looks() {
        let short = Terms { life: Duration::from_secs(60), ..terms() };
        // The new terms come when so much of the short life is left; looks are as far apart as they may be.
        for left in 1..60 {
            let mut ring = Ring::default().tended(&short, START).unwrap();
            let (end, mut now) = (START + 60, START + 60 - left);
            while now < end {
                ring = ring.tended(&terms(), now).unwrap();
                now += ring.next_look(&terms(), now).as_secs();
            }
            assert!(ring.serving(now).is_some_and(|pair| pair.ends > end), "{left} s left");
            assert!(ring.pairs[1].serve_from < end, "{left} s left: {:?}", ring.pairs[1].serve_from);
        }
    }

    #[test]
    fn the_first_is_served_at_once_and_renewed_at_half_its_life() {
        let first = at(&Ring::default(), START);
        assert_eq!(first.serving(START), first.pairs.first());
        assert_eq!(at(&first, START + DAY / 2 - 1), first, "nothing is due");
        let second = at(&first, START + DAY / 2);
        assert_eq!((second.len(), &second.pairs[0]), (2, &first.pairs[0]));
    }

    #[test]
    fn a_new_root_is_known_before_its_leaf_is_served_and_the_old_one_stays() {
        let renewal = START + DAY / 2;
        let ring = at(&at(&Ring::default(), START), renewal);
        assert_eq!(ring.serving(renewal), Some(&ring.pairs[0]));
        assert_eq!(ring.serving(renewal + 119), Some(&ring.pairs[0]));
        assert_eq!(ring.serving(renewal + 120), Some(&ring.pairs[1]));
        assert_eq!(ring.bundle(), format!("{}{}", ring.pairs[0].root, ring.pairs[1].root));
        let later = at(&ring, START + DAY);
        assert!(!later.pairs.contains(&ring.pairs[0]) && later.pairs.contains(&ring.pairs[1]));
    }

    #[test]
    fn a_life_made_shorter_counts_at_once_and_one_made_longer_from_the_next_pair_on() {
        let first = at(&Ring::default(), START);
        let (short, long) = (
            Terms { life: Duration::from_secs(60), ..terms() },
            Terms { life: Duration::from_secs(2 * DAY), ..terms() },
        );
        let shorter = first.tended(&short, START + 1).unwrap();
        assert_eq!((shorter.len(), shorter.pairs[1].ends), (2, START + 61));
        assert_eq!(shorter.tended(&short, START + 2).unwrap(), shorter, "once");
        assert_eq!(first.tended(&long, START + 1).unwrap(), first);
    }

    #[test]
    fn a_life_made_longer_leaves_no_gap_between_the_old_pair_and_the_new() {
        let short = Terms { life: Duration::from_secs(60), ..terms() };
        let mut ring = Ring::default().tended(&short, START).unwrap();
        for now in START + 1..START + 300 {
            ring = at(&ring, now);
            let serving = ring.serving(now).unwrap();
            assert!(serving.ends > now);
            if now >= START + 60 {
                assert_eq!(serving.ends - serving.made, DAY);
            }
        }
        let second = &ring.pairs[0];
        assert_eq!((second.made, second.serve_from), (START + 30, START + 45), "announced for half of what was left");
    }

    #[test]
    fn where_no_pairs_time_has_come_the_newest_is_served_all_the_same() {
        let mut ring = at(&Ring::default(), START);
        ring.pairs[0].serve_from = START + 100;
        assert_eq!(ring.serving(START), ring.pairs.first());
        assert_eq!(ring.serving(START + DAY), None, "never one that has ended");
    }

    #[test]
    fn after_a_long_absence_there_is_one_new_pair_and_it_is_served_at_once() {
        let ring = at(&at(&Ring::default(), START), START + 10 * DAY);
        assert_eq!(ring.len(), 1);
        assert!(ring.serving(START + 10 * DAY).is_some());
    }

    #[test]
    fn at_any_moment_there_is_one_to_serve_and_the_ring_stays_short() {
        let mut ring = Ring::default();
        for step in 0..500 {
            let now = START + step * DAY / 37;
            ring = at(&ring, now);
            let serving = ring.serving(now).unwrap();
            assert!(serving.ends > now && ring.bundle().contains(&serving.root));
            assert!(ring.len() <= 3);
        }
    }

    #[test]
    fn a_ring_travels_as_json() {
        let ring = at(&Ring::default(), START);
        assert_eq!(serde_json::from_str::<Ring>(&serde_json::to_string(&ring).unwrap()).unwrap(), ring);
    }
}
