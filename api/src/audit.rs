//! The form of the CA's audit log, which the CA writes and `countersign ca audit verify` reads: words, bounds, and what a
//! checkpoint signs. Nothing here hashes, signs or judges.
//!
//! A line is one JSON object that begins with `v`, `chain`, `n`, `prev` and `time`. `prev` is the SHA-256, in hex, of the line
//! before without its newline; `n` counts from 0 and goes on over restarts and files of one chain.

/// The version of the form.
pub const VERSION: u32 = 2;
/// `prev` of a chain's first record.
pub const FIRST_PREV: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// No line is longer, its newline included.
pub const MAX_LINE: usize = 64 * 1024;
/// `event` of the record with which a process begins to write; the first of a chain is one.
pub const START: &str = "start";
/// `event` of a signed checkpoint.
pub const CHECKPOINT: &str = "checkpoint";
/// A running CA signs a checkpoint each so many seconds.
pub const CHECKPOINT_EVERY_S: u64 = 60;

/// What a checkpoint's signature is over (ECDSA P-256 with SHA-256, by the key of the CA's SVID of that time): its own place in
/// the chain, and by `prev` all before it.
pub fn signed_text(chain: &str, n: u64, prev: &str, time: &str) -> String {
    format!("countersign-audit-checkpoint/1\n{chain}\n{n}\n{prev}\n{time}\n")
}
