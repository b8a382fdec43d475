//! The chain that records form: each holds its number and the hash of the line before. Called by `file` alone; it knows no
//! file, so that a batch that did not reach the disk leaves no trace in it: the caller keeps the value from before.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::audit::{CHECKPOINT, FIRST_PREV, MAX_LINE, VERSION, signed_text};
use countersign_identity::Svid;
use serde::{Deserialize, Serialize};

use super::AuditError;
use crate::own::signature;
use crate::state::{hex, random_name, sha256};

/// Where the next record goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    id: String,
    next: u64,
    prev: String,
}

/// What is read of a line to go on after it.
#[derive(Deserialize)]
struct Link {
    v: u32,
    chain: String,
    n: u64,
}

#[derive(Serialize)]
struct Checkpoint<'a> {
    event: &'static str,
    outcome: &'static str,
    signer: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    certificates: Vec<String>,
    signature: &'a str,
}

impl Chain {
    /// A new chain under a random name.
    pub fn new() -> Result<Self, AuditError> {
        let id = random_name::<16>().map_err(|reason| AuditError::Write(reason.to_owned()))?;
        Ok(Self { id, next: 0, prev: FIRST_PREV.to_owned() })
    }

    /// The chain that goes on after this line (without its newline); none if it is no record of ours.
    pub fn after(line: &[u8]) -> Option<Self> {
        let link: Link = serde_json::from_slice(line).ok()?;
        let ours = link.v == VERSION && link.chain.len() == 32 && link.chain.bytes().all(|c| c.is_ascii_hexdigit());
        ours.then(|| Self { id: link.chain, next: link.n.saturating_add(1), prev: hex(&sha256(line)) })
    }

    /// Number of the next record.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Appends the record with this content to `out`. `content`: a JSON object.
    pub fn append(&mut self, time: &str, content: &[u8], out: &mut Vec<u8>) -> Result<(), AuditError> {
        let inner =
            content.strip_prefix(b"{").ok_or_else(|| AuditError::Write("the record is no object".to_owned()))?;
        let time = serde_json::to_string(time).map_err(|error| AuditError::Write(error.to_string()))?;
        let begin = out.len();
        let head =
            format!(r#"{{"v":{VERSION},"chain":"{}","n":{},"prev":"{}","time":{time},"#, self.id, self.next, self.prev);
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(inner);
        let line = &out[begin..];
        if line.len() >= MAX_LINE || line.contains(&b'\n') {
            out.truncate(begin);
            return Err(AuditError::Write("the record is too long, or no line".to_owned()));
        }
        self.prev = hex(&sha256(line));
        self.next += 1;
        out.push(b'\n');
        Ok(())
    }

    /// Appends a checkpoint. `with_chain`: the signer's certificates too, which later checkpoints only name.
    pub fn checkpoint(
        &mut self,
        time: &str,
        signer: &Svid,
        with_chain: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), AuditError> {
        let signature = signature(signer, &signed_text(&self.id, self.next, &self.prev, time))
            .map_err(|why| AuditError::Write(why.to_owned()))?;
        let certificates = match with_chain {
            true => signer.chain().iter().map(|certificate| STANDARD.encode(certificate)).collect(),
            false => Vec::new(),
        };
        let checkpoint = Checkpoint {
            event: CHECKPOINT,
            outcome: "signed",
            signer: hex(&signer.spki_sha256()),
            certificates,
            signature: &signature,
        };
        let content = serde_json::to_vec(&checkpoint).map_err(|error| AuditError::Write(error.to_string()))?;
        self.append(time, &content, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_holds_the_hash_of_the_line_before_and_a_new_process_goes_on() {
        let mut chain = Chain::new().unwrap();
        let mut out = Vec::new();
        for _ in 0..3 {
            chain.append("t", b"{\"event\":\"leaf\"}", &mut out).unwrap();
        }
        let lines: Vec<&[u8]> = out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let first: serde_json::Value = serde_json::from_slice(lines[0]).unwrap();
        let second: serde_json::Value = serde_json::from_slice(lines[1]).unwrap();
        assert_eq!((&first["n"], &first["prev"]), (&0.into(), &FIRST_PREV.into()));
        assert_eq!((&second["n"], &second["prev"]), (&1.into(), &hex(&sha256(lines[0])).into()));
        assert_eq!(Chain::after(lines[2]).unwrap(), chain);
    }

    #[test]
    fn what_is_no_record_is_not_gone_on_from() {
        for line in
            [&b""[..], b"{}", b"{\"v\":1,\"chain\":\"x\",\"n\":1}", b"\0\0\0", b"{\"v\":2,\"chain\":\"\",\"n\":1}"]
        {
            assert!(Chain::after(line).is_none());
        }
    }

    #[test]
    fn a_record_that_is_no_single_line_is_refused_and_changes_nothing() {
        let mut chain = Chain::new().unwrap();
        let before = chain.clone();
        let mut out = Vec::new();
        let long = format!("{{\"event\":\"{}\"}}", "x".repeat(MAX_LINE));
        for bad in [long.as_bytes(), b"{\n}", b"[]"] {
            assert!(chain.append("t", bad, &mut out).is_err());
        }
        assert_eq!((chain, out.len()), (before, 0));
    }
}
