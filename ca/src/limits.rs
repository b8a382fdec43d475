//! How often one may ask, and how much one may hold. Called by `issue` and `server`. Both tables are bounded: no key that a
//! stranger chooses makes them grow without end.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A token bucket's size and refill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Calls a second that are allowed for ever.
    pub per_second: f64,
    /// Calls at once that are allowed after a pause.
    pub burst: u32,
}

/// One bucket for each key. When the table is full, all new keys share one further bucket: known ones keep theirs.
pub struct Buckets<K> {
    rate: Rate,
    max_keys: usize,
    table: Mutex<Table<K>>,
}

struct Table<K> {
    buckets: HashMap<K, Bucket>,
    shared: Bucket,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Eq + Hash> Buckets<K> {
    /// An empty table of at most `max_keys` keys.
    pub fn new(rate: Rate, max_keys: usize, now: Instant) -> Self {
        let shared = Bucket { tokens: f64::from(rate.burst), at: now };
        Self { rate, max_keys, table: Mutex::new(Table { buckets: HashMap::new(), shared }) }
    }

    /// Takes one token of `key`'s bucket, or says how long there will be none.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.buckets.len() >= self.max_keys && !table.buckets.contains_key(&key) {
            // A full bucket is the same as none.
            let rate = self.rate;
            table.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
            if table.buckets.len() >= self.max_keys {
                return table.shared.take(self.rate, now);
            }
        }
        let full = Bucket { tokens: f64::from(self.rate.burst), at: now };
        table.buckets.entry(key).or_insert(full).take(self.rate, now)
    }
}

impl Bucket {
    fn level(&self, rate: Rate, now: Instant) -> f64 {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        (self.tokens + grown).min(f64::from(rate.burst))
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        self.level(rate, now) >= f64::from(rate.burst)
    }

    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let level = self.level(rate, now);
        *self = Self { tokens: level, at: now };
        if level < 1.0 {
            return Err(Duration::from_secs_f64(((1.0 - level) / rate.per_second).min(3600.0)));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// Places: so many in all, so many for one key.
pub struct Places<K> {
    all: usize,
    each: usize,
    held: Mutex<Held<K>>,
}

struct Held<K> {
    total: usize,
    by_key: HashMap<K, usize>,
}

/// A place, given back when dropped.
pub struct Place<K: Eq + Hash> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// `all` places, `each` for one key.
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, held: Mutex::new(Held { total: 0, by_key: HashMap::new() }) })
    }

    /// A place for `key`, if it and all together may hold one more.
    pub fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = held.by_key.get(&key).copied().unwrap_or(0);
        if mine >= self.each || held.total >= self.all {
            return None;
        }
        held.by_key.insert(key.clone(), mine + 1);
        held.total += 1;
        Some(Place { places: Arc::clone(self), key })
    }

    /// Places held now.
    pub fn held(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(1);
        match held.by_key.get_mut(&self.key) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => drop(held.by_key.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 2.0, burst: 3 };

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let buckets = Buckets::new(RATE, 10, start);
        assert_eq!((0..10).filter(|_| buckets.take("a", start).is_ok()).count(), 3);
        let wait = buckets.take("a", start).unwrap_err();
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        assert!(buckets.take("b", start).is_ok(), "another key has its own bucket");
        assert!(buckets.take("a", start + wait).is_ok());
        assert!(buckets.take("a", start + wait).is_err());
        let late = start + Duration::from_secs(1000);
        assert_eq!(
            (0..10).filter(|_| buckets.take("a", late).is_ok()).count(),
            3,
            "a pause fills it to the burst, no more"
        );
    }

    #[test]
    fn a_full_table_shares_one_bucket_among_new_keys_and_forgets_the_idle() {
        let start = Instant::now();
        let buckets = Buckets::new(RATE, 2, start);
        buckets.take(1, start).unwrap();
        buckets.take(2, start).unwrap();
        let strangers = (100..200).filter(|key| buckets.take(*key, start).is_ok()).count();
        assert_eq!(strangers, 3, "all strangers together get one burst");
        assert_eq!((0..10).filter(|_| buckets.take(1, start).is_ok()).count(), 2, "a known key keeps its own");
        let later = start + Duration::from_secs(60);
        assert!(buckets.take(3, later).is_ok());
        assert!(buckets.table.lock().unwrap().buckets.len() <= 2);
    }

    #[test]
    fn one_key_cannot_hold_all_places_and_dropped_places_return() {
        let places = Places::new(3, 2);
        let held: Vec<_> = (0..5).filter_map(|_| places.take("a")).collect();
        assert_eq!(held.len(), 2);
        let other = places.take("b").unwrap();
        assert!(places.take("c").is_none(), "all are held");
        drop(held);
        assert_eq!(places.held(), 1);
        drop(other);
        assert_eq!(places.held(), 0);
        assert!(places.held.lock().unwrap().by_key.is_empty(), "no key stays behind");
    }
}
