//! Finds the clauses that can concern an attempt without looking at the others: first by port, then by the narrowest
//! thing the clause asks of the source. It only narrows: whether a clause matches is the clause's own answer, whether the
//! port is its rule's is the rule's.
//! Must never leave out a clause that matches (held against a naive reference by a property), nor take more memory than a
//! few times the rules' own text: a rule of many ports *and* many sources is found by its sources alone.

use std::collections::{HashMap, HashSet};

use super::clause::{Clause, Listed, Who};
use super::{Asked, CompiledRule};
use crate::model::{Action, Mode};

/// A rule stands under each of its ports while that takes at most so many times the places of its ports and its keys
/// together. Every rule with no more than this many ports, or this many keys, does.
const NARROW: usize = 4;

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Rules without ports, and those with too many to stand under each.
    any_port: Bucket,
    ports: HashMap<u16, Bucket>,
    /// Some rule concerns every port.
    speaks_of_all: bool,
}

/// A clause: the place of its rule, and which of the rule's entries it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) rule: usize,
    pub(super) entry: usize,
}

/// The clauses of one port. Each stands under exactly one kind of key.
#[derive(Debug, Clone, Default)]
struct Bucket {
    by_id: Keyed,
    by_path: Keyed,
    by_namespace: Keyed,
    by_domain: Keyed,
    authenticated: Vec<Candidate>,
    unauthenticated: Vec<Candidate>,
    everyone: Vec<Candidate>,
    /// Some enforced Allow of this port, wherever it stands, matches sources without an identity.
    opens_unauthenticated: bool,
}

type Keyed = HashMap<Box<str>, Vec<Candidate>>;

impl Index {
    pub(super) fn add(&mut self, at: usize, rule: &CompiledRule, clauses: &[Clause]) {
        let opens = rule.action == Action::Allow
            && rule.mode == Mode::Enforce
            && clauses.iter().any(|clause| clause.who == Who::Unauthenticated);
        let Some(ports) = &rule.ports else {
            self.speaks_of_all = true;
            self.any_port.opens_unauthenticated |= opens;
            self.any_port.add(at, clauses);
            return;
        };
        let narrow = is_narrow(ports.len(), clauses.iter().map(keys).sum());
        for port in ports {
            let bucket = self.ports.entry(*port).or_default();
            bucket.opens_unauthenticated |= opens;
            if narrow {
                bucket.add(at, clauses);
            }
        }
        if !narrow {
            self.any_port.add(at, clauses);
        }
    }

    pub(super) fn opens_unauthenticated(&self, port: u16) -> bool {
        self.of(port).any(|bucket| bucket.opens_unauthenticated)
    }

    pub(super) fn speaks_of(&self, port: u16) -> bool {
        self.speaks_of_all || self.ports.contains_key(&port)
    }

    pub(super) fn candidates(&self, asked: &Asked<'_>, mut each: impl FnMut(Candidate)) {
        for bucket in self.of(asked.port) {
            bucket.candidates(asked, &mut each);
        }
    }

    fn of(&self, port: u16) -> impl Iterator<Item = &Bucket> {
        self.ports.get(&port).into_iter().chain([&self.any_port])
    }
}

/// Under how many keys `Bucket::add_authenticated` files it, or 1.
fn keys(clause: &Clause) -> usize {
    if let Some(ids) = &clause.ids {
        ids.len()
    } else if let Some(accounts) = &clause.accounts {
        accounts.paths.len() + accounts.whole.len()
    } else if let Some(Listed::These(namespaces)) = &clause.namespaces {
        namespaces.len()
    } else if let Some(Listed::These(domains)) = &clause.domains {
        domains.len()
    } else {
        1
    }
}

fn is_narrow(ports: usize, keys: usize) -> bool {
    ports.saturating_mul(keys) <= NARROW * (ports + keys)
}

impl Bucket {
    fn add(&mut self, at: usize, clauses: &[Clause]) {
        for (entry, clause) in clauses.iter().enumerate() {
            let candidate = Candidate { rule: at, entry };
            match clause.who {
                Who::Authenticated => self.add_authenticated(candidate, clause),
                Who::Unauthenticated => self.unauthenticated.push(candidate),
                Who::Everyone => self.everyone.push(candidate),
            }
        }
    }

    fn add_authenticated(&mut self, candidate: Candidate, clause: &Clause) {
        if let Some(ids) = &clause.ids {
            file(&mut self.by_id, ids, candidate);
        } else if let Some(accounts) = &clause.accounts {
            file(&mut self.by_path, &accounts.paths, candidate);
            file(&mut self.by_namespace, &accounts.whole, candidate);
        } else if let Some(Listed::These(namespaces)) = &clause.namespaces {
            file(&mut self.by_namespace, namespaces, candidate);
        } else if let Some(Listed::These(domains)) = &clause.domains {
            file(&mut self.by_domain, domains, candidate);
        } else {
            self.authenticated.push(candidate);
        }
    }

    fn candidates(&self, asked: &Asked<'_>, each: &mut impl FnMut(Candidate)) {
        let mut all = |found: &[Candidate]| found.iter().copied().for_each(&mut *each);
        all(&self.everyone);
        let Some(principal) = asked.principal else {
            return all(&self.unauthenticated);
        };
        all(&self.authenticated);
        all(filed(&self.by_id, principal.as_str()));
        all(filed(&self.by_domain, principal.trust_domain()));
        if let Some((namespace, _)) = asked.account {
            all(filed(&self.by_path, principal.path()));
            all(filed(&self.by_namespace, namespace));
        }
    }
}

fn file(keyed: &mut Keyed, keys: &HashSet<Box<str>>, candidate: Candidate) {
    for key in keys {
        keyed.entry(key.clone()).or_default().push(candidate);
    }
}

fn filed<'a>(keyed: &'a Keyed, key: &str) -> &'a [Candidate] {
    if keyed.is_empty() {
        return &[];
    }
    keyed.get(key).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
impl Index {
    /// Candidates that it holds: its size.
    pub(super) fn size(&self) -> usize {
        self.ports.values().chain([&self.any_port]).map(Bucket::size).sum()
    }
}

#[cfg(test)]
impl Bucket {
    fn size(&self) -> usize {
        let keyed = [&self.by_id, &self.by_path, &self.by_namespace, &self.by_domain];
        let listed = [&self.authenticated, &self.unauthenticated, &self.everyone];
        keyed.iter().flat_map(|keyed| keyed.values()).map(Vec::len).sum::<usize>()
            + listed.iter().map(|list| list.len()).sum::<usize>()
    }
}
