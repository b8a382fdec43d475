//! Finds the clauses that can concern an attempt without looking at the others: first by port, then by the narrowest
//! thing the clause asks of the source. It only narrows: whether a clause matches is the clause's own answer.
//! Must never leave out a clause that matches (held against a naive reference by a property).

use std::collections::{HashMap, HashSet};

use super::clause::{Clause, Listed, Who};
use super::{Asked, CompiledRule};
use crate::model::{Action, Mode};

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
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
    opens_unauthenticated: bool,
}

type Keyed = HashMap<Box<str>, Vec<Candidate>>;

impl Index {
    pub(super) fn add(&mut self, at: usize, rule: &CompiledRule, clauses: &[Clause]) {
        let Some(ports) = &rule.ports else {
            self.speaks_of_all = true;
            self.any_port.add(at, rule, clauses);
            return;
        };
        for port in ports {
            self.ports.entry(*port).or_default().add(at, rule, clauses);
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

impl Bucket {
    fn add(&mut self, at: usize, rule: &CompiledRule, clauses: &[Clause]) {
        for (entry, clause) in clauses.iter().enumerate() {
            let candidate = Candidate { rule: at, entry };
            match clause.who {
                Who::Authenticated => self.add_authenticated(candidate, clause),
                Who::Unauthenticated => {
                    self.unauthenticated.push(candidate);
                    self.opens_unauthenticated |= rule.action == Action::Allow && rule.mode == Mode::Enforce;
                }
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
