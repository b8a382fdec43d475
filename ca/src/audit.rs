//! The audit log: one JSON line for each decision, on the disk before the decision takes effect. Called by `issue`, `own`
//! and `upkeep`; nothing is signed for anybody without the [`Recorded`] that only this module makes.
//!
//! One thread writes. It takes all records that wait, writes them at once, and calls `fdatasync` once for them, so the cost
//! of the disk is shared under load. A record that did not reach the disk whole is cut off again: a torn line never stays.
//! It must never write a token or a key.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::clock::rfc3339;

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened.
    #[error("audit log {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process writes it.
    #[error("audit log {0} is in use by another countersign-ca")]
    InUse(PathBuf),
    /// The record is not on the disk.
    #[error("the audit record could not be written: {0}")]
    Write(String),
    /// The writing thread is gone.
    #[error("the audit log is closed")]
    Closed,
}

impl AuditError {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        "audit_unavailable"
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A root was made.
    Root,
    /// An issuer was made.
    Issuer,
    /// A leaf was asked for.
    Leaf,
    /// The CA's own leaf was made.
    OwnLeaf,
}

/// One record. Absent fields are left out of the line.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// What happened.
    pub event: Event,
    /// `granted`, or why not: the bounded word of the refusing stage.
    pub outcome: &'static str,
    /// The refusal in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Address of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Who asked, once that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Who<'a>>,
    /// The identity granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<&'a str>,
    /// Serial number, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<&'a str>,
    /// SHA-256 of the certified key (SPKI), hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_sha256: Option<String>,
    /// Begin of the certificate's life, seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// End of the certificate's life, seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
    /// The caller's clock minus ours, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skew_ms: Option<i64>,
    /// Generation of the bundle that the caller holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle_generation: Option<u64>,
}

/// The attested caller, as records name it.
#[derive(Debug, Serialize)]
pub struct Who<'a> {
    /// Namespace of the account.
    pub namespace: &'a str,
    /// Name of the account.
    pub service_account: &'a str,
    /// Name of the pod.
    pub pod: &'a str,
    /// UID of the pod.
    pub pod_uid: &'a str,
    /// The token's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<&'a str>,
}

impl Entry<'_> {
    /// An entry that says nothing yet but what happened and how it ended.
    pub fn new(event: Event, outcome: &'static str) -> Self {
        Self {
            event,
            outcome,
            detail: None,
            source: None,
            caller: None,
            spiffe_id: None,
            serial: None,
            key_sha256: None,
            not_before: None,
            not_after: None,
            skew_ms: None,
            bundle_generation: None,
        }
    }
}

/// Outcome of what was granted.
pub const GRANTED: &str = "granted";
/// Outcome of a root or issuer that was recorded and never used: another replica's was stored first.
pub const SUPERSEDED: &str = "superseded";

/// Proof that the record is on the disk.
#[derive(Debug)]
#[must_use]
pub struct Recorded(());

/// The log. Clones share it; it closes when the last is dropped, after what waits was written.
#[derive(Clone)]
pub struct Audit {
    queue: mpsc::Sender<Waiting>,
}

struct Waiting {
    line: Vec<u8>,
    done: oneshot::Sender<Result<(), AuditError>>,
}

/// Records that wait for the disk; who comes when it is full waits too, within its own deadline.
const QUEUE: usize = 1024;

/// So long is waited for the lock.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The version of the record's form.
const FORM: u32 = 1;

#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    time: String,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

impl Audit {
    /// Opens (or makes, 0600) the log for appending, locks it, and starts its thread. A line that a crash tore is cut off:
    /// nothing took effect for it.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let open = |source| AuditError::Open { path: path.to_owned(), source };
        let log = Log::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => AuditError::InUse(path.to_owned()),
            _ => open(error),
        })?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || log.serve(waiting)).map_err(open)?;
        Ok(Self { queue })
    }

    /// Writes one record. When this returns `Ok`, it is on the disk.
    pub async fn record(&self, entry: &Entry<'_>, now_ms: u64) -> Result<Recorded, AuditError> {
        let line = Line { v: FORM, time: rfc3339(now_ms), entry };
        let mut line = serde_json::to_vec(&line).map_err(|error| AuditError::Write(error.to_string()))?;
        line.push(b'\n');
        let (done, written) = oneshot::channel();
        self.queue.send(Waiting { line, done }).await.map_err(|_| AuditError::Closed)?;
        written.await.map_err(|_| AuditError::Closed)??;
        Ok(Recorded(()))
    }
}

#[cfg(test)]
impl Audit {
    /// A log on an open file.
    pub(crate) fn on(file: File) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        std::thread::spawn(move || Log { file, good: 0, torn: false }.serve(waiting));
        Self { queue }
    }

    /// A log whose disk never answers, and what waits for it.
    pub(crate) fn stuck() -> (Self, impl Sized) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Self { queue }, waiting)
    }
}

struct Log {
    file: File,
    /// Everything before is whole records that were acknowledged.
    good: u64,
    /// Bytes after `good` may be there and could not be cut off.
    torn: bool,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
        lock(&file)?;
        let end = file.seek(SeekFrom::End(0))?;
        let good = whole(&mut file, end)?;
        if good < end {
            tracing::warn!(path = %path.display(), bytes = end - good, "a torn audit record was cut off");
            file.set_len(good)?;
        }
        file.sync_all()?;
        Ok(Self { file, good, torn: false })
    }

    fn serve(mut self, mut waiting: mpsc::Receiver<Waiting>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut batch = vec![first];
            while let Ok(next) = waiting.try_recv() {
                batch.push(next);
            }
            let bytes: Vec<u8> = batch.iter().flat_map(|one| one.line.iter().copied()).collect();
            let written = self.append(&bytes);
            if let Err(error) = &written {
                tracing::error!(%error, "audit records could not be written: nothing is signed");
            }
            for one in batch {
                let result = written.as_ref().map(drop).map_err(|error| AuditError::Write(error.to_string()));
                let _ = one.done.send(result);
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.good)?;
            self.torn = false;
        }
        // Asked, not remembered: whoever makes room by cutting the log must not get it back padded with zeros.
        self.good = self.file.metadata()?.len();
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.good += bytes.len() as u64,
            Err(_) => self.torn = self.file.set_len(self.good).is_err(),
        }
        written
    }
}

/// Only one process may write, since each cuts off what it did not write whole: it would cut off the other's records. The
/// thread of one that has just ended may hold the lock for a moment.
fn lock(file: &File) -> io::Result<()> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
            locked => return locked.map_err(io::Error::from),
        }
    }
}

/// Length of the whole lines in a file of `end` bytes.
fn whole(file: &mut File, end: u64) -> io::Result<u64> {
    const STEP: u64 = 4096;
    let mut upto = end;
    while upto > 0 {
        let from = upto.saturating_sub(STEP);
        let mut part = vec![0; usize::try_from(upto - from).unwrap_or_default()];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut part)?;
        if let Some(newline) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(from + newline as u64 + 1);
        }
        upto = from;
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
