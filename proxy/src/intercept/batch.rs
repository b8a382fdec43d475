//! The changes as one netlink batch: the kernel takes all of it or none, and no packet sees a half. Pure.
//!
//! Called by `socket`'s users in `mod`. It must never touch a table that is not ours.

use super::expression::Expression;
use super::netlink::{ACK, APPEND, CREATE, DUMP, REQUEST, Writer};
use super::ruleset::{Chain, Family, Rule, TABLE};

/// NFNL_SUBSYS_NFTABLES
const NF_TABLES: u16 = 10;

/// NFNL_MSG_BATCH_BEGIN, _END
const BEGIN: u16 = 16;
const END: u16 = 17;

/// NFT_MSG_*, with the subsystem.
const NEW_TABLE: u16 = NF_TABLES << 8;
const GET_TABLE: u16 = NF_TABLES << 8 | 1;
const DELETE_TABLE: u16 = NF_TABLES << 8 | 2;
const NEW_CHAIN: u16 = NF_TABLES << 8 | 3;
const GET_CHAIN: u16 = NF_TABLES << 8 | 4;
const NEW_RULE: u16 = NF_TABLES << 8 | 6;
const GET_RULE: u16 = NF_TABLES << 8 | 7;

/// NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE
pub(super) const TABLE_NAME: u16 = 1;

/// A batch, and what each of its messages was meant to do, by sequence number: errors name it.
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) steps: Vec<Step>,
}

/// What one message does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Begins or ends the batch, or concerns the table.
    Table,
    /// Adds a chain; `nat` or `filter`.
    Chain(String),
    /// Adds a rule.
    Rule(Rule),
}

/// Replaces whatever table of ours there is.
pub(super) fn install(family: Family, chains: &[Chain]) -> Batch {
    let mut steps =
        vec![(NEW_TABLE, CREATE, Step::Table), (DELETE_TABLE, 0, Step::Table), (NEW_TABLE, CREATE, Step::Table)];
    steps.extend(chains.iter().map(|chain| (NEW_CHAIN, CREATE, Step::Chain(chain.name.clone()))));
    let rules = chains.iter().flat_map(|chain| &chain.rules);
    steps.extend(rules.map(|rule| (NEW_RULE, CREATE | APPEND, Step::Rule(rule.clone()))));
    let mut parents = chains.iter().flat_map(|chain| chain.rules.iter().map(|_| chain.name.as_str()));
    let mut bodies = chains.iter();
    batch(family, steps, |writer, step| match step {
        Step::Table => writer.text(TABLE_NAME, TABLE),
        Step::Chain(_) => bodies.next().into_iter().for_each(|chain| write_chain(writer, chain)),
        Step::Rule(rule) => parents.next().into_iter().for_each(|chain| write_rule(writer, chain, rule)),
    })
}

/// Removes our table; no error where there is none.
pub(super) fn remove(family: Family) -> Batch {
    let steps = vec![(NEW_TABLE, CREATE, Step::Table), (DELETE_TABLE, 0, Step::Table)];
    batch(family, steps, |writer, _| writer.text(TABLE_NAME, TABLE))
}

/// Message N has sequence number N; only the last asks for an answer: errors come without asking, and hundreds of answers
/// would not fit in the socket's buffer.
fn batch(family: Family, messages: Vec<(u16, u16, Step)>, mut body: impl FnMut(&mut Writer, &Step)) -> Batch {
    let mut writer = Writer::default();
    writer.message(BEGIN, REQUEST, 0, (0, NF_TABLES), |_| {});
    let last = messages.len();
    for ((kind, flags, step), number) in messages.iter().zip(1_u32..) {
        let ack = if number as usize == last { ACK } else { 0 };
        writer.message(*kind, REQUEST | flags | ack, number, (family.number(), 0), |writer| body(writer, step));
    }
    writer.message(END, REQUEST, u32::try_from(last + 1).unwrap_or(u32::MAX), (0, NF_TABLES), |_| {});
    let mut steps = vec![Step::Table];
    steps.extend(messages.into_iter().map(|(_, _, step)| step));
    Batch { bytes: writer.finish(), steps }
}

fn write_chain(w: &mut Writer, chain: &Chain) {
    w.text(1, TABLE); // NFTA_CHAIN_TABLE
    w.text(3, &chain.name); // NFTA_CHAIN_NAME
    // NFTA_CHAIN_HOOK: NFTA_HOOK_HOOKNUM, _PRIORITY
    w.nested(4, |w| {
        w.number(1, chain.hook);
        w.number(2, chain.priority.cast_unsigned());
    });
    w.number(5, u32::from(chain.accepts)); // NFTA_CHAIN_POLICY: NF_ACCEPT = 1, NF_DROP = 0
    w.text(7, &chain.kind); // NFTA_CHAIN_TYPE
}

fn write_rule(w: &mut Writer, chain: &str, rule: &Rule) {
    w.text(1, TABLE); // NFTA_RULE_TABLE
    w.text(2, chain); // NFTA_RULE_CHAIN
    // NFTA_RULE_EXPRESSIONS
    w.nested(4, |w| rule.expressions.iter().for_each(|expression: &Expression| expression.write(w)));
}

/// The three questions that together read our table back: tables, chains, rules.
pub(super) fn questions(family: Family) -> [Vec<u8>; 3] {
    [GET_TABLE, GET_CHAIN, GET_RULE].map(|kind| {
        let mut writer = Writer::default();
        writer.message(kind, REQUEST | DUMP, 1, (family.number(), 0), |writer| {
            if kind == GET_RULE {
                writer.text(TABLE_NAME, TABLE);
            }
        });
        writer.finish()
    })
}
