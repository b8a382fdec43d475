//! Our table as the kernel tells it, and how it differs from what it should be. Pure.
//!
//! Called by `check`. It must never call a table good that it could not read in full.

use std::fmt;

use super::batch::TABLE_NAME;
use super::expression::Expression;
use super::netlink::{Attributes, Message};
use super::ruleset::{Chain, Family, Rule, TABLE};

/// NFT_TABLE_F_DORMANT
const DORMANT: u32 = 1;

/// One way in which the rules in force are not the wanted ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The table is not there.
    NoTable(Family),
    /// The table is there but switched off.
    Dormant(Family),
    /// A chain is not there.
    NoChain(String),
    /// A chain is there that should not be.
    ForeignChain(String),
    /// A chain hangs elsewhere, or drops by default.
    Hook {
        /// Its name.
        chain: String,
        /// Type, hook, priority and policy wanted.
        wanted: String,
        /// Those in force.
        found: String,
    },
    /// A rule is missing, is another, or is one too many.
    Rule {
        /// In which chain.
        chain: String,
        /// Which, from 1.
        number: usize,
        /// As `nft` prints it; `None`: there should be none.
        wanted: Option<String>,
        /// What was found; `None`: there is none.
        found: Option<String>,
    },
}

/// Our table as it is in the kernel.
#[derive(Debug)]
pub(super) struct Found {
    family: Family,
    table: Option<u32>,
    chains: Vec<Chain>,
}

impl Found {
    /// Nothing yet.
    pub(super) fn new(family: Family) -> Self {
        Self { family, table: None, chains: Vec::new() }
    }

    /// Takes an answer to the first question.
    pub(super) fn add_table(&mut self, message: &Message<'_>) {
        if self.ours(message) {
            self.table = Some(message.attributes().number(2).unwrap_or(0)); // NFTA_TABLE_FLAGS
        }
    }

    /// Takes an answer to the second.
    pub(super) fn add_chain(&mut self, message: &Message<'_>) {
        if !self.ours(message) {
            return;
        }
        let attributes = message.attributes();
        let hook = attributes.nested(4); // NFTA_CHAIN_HOOK
        self.chains.push(Chain {
            name: attributes.text(3).unwrap_or("?").into(),
            kind: attributes.text(7).unwrap_or("none").into(),
            hook: hook.number(1).unwrap_or(u32::MAX),
            priority: hook.number(2).unwrap_or(0).cast_signed(),
            accepts: attributes.number(5) == Some(1),
            rules: Vec::new(),
        });
    }

    /// Takes an answer to the third; they come in order.
    pub(super) fn add_rule(&mut self, message: &Message<'_>) {
        if !self.ours(message) {
            return;
        }
        let attributes = message.attributes();
        let expressions = Expression::read_all(attributes.nested(4)); // NFTA_RULE_EXPRESSIONS
        let text = expressions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let parent = attributes.text(2).unwrap_or("?"); // NFTA_RULE_CHAIN
        if let Some(chain) = self.chains.iter_mut().find(|chain| chain.name == parent) {
            chain.rules.push(Rule { text, expressions });
        }
    }

    /// Every way in which it is not what is wanted; none = it is.
    pub(super) fn compare(&self, wanted: &[Chain]) -> Vec<Difference> {
        let Some(flags) = self.table else { return vec![Difference::NoTable(self.family)] };
        let mut differences = Vec::new();
        if flags & DORMANT != 0 {
            differences.push(Difference::Dormant(self.family));
        }
        for chain in wanted {
            match self.chains.iter().find(|found| found.name == chain.name) {
                Some(found) => compare_chain(chain, found, &mut differences),
                None => differences.push(Difference::NoChain(chain.name.clone())),
            }
        }
        let foreign = self.chains.iter().filter(|found| wanted.iter().all(|chain| chain.name != found.name));
        differences.extend(foreign.map(|found| Difference::ForeignChain(found.name.clone())));
        differences
    }

    /// The kernel lists what is there of every family and table.
    fn ours(&self, message: &Message<'_>) -> bool {
        message.family() == Some(self.family.number())
            && Attributes::text(message.attributes(), TABLE_NAME) == Some(TABLE)
    }
}

fn compare_chain(wanted: &Chain, found: &Chain, differences: &mut Vec<Difference>) {
    let hook = |chain: &Chain| {
        let policy = if chain.accepts { "accept" } else { "drop" };
        format!("type {} hook {} priority {} policy {policy}", chain.kind, chain.hook, chain.priority)
    };
    if hook(wanted) != hook(found) {
        differences.push(Difference::Hook { chain: wanted.name.clone(), wanted: hook(wanted), found: hook(found) });
    }
    for number in 0..wanted.rules.len().max(found.rules.len()) {
        let (wanted_rule, found_rule) = (wanted.rules.get(number), found.rules.get(number));
        if wanted_rule != found_rule {
            differences.push(Difference::Rule {
                chain: wanted.name.clone(),
                number: number + 1,
                wanted: wanted_rule.map(ToString::to_string),
                found: found_rule.map(ToString::to_string),
            });
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable(family) => write!(f, "table {} {TABLE} is not there", family.word()),
            Self::Dormant(family) => write!(f, "table {} {TABLE} is switched off (dormant)", family.word()),
            Self::NoChain(chain) => write!(f, "chain {chain} is not there"),
            Self::ForeignChain(chain) => write!(f, "chain {chain} is not ours"),
            Self::Hook { chain, wanted, found } => write!(f, "chain {chain}: wanted `{wanted}`, found `{found}`"),
            Self::Rule { chain, number, wanted, found } => {
                let word = |rule: &Option<String>| rule.as_ref().map_or("none".into(), |rule| format!("`{rule}`"));
                write!(f, "chain {chain}, rule {number}: wanted {}, found {}", word(wanted), word(found))
            }
        }
    }
}
