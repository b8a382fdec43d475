//! The hash chain: every record follows the one before. Called by `audit` with each line, in order.

use aws_lc_rs::digest::{SHA256, digest};
use countersign_api::audit::{CHECKPOINT, CHECKPOINT_EVERY_S, FIRST_PREV, MAX_LINE, START, VERSION};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::signed::{Roots, SignatureError, Signers};
use crate::identity::show::hex;

/// Longest time without a checkpoint while a CA runs, seconds.
const UNSIGNED_AT_MOST: i64 = 2 * CHECKPOINT_EVERY_S as i64;

/// A CA that ends before its first checkpoint may do so this often in a row.
const STARTS: u32 = 3;

/// Why a line is not the next of the chain.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("it is no record of an audit log (form v{VERSION})")]
    NoRecord,
    #[error("a new chain begins here: the one before does not go on")]
    OtherChain,
    #[error("record {found} follows record {before}: records between them are missing, or out of order")]
    Number { before: u64, found: u64 },
    #[error("it is record 0 and does not begin the chain")]
    NoBeginning,
    #[error("it does not hold the hash of the line before: the line before was changed, or this one was")]
    Hash,
    #[error("checkpoint: {0}")]
    Signature(#[from] SignatureError),
}

/// The last checkpoint.
pub struct LastCheckpoint {
    pub n: u64,
    pub time: String,
}

/// The chain as far as it was followed.
pub struct Chain {
    pub id: Option<String>,
    pub records: u64,
    pub first: Option<Value>,
    pub last: Option<Value>,
    pub checkpoints: u64,
    pub last_checkpoint: Option<LastCheckpoint>,
    /// Records after the last checkpoint.
    pub unsigned: u64,
    /// The first records that no checkpoint was signed over in time: from when to when.
    pub unsigned_too_long: Option<(String, String)>,
    /// The first record after the last checkpoint or start.
    unsigned_from: Option<(OffsetDateTime, String)>,
    /// Starts since the last checkpoint.
    starts: u32,
    before: Option<(u64, String)>,
    signers: Signers,
}

impl Chain {
    /// Nothing was read yet. Without `roots`, a checkpoint's certificates are taken as they are.
    pub fn new(roots: Option<Roots>) -> Self {
        Self {
            id: None,
            records: 0,
            first: None,
            last: None,
            checkpoints: 0,
            last_checkpoint: None,
            unsigned: 0,
            unsigned_too_long: None,
            unsigned_from: None,
            starts: 0,
            before: None,
            signers: Signers::new(roots),
        }
    }

    /// The next line, without its newline.
    pub fn take(&mut self, line: &[u8]) -> Result<(), Problem> {
        if line.len() + 1 > MAX_LINE {
            return Err(Problem::TooLong);
        }
        let record: Value = serde_json::from_slice(line).map_err(|_| Problem::NoRecord)?;
        let text = |name: &str| record[name].as_str().ok_or(Problem::NoRecord);
        let (chain, prev, time, event) = (text("chain")?, text("prev")?, text("time")?, text("event")?);
        let n = record["n"].as_u64().filter(|_| record["v"] == VERSION).ok_or(Problem::NoRecord)?;
        if self.id.as_deref().is_some_and(|id| id != chain) {
            return Err(Problem::OtherChain);
        }
        match &self.before {
            Some((before, _)) if n != before + 1 => return Err(Problem::Number { before: *before, found: n }),
            Some((_, hash)) if hash != prev => return Err(Problem::Hash),
            None if n == 0 && (prev != FIRST_PREV || event != START) => return Err(Problem::NoBeginning),
            _ => {}
        }
        let at = OffsetDateTime::parse(time, &Rfc3339).map_err(|_| Problem::NoRecord)?;
        self.watch(event, at, time);
        if event == CHECKPOINT {
            self.signers.check(&record, chain, n, prev, time)?;
            self.checkpoints += 1;
            self.last_checkpoint = Some(LastCheckpoint { n, time: time.to_owned() });
            self.unsigned = 0;
        } else {
            self.unsigned += 1;
        }
        let place = json!({ "n": n, "time": time });
        self.id.get_or_insert_with(|| chain.to_owned());
        self.first.get_or_insert_with(|| place.clone());
        self.last = Some(place);
        self.records += 1;
        self.before = Some((n, hex(digest(&SHA256, line).as_ref())));
        Ok(())
    }

    /// A CA that runs signs a checkpoint each minute: whoever takes checkpoints out, and links the rest anew, leaves a longer time without.
    fn watch(&mut self, event: &str, at: OffsetDateTime, time: &str) {
        // It signs one as it starts, too; somebody's own `start` records are not to hide that none is there.
        let begins = event == START && self.starts < STARTS;
        if let Some((from, since)) = self.unsigned_from.as_ref().filter(|_| !begins)
            && (at - *from).whole_seconds() > UNSIGNED_AT_MOST
        {
            self.unsigned_too_long.get_or_insert_with(|| (since.clone(), time.to_owned()));
        }
        if event == CHECKPOINT {
            (self.unsigned_from, self.starts) = (None, 0);
        } else if begins || self.unsigned_from.is_none() {
            self.unsigned_from = Some((at, time.to_owned()));
            self.starts += u32::from(begins);
        }
    }
}
