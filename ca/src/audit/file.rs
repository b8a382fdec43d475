//! The file, and the one thread that writes it. Started by `Audit`; nobody else touches the file.
//!
//! All records that wait are written at once, and `fdatasync` is called once for them, so the cost of the disk is shared under
//! load. A record that did not reach the disk whole is cut off again: a torn line never stays.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_api::audit::{CHECKPOINT_EVERY_S, MAX_LINE};
use countersign_identity::Svid;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use super::chain::Chain;
use super::room::{Bounds, Room, older_name};
use super::{AuditError, Entry, Event, Shared};

/// What the thread is told.
pub enum Told {
    /// Write these.
    Records(Batch),
    /// A second or so has passed: measure the room, and write a checkpoint if one is due or the log did not work.
    Tick(Checkpoint),
}

/// A record that is not yet in the chain.
pub struct Record {
    pub time: String,
    /// A JSON object.
    pub content: Vec<u8>,
}

/// Records that came together, and who waits for what became of each.
pub struct Batch {
    pub records: Vec<Record>,
    pub done: oneshot::Sender<Vec<Result<(), AuditError>>>,
}

/// What a checkpoint needs.
pub struct Checkpoint {
    pub time: String,
    pub signer: Arc<Svid>,
    /// Not only when it is due.
    pub now: bool,
    pub done: oneshot::Sender<Result<(), AuditError>>,
}

/// So long is waited for the lock.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
const CHECKPOINT_EVERY: Duration = Duration::from_secs(CHECKPOINT_EVERY_S);
/// No further batch is taken once so many records are to be written at once.
const AT_ONCE: usize = 1024;
/// What the chain puts before a record's content is shorter.
const HEAD: usize = 256;
/// A checkpoint with its certificates is shorter.
const MAX_CHECKPOINT: u64 = 8 * 1024;

/// The log, as its thread has it.
pub struct Log {
    /// Where it is; none for a file that a test gave.
    pub path: Option<PathBuf>,
    pub file: File,
    /// Everything before is whole records that were acknowledged.
    pub good: u64,
    /// Bytes after `good` may be there and could not be cut off.
    pub torn: bool,
    pub chain: Chain,
    /// Number of the file's first record.
    pub first: u64,
    pub room: Room,
    /// Records go here too, once they are on the disk.
    pub copy: bool,
    pub shared: Arc<Shared>,
    /// Signers whose certificates this file has.
    pub known: HashSet<[u8; 32]>,
    pub checkpoint: Option<Instant>,
}

impl Log {
    pub fn open(path: &Path, bounds: Bounds, copy: bool) -> Result<Self, AuditError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock => AuditError::InUse(path.to_owned()),
            _ => AuditError::Open { path: path.to_owned(), source },
        };
        let mut file = appending(path).map_err(failed)?;
        lock(&file).map_err(failed)?;
        let mut room = Room::new(bounds);
        room.look(path);
        let (good, cut, last) = repair(&mut file, path).map_err(failed)?;
        let last = match (&last, room.newest()) {
            // A crash came between the old file's new name and the first record of the new one.
            (None, Some(older)) => last_of(older).map_err(failed)?,
            _ => last,
        };
        let chain = match last.as_deref().map(Chain::after) {
            None => Chain::new()?,
            Some(Some(chain)) => chain,
            Some(None) => {
                tracing::warn!(path = %path.display(), "the audit log does not end with a record of ours; a new chain begins");
                Chain::new()?
            }
        };
        let first = first_number(&mut file).map_err(failed)?.unwrap_or_else(|| chain.next());
        let shared = Arc::new(Shared::new(cut));
        let known = HashSet::new();
        let path = Some(path.to_owned());
        let mut log = Self { path, file, good, torn: false, chain, first, room, copy, shared, known, checkpoint: None };
        log.measure();
        Ok(log)
    }

    #[cfg(test)]
    pub fn on(file: File) -> Self {
        let bounds = Bounds { reserve: 0, max: None, remove_oldest: false };
        let shared = Arc::new(Shared::new(0));
        let chain = Chain::new().unwrap();
        let room = Room::new(bounds);
        let known = HashSet::new();
        Self {
            path: None,
            file,
            good: 0,
            torn: false,
            chain,
            first: 0,
            room,
            copy: false,
            shared,
            known,
            checkpoint: None,
        }
    }

    pub fn serve(mut self, mut told: mpsc::Receiver<Told>) {
        while let Some(first) = told.blocking_recv() {
            let (mut batches, mut records) = (Vec::new(), 0);
            let mut tick = None;
            let mut next = Some(first);
            while let Some(one) = next.take() {
                match one {
                    Told::Records(batch) => {
                        records += batch.records.len();
                        batches.push(batch);
                    }
                    Told::Tick(one) => tick = Some(one),
                }
                if records < AT_ONCE && tick.is_none() {
                    next = told.try_recv().ok();
                }
            }
            if !batches.is_empty() {
                self.records(batches);
            }
            if let Some(tick) = tick {
                self.tick(tick);
            }
        }
    }

    fn records(&mut self, batches: Vec<Batch>) {
        let records = || batches.iter().flat_map(|batch| &batch.records);
        let more: usize = records().map(|one| one.content.len() + HEAD).sum();
        let time = records().next().map_or_else(String::new, |one| one.time.clone());
        let (mut chain, mut bytes) = match self.prepare(more as u64, &time) {
            Ok(begun) => begun,
            Err(error) => {
                for Batch { records, done } in batches {
                    let _ = done.send(records.iter().map(|_| Err(self.failed(&error))).collect());
                }
                return;
            }
        };
        let mut chained = Vec::with_capacity(batches.len());
        for Batch { records, done } in batches {
            let outcomes: Vec<_> =
                records.iter().map(|one| chain.append(&one.time, &one.content, &mut bytes)).collect();
            chained.push((outcomes, done));
        }
        let written = self.commit(&bytes, chain);
        for (outcomes, done) in chained {
            let on_disk = || written.as_ref().map(drop).map_err(|error| AuditError::Write(error.to_string()));
            let _ = done.send(outcomes.into_iter().map(|outcome| outcome.and_then(|()| on_disk())).collect());
        }
    }

    fn tick(&mut self, tick: Checkpoint) {
        let due = self.checkpoint.is_none_or(|last| last.elapsed() >= CHECKPOINT_EVERY);
        let result = match due || tick.now || !self.shared.writable() {
            true => self.write_checkpoint(&tick),
            false => Ok(()),
        };
        self.measure();
        let _ = tick.done.send(result);
    }

    fn write_checkpoint(&mut self, tick: &Checkpoint) -> Result<(), AuditError> {
        let key = tick.signer.spki_sha256();
        let begun = self.prepare(MAX_CHECKPOINT, &tick.time);
        let (mut chain, mut bytes) = begun.map_err(|error| self.failed(&error))?;
        chain.checkpoint(&tick.time, &tick.signer, !self.known.contains(&key), &mut bytes)?;
        self.commit(&bytes, chain).map_err(|error| AuditError::Write(error.to_string()))?;
        self.known.insert(key);
        self.checkpoint = Some(Instant::now());
        self.shared.checkpointed();
        Ok(())
    }

    /// The file that the next `more` bytes go to, with room for them; and what is written before them: which older files had to
    /// go for it.
    pub fn prepare(&mut self, more: u64, time: &str) -> io::Result<(Chain, Vec<u8>)> {
        if self.torn {
            self.file.set_len(self.good)?;
            self.torn = false;
        }
        self.follow()?;
        let (mut chain, mut bytes) = (self.chain.clone(), Vec::new());
        let Some(path) = self.path.clone() else { return Ok((chain, bytes)) };
        if self.room.is_long(self.good) {
            self.continue_in_new_file(&path)?;
        }
        let removed = self.room.take(&path, self.good, more, self.shared.is_copied())?;
        for file in removed {
            let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            tracing::warn!(file, "the oldest file of the audit log was removed to make room");
            let entry = Entry { detail: Some(file), ..Entry::new(Event::Removed, "no_room") };
            let content = serde_json::to_vec(&entry).map_err(io::Error::other)?;
            chain.append(time, &content, &mut bytes).map_err(io::Error::other)?;
        }
        Ok((chain, bytes))
    }

    /// Bytes on the disk, and only then the chain's new end.
    fn commit(&mut self, bytes: &[u8], chain: Chain) -> io::Result<()> {
        let written = self.append(bytes);
        match &written {
            Ok(()) => {
                self.chain = chain;
                if !self.shared.set_writable(true) {
                    tracing::warn!("the audit log is written again: signing goes on");
                }
                if !self.shared.set_copied(!self.copy || copy(bytes)) {
                    tracing::error!("the audit log's copy cannot be written to standard output");
                }
                self.measure();
            }
            Err(error) => drop(self.failed(error)),
        }
        written
    }

    fn failed(&self, error: &io::Error) -> AuditError {
        if self.shared.set_writable(false) {
            tracing::error!(%error, "audit records could not be written: nothing is signed");
        }
        AuditError::Write(error.to_string())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.good += bytes.len() as u64,
            Err(_) => {
                self.torn = self.file.set_len(self.good).is_err();
                self.room.forget();
            }
        }
        written
    }

    /// People rename, remove and cut logs. Asked, not remembered: whoever makes room by cutting the log must not get it back
    /// padded with zeros, nor must records go into a file that has no name any more.
    fn follow(&mut self) -> io::Result<()> {
        let held = self.file.metadata()?;
        if let Some(path) = &self.path {
            let same = std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
            if !same {
                let file = appending(path)?;
                lock(&file)?;
                tracing::warn!(path = %path.display(), "the audit log was moved or removed; it goes on in a new file");
                self.begin(file)?;
                return Ok(());
            }
        }
        if held.len() != self.good {
            // Shorter: somebody cut it. Longer: that is not ours, and stays for the verifier to find.
            self.good = held.len();
            self.known.clear();
            self.room.forget();
        }
        Ok(())
    }

    fn continue_in_new_file(&mut self, path: &Path) -> io::Result<()> {
        std::fs::rename(path, older_name(path, self.first))?;
        let file = appending(path)?;
        lock(&file)?;
        sync_parent(path)?;
        self.begin(file)?;
        self.room.look(path);
        Ok(())
    }

    fn begin(&mut self, file: File) -> io::Result<()> {
        self.good = file.metadata()?.len();
        self.file = file;
        self.first = self.chain.next();
        self.known.clear();
        self.room.forget();
        Ok(())
    }

    fn measure(&mut self) {
        let found = self.room.measure(&self.file, self.good);
        let used_percent = (found.used * 100.0).round();
        match self.shared.measured(found) {
            Some(true) => tracing::error!(
                used_percent,
                reserve_bytes = found.reserve,
                "the audit log is running out of room: nothing is signed once it is used up"
            ),
            Some(false) => tracing::info!(used_percent, reserve_bytes = found.reserve, "the audit log has room again"),
            None => {}
        }
    }
}

/// True if all of it was taken. Standard output is for whoever collects the logs; the file is what counts.
fn copy(bytes: &[u8]) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}

fn appending(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
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

/// Cuts off a line that a crash tore: nothing took effect for it. Gives the length, what was cut, and the last line.
fn repair(file: &mut File, path: &Path) -> io::Result<(u64, u64, Option<Vec<u8>>)> {
    let end = file.seek(SeekFrom::End(0))?;
    let good = newline_before(file, end)?;
    if good < end {
        tracing::warn!(path = %path.display(), bytes = end - good, "a torn audit record was cut off");
        file.set_len(good)?;
    }
    file.sync_all()?;
    sync_parent(path)?;
    Ok((good, end - good, line_before(file, good)?))
}

fn last_of(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    let good = newline_before(&mut file, end)?;
    line_before(&mut file, good)
}

/// The line that ends, with its newline, at `good`.
fn line_before(file: &mut File, good: u64) -> io::Result<Option<Vec<u8>>> {
    if good == 0 {
        return Ok(None);
    }
    let begin = newline_before(file, good - 1)?;
    // Too long to be ours: a part of it is no record either.
    let length = (good - 1 - begin).min(MAX_LINE as u64);
    let mut line = vec![0; usize::try_from(length).unwrap_or_default()];
    file.seek(SeekFrom::Start(begin))?;
    file.read_exact(&mut line)?;
    Ok(Some(line))
}

/// Number of the first record in the file.
fn first_number(file: &mut File) -> io::Result<Option<u64>> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(MAX_LINE as u64).read_to_end(&mut head)?;
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(Chain::after(line).map(|chain| chain.next() - 1))
}

/// Length of the whole lines in the first `end` bytes.
fn newline_before(file: &mut File, end: u64) -> io::Result<u64> {
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

/// The record of how a process begins.
pub fn start_entry(cut: u64) -> Entry<'static> {
    let detail = match cut {
        0 => format!("countersign-ca {}", env!("CARGO_PKG_VERSION")),
        cut => {
            format!("countersign-ca {}; a torn record of {cut} bytes at the end was cut off", env!("CARGO_PKG_VERSION"))
        }
    };
    Entry { detail: Some(detail), ..Entry::new(Event::Start, "started") }
}
