//! The audit log: one JSON line for each decision, on the disk before the decision takes effect. Called by `issue`, `own`
//! and `upkeep`; nothing is signed for anybody without the [`Recorded`] that only this module makes.
//!
//! Records form a chain (`chain`), which is signed each minute by the key of the CA's SVID; one thread writes them (`file`), as many at once
//! as are ready (`gather`), within bounds (`room`). `countersign ca audit verify` reads them (their form: `countersign_api::audit`). It must never write a token
//! or a key.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_credentials::{SharedClock, Watch};
use countersign_identity::Svid;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::clock::{millis, rfc3339};

mod chain;
mod file;
mod gather;
mod room;

use file::{Checkpoint, Log, Record, Told};
use gather::Gathered;
pub use room::{Bounds, Measure};

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
    /// A process began to write.
    Start,
    /// An older file of the log was removed, since there was no room.
    Removed,
    /// A step of a rotation of the root was taken.
    Rotation,
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
    queue: mpsc::Sender<Told>,
    gathered: Arc<Gathered>,
    shared: Arc<Shared>,
}

/// Where the log is, and how much it may take.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file.
    pub path: PathBuf,
    /// Its room.
    pub bounds: Bounds,
    /// Whether each record goes to standard output too, once it is on the disk.
    pub copy: bool,
}

/// How the log is.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The last write reached the disk.
    pub writable: bool,
    /// The copy to standard output works, or there is none.
    pub copied: bool,
    /// Its room.
    pub room: Measure,
    /// Checkpoints that this process has written.
    pub checkpoints: u64,
}

/// Batches and ticks on their way to the thread.
const QUEUE: usize = 1024;
/// Between two looks at the room.
const TICK: Duration = Duration::from_secs(1);

impl Audit {
    /// Opens (or makes, 0600) the log for appending, locks it, reserves its room, starts its thread, and records that it began. A
    /// line that a crash tore is cut off: nothing took effect for it.
    pub async fn start(settings: &Settings, now_ms: u64) -> Result<Self, AuditError> {
        let audit = Self::open(settings)?;
        let cut = audit.shared.cut;
        let _recorded = audit.record(&file::start_entry(cut), now_ms).await?;
        Ok(audit)
    }

    fn open(settings: &Settings) -> Result<Self, AuditError> {
        let path = &settings.path;
        let log = Log::open(path, settings.bounds, settings.copy)?;
        let shared = Arc::clone(&log.shared);
        let (queue, told) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || log.serve(told));
        thread.map_err(|source| AuditError::Open { path: path.clone(), source })?;
        Ok(Self::of(queue, shared))
    }

    fn of(queue: mpsc::Sender<Told>, shared: Arc<Shared>) -> Self {
        Self { gathered: Gathered::new(queue.clone()), queue, shared }
    }

    /// Writes one record. When this returns `Ok`, it is on the disk.
    pub async fn record(&self, entry: &Entry<'_>, now_ms: u64) -> Result<Recorded, AuditError> {
        let content = serde_json::to_vec(entry).map_err(|error| AuditError::Write(error.to_string()))?;
        self.gathered.write(Record { time: rfc3339(now_ms), content }).await?;
        Ok(Recorded(()))
    }

    /// Signs what is written so far, by the key of this SVID.
    pub async fn checkpoint(&self, signer: &Arc<Svid>, now_ms: u64) -> Result<(), AuditError> {
        self.tick(signer, now_ms, true).await
    }

    async fn tick(&self, signer: &Arc<Svid>, now_ms: u64, now: bool) -> Result<(), AuditError> {
        let (done, written) = oneshot::channel();
        let checkpoint = Checkpoint { time: rfc3339(now_ms), signer: Arc::clone(signer), now, done };
        self.queue.send(Told::Tick(checkpoint)).await.map_err(|_| AuditError::Closed)?;
        written.await.map_err(|_| AuditError::Closed)?
    }

    /// Keeps the reserve whole, the alarm true, and the checkpoints coming; and finds out when a log that could not be written
    /// can be again. Run by `run` as one task; ends with the log.
    pub async fn keep(self, own: Watch, clock: SharedClock) {
        loop {
            tokio::time::sleep(TICK).await;
            let signer = own.borrow().as_ref().map(|credentials| Arc::clone(credentials.svid()));
            let Some(signer) = signer else { continue };
            // The thread has told of any failure that is news.
            if let Err(AuditError::Closed) = self.tick(&signer, millis(&*clock), false).await {
                return;
            }
        }
    }

    /// How it is now.
    pub fn facts(&self) -> Facts {
        Facts {
            writable: self.shared.writable(),
            copied: self.shared.is_copied(),
            room: *self.shared.room(),
            checkpoints: self.shared.checkpoints.load(Ordering::Relaxed),
        }
    }
}

/// What the thread tells everybody.
struct Shared {
    /// Bytes of a torn record that were cut off at the start.
    cut: u64,
    writable: AtomicBool,
    copied: AtomicBool,
    checkpoints: AtomicU64,
    room: Mutex<Measure>,
}

impl Shared {
    fn new(cut: u64) -> Self {
        Self {
            cut,
            writable: AtomicBool::new(true),
            copied: AtomicBool::new(true),
            checkpoints: AtomicU64::new(0),
            room: Mutex::default(),
        }
    }

    fn writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// Gives what it was before.
    fn set_writable(&self, is: bool) -> bool {
        self.writable.swap(is, Ordering::Relaxed)
    }

    /// False if it has just ceased to work.
    fn set_copied(&self, is: bool) -> bool {
        let was = self.copied.swap(is, Ordering::Relaxed);
        is || !was
    }

    fn is_copied(&self) -> bool {
        self.copied.load(Ordering::Relaxed)
    }

    fn checkpointed(&self) {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
    }

    fn room(&self) -> std::sync::MutexGuard<'_, Measure> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the alarm begins or ends with this.
    fn measured(&self, found: Measure) -> Option<bool> {
        let was = std::mem::replace(&mut *self.room(), found).alarm;
        (was != found.alarm).then_some(found.alarm)
    }
}

#[cfg(test)]
impl Audit {
    /// A log at a path, with no reserve and no bound.
    pub(crate) fn at(path: &std::path::Path) -> Result<Self, AuditError> {
        let bounds = Bounds { reserve: 0, max: None, remove_oldest: false };
        Self::open(&Settings { path: path.to_owned(), bounds, copy: false })
    }

    /// A log on an open file.
    pub(crate) fn on(file: std::fs::File) -> Self {
        let (queue, told) = mpsc::channel(QUEUE);
        let log = Log::on(file);
        let shared = Arc::clone(&log.shared);
        std::thread::spawn(move || log.serve(told));
        Self::of(queue, shared)
    }

    /// A log whose disk never answers, and what waits for it.
    pub(crate) fn stuck() -> (Self, impl Sized) {
        let (queue, told) = mpsc::channel(QUEUE);
        (Self::of(queue, Arc::new(Shared::new(0))), told)
    }
}

#[cfg(test)]
mod tests;
