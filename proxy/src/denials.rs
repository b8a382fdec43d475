//! What was denied or refused lately, so that it can be explained afterwards: one entry for each (source, port, rule), with a count,
//! whose id its repeats carry.
//!
//! `permit` notes what rules denied, both journeys what they refused before a rule could be asked (`refused`); the admin socket shows
//! both, and `countersign explain` asks there (`words`). A scan must not evict the evidence of others: each identity has a quota, the pod's
//! own app has one, and sources without identity, known by their /24 or /64, share one; none takes from another. It must never cost the
//! data path more than a look-up and, where all places are taken, a pass over them, nor keep more than a few outdated rule sets alive.

mod refused;
mod words;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use countersign_policy::{PolicySet, Trace};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::permit::{Asking, Denial, DenialId};

pub use self::refused::{Ground, Refused};

/// Most entries of one source.
const EACH: usize = 16;
/// Most entries of the pod's own app, which knows many destinations.
const APP: usize = 64;
/// Most entries of all sources without identity.
const NAMELESS: usize = 128;
/// Most entries of all identities.
const NAMED: usize = 832;
/// Most rule sets held for entries: a denial under an older one is explained without them.
const SETS: usize = 4;

/// The denials that are remembered.
#[derive(Debug, Default)]
pub struct Denials(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    entries: HashMap<Key, Entry>,
    by_id: HashMap<u64, Key>,
    by_source: HashMap<From, usize>,
    nameless: usize,
    /// The sets that entries hold, oldest first.
    sets: Vec<Arc<PolicySet>>,
    /// Grows with each denial: tells which entry was seen last.
    clock: u64,
}

/// What makes two denials the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    from: From,
    to: To,
    reason: &'static str,
    rule: Option<Arc<str>>,
}

/// Whose quota an entry takes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum From {
    Identity(Arc<str>),
    /// No identity: the network that it comes from.
    Network(IpNet),
    /// The pod's own app.
    App,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum To {
    Port(u16),
    Address(SocketAddr),
}

#[derive(Debug)]
struct Entry {
    id: u64,
    first: SystemTime,
    last: SystemTime,
    seen: u64,
    count: u64,
    asking: Asking,
    /// Not all came from one address: without identity, whoever is in the network shares the entry.
    several: bool,
    /// Where no rule was asked: why not.
    refused: Option<Refused>,
    revision: Option<Arc<str>>,
    rules: Option<Arc<PolicySet>>,
}

/// One entry, for people.
#[derive(Clone, Debug, Serialize)]
pub struct DenialView {
    /// 16 hex digits, as both sides log it.
    pub id: String,
    direction: &'static str,
    /// SPIFFE id; none: no identity was shown.
    identity: Option<String>,
    /// Where it came from last.
    source_ip: Option<IpAddr>,
    /// The network, where no identity was shown and not all came from one address of it.
    several_of: Option<IpNet>,
    /// The port that was asked for.
    port: u16,
    /// Where the app wanted to go.
    destination: Option<SocketAddr>,
    reason: &'static str,
    /// What was seen, where it was refused before a rule could be asked.
    seen: Option<String>,
    rule: Option<Arc<str>>,
    /// The policy revision that denied it last.
    revision: Option<Arc<str>>,
    count: u64,
    /// Unix seconds.
    first: u64,
    last: u64,
}

/// One entry, explained.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// The denial.
    pub denial: DenialView,
    /// What would let it in.
    pub change: String,
    /// Every rule tried, the first condition that failed of each, and the nearest; none where rules did not decide, or are no longer
    /// held.
    pub trace: Option<Trace>,
    /// All of it in words.
    pub text: String,
}

impl Denials {
    /// Remembers a denial, and gives it the id that it has from the first time.
    #[must_use]
    pub fn note(&self, asking: &Asking, denial: Denial, rules: &Option<Arc<PolicySet>>) -> Denial {
        self.remember(asking, denial, None, rules)
    }

    /// The same for what was refused before a rule could be asked.
    #[must_use]
    pub fn refused(&self, asking: &Asking, refused: Refused, rules: &Option<Arc<PolicySet>>) -> Denial {
        let revision = rules.as_ref().map(|rules| rules.revision().into());
        let denial = Denial { id: rand::random(), reason: refused.result, rule: None, revision };
        self.remember(asking, denial, Some(refused), rules)
    }

    fn remember(
        &self,
        asking: &Asking,
        denial: Denial,
        refused: Option<Refused>,
        rules: &Option<Arc<PolicySet>>,
    ) -> Denial {
        let (from, to) = ends(asking);
        let key = Key { from, to, reason: denial.reason, rule: denial.rule.clone() };
        let now = SystemTime::now();
        let mut ring = self.lock();
        ring.clock += 1;
        let seen = ring.clock;
        if let Some(entry) = ring.entries.get_mut(&key) {
            (entry.last, entry.seen, entry.count) = (now, seen, entry.count.saturating_add(1));
            let id = entry.id;
            let same_rules = entry.revision == denial.revision;
            entry.revision.clone_from(&denial.revision);
            entry.several |= entry.asking.source_ip() != asking.source_ip();
            entry.asking = asking.clone();
            entry.refused = refused;
            if !same_rules || entry.rules.is_none() {
                ring.hold(&key, rules);
            }
            return Denial { id, ..denial };
        }
        ring.make_room(&key.from);
        let entry = Entry {
            id: denial.id,
            first: now,
            last: now,
            seen,
            count: 1,
            asking: asking.clone(),
            several: false,
            refused,
            revision: denial.revision.clone(),
            rules: None,
        };
        *ring.by_source.entry(key.from.clone()).or_insert(0) += 1;
        ring.nameless += usize::from(key.from.is_nameless());
        ring.by_id.insert(entry.id, key.clone());
        ring.entries.insert(key.clone(), entry);
        ring.hold(&key, rules);
        denial
    }

    /// How many different denials are remembered, and how often they came in all.
    pub fn totals(&self) -> (usize, u64) {
        let ring = self.lock();
        let counted = ring.entries.values().fold(0u64, |sum, entry| sum.saturating_add(entry.count));
        (ring.entries.len(), counted)
    }

    /// All that are remembered, the latest first.
    #[must_use]
    pub fn list(&self) -> Vec<DenialView> {
        let ring = self.lock();
        let mut all: Vec<_> = ring.entries.iter().collect();
        all.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(entry.seen));
        all.into_iter().map(|(key, entry)| view(key, entry)).collect()
    }

    /// Why one was denied. Where its rules are no longer held, those in force do, if they are of the same revision.
    #[must_use]
    pub fn explain(&self, id: DenialId, in_force: Option<&Arc<PolicySet>>) -> Option<Explained> {
        let (denial, asking, refused, rules) = {
            let ring = self.lock();
            let key = ring.by_id.get(&id.0)?;
            let entry = ring.entries.get(key)?;
            let same = |rules: &&Arc<PolicySet>| entry.revision.as_deref() == Some(rules.revision());
            let rules = entry.rules.as_ref().or(in_force.filter(same)).cloned();
            (view(key, entry), entry.asking.clone(), entry.refused.clone(), rules)
        };
        let trace = rules.as_ref().and_then(|rules| words::traced(rules, &asking));
        Some(match refused {
            None => words::denied(denial, trace),
            Some(refused) => words::refused(denial, &refused, rules.as_deref(), trace),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// A new entry of `from` fits afterwards. What gives way is the one seen longest ago: of the same source where that has its quota;
    /// else of the source that has most.
    fn make_room(&mut self, from: &From) {
        let most = if *from == From::App { APP } else { EACH };
        if self.by_source.get(from).is_some_and(|count| *count >= most) {
            let from = from.clone();
            self.evict(|key| key.from == from);
        } else if from.is_nameless() && self.nameless >= NAMELESS {
            let greediest = self.greediest(From::is_nameless);
            self.evict(|key| Some(&key.from) == greediest.as_ref());
        } else if from.is_named() && self.named() >= NAMED {
            let greediest = self.greediest(From::is_named);
            self.evict(|key| Some(&key.from) == greediest.as_ref());
        }
    }

    fn named(&self) -> usize {
        self.entries.len() - self.nameless - self.by_source.get(&From::App).copied().unwrap_or_default()
    }

    fn greediest(&self, among: impl Fn(&From) -> bool) -> Option<From> {
        let counts = self.by_source.iter().filter(|(from, _)| among(from));
        counts.max_by_key(|(_, count)| **count).map(|(from, _)| from.clone())
    }

    fn evict(&mut self, among: impl Fn(&Key) -> bool) {
        let oldest = self.entries.iter().filter(|(key, _)| among(key)).min_by_key(|(_, entry)| entry.seen);
        let Some(key) = oldest.map(|(key, _)| key.clone()) else {
            return;
        };
        if let Some(entry) = self.entries.remove(&key) {
            self.by_id.remove(&entry.id);
        }
        self.nameless -= usize::from(key.from.is_nameless());
        if let Some(count) = self.by_source.get_mut(&key.from) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&key.from);
            }
        }
    }

    /// An entry is explained by the rules that denied it last; only the newest few sets are held.
    fn hold(&mut self, key: &Key, rules: &Option<Arc<PolicySet>>) {
        if let Some(rules) = rules
            && !self.sets.iter().any(|set| Arc::ptr_eq(set, rules))
        {
            self.sets.push(Arc::clone(rules));
            if self.sets.len() > SETS {
                let outdated = self.sets.remove(0);
                for entry in self.entries.values_mut() {
                    entry.rules.take_if(|set| Arc::ptr_eq(set, &outdated));
                }
            }
        }
        if let Some(entry) = self.entries.get_mut(key) {
            entry.rules.clone_from(rules);
        }
    }
}

impl From {
    fn is_named(&self) -> bool {
        matches!(self, Self::Identity(_))
    }

    fn is_nameless(&self) -> bool {
        matches!(self, Self::Network(_))
    }
}

fn ends(asking: &Asking) -> (From, To) {
    match asking {
        Asking::Out { address, .. } => (From::App, To::Address(*address)),
        Asking::In { who, source_ip, port } => {
            let from = match who {
                Some(principal) => From::Identity(principal.to_string().into()),
                None => From::Network(network(*source_ip)),
            };
            (from, To::Port(*port))
        }
    }
}

/// The /24 or /64 that an address is in.
fn network(ip: IpAddr) -> IpNet {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Ipv4Net::new_assert(ip, 24).trunc().into(),
        IpAddr::V6(ip) => Ipv6Net::new_assert(ip, 64).trunc().into(),
    }
}

fn view(key: &Key, entry: &Entry) -> DenialView {
    let unix = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (direction, source_ip, port, destination) = match &entry.asking {
        Asking::In { source_ip, port, .. } => ("inbound", Some(*source_ip), *port, None),
        Asking::Out { address, .. } => ("outbound", None, address.port(), Some(*address)),
    };
    let identity = match &key.from {
        From::Identity(id) => Some(id.to_string()),
        From::Network(_) | From::App => None,
    };
    DenialView {
        id: DenialId(entry.id).to_string(),
        direction,
        identity,
        source_ip,
        several_of: match &key.from {
            From::Network(network) if entry.several => Some(*network),
            _ => None,
        },
        port,
        destination,
        reason: key.reason,
        seen: entry.refused.as_ref().map(|refused| refused.seen.clone()),
        rule: key.rule.clone(),
        revision: entry.revision.clone(),
        count: entry.count,
        first: unix(entry.first),
        last: unix(entry.last),
    }
}

#[cfg(test)]
mod tests;
