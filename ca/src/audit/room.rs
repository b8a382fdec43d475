//! How much room the log has: the bound on all its files, the older files of the chain beside the one that is written, the
//! reserve that is allocated ahead of the end, and how full the file system is. Called by `file` alone, on its thread.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// How much the log may take, and what happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes that are allocated ahead of the log's end, so that a disk that others fill leaves it room.
    pub reserve: u64,
    /// The log's files and the reserve never take more; unbounded if none.
    pub max: Option<u64>,
    /// When they would, the oldest files of the log are removed; else nothing more is written, and so nothing signed.
    pub remove_oldest: bool,
}

/// From here on it is an alarm.
const ALARM: f64 = 0.8;
/// The log is continued in a new file so many times before it has reached its bound.
const FILES: u64 = 8;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measure {
    /// Bytes of the reserve that are there.
    pub reserve: u64,
    /// The fuller of the file system and the bound, 0 to 1.
    pub used: f64,
    /// It is 80% full, or the reserve is not whole.
    pub alarm: bool,
}

/// The room of one log.
pub struct Room {
    bounds: Bounds,
    /// Older files of the log, oldest first, with their lengths.
    older: Vec<(PathBuf, u64)>,
    /// Up to here the file's blocks are allocated.
    allocated: u64,
    unsupported: bool,
}

impl Room {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, older: Vec::new(), allocated: 0, unsupported: false }
    }

    /// What all files may take, the reserve left out: a tenth is left to the directory, and to what the file system rounds up.
    fn budget(&self) -> Option<u64> {
        self.bounds.max.map(|max| (max / 10 * 9).saturating_sub(self.bounds.reserve))
    }

    /// Looks for older files again: people remove them to make room.
    pub fn look(&mut self, path: &Path) {
        self.older = older(path);
    }

    /// The newest of the older files.
    pub fn newest(&self) -> Option<&Path> {
        self.older.last().map(|(path, _)| path.as_path())
    }

    /// True when the file is so long that the log should go on in a new one.
    pub fn is_long(&self, length: u64) -> bool {
        self.budget().is_some_and(|budget| length > 0 && length >= budget / FILES)
    }

    /// Room for `more` bytes after `length` in the file that is written. Gives the files that were removed for it, which is done
    /// only while others have a copy.
    pub fn take(&mut self, path: &Path, length: u64, more: u64, copied: bool) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        let Some(budget) = self.budget() else { return Ok(removed) };
        let total = |room: &Self| room.older.iter().map(|(_, bytes)| bytes).sum::<u64>().saturating_add(length);
        if total(self).saturating_add(more) > budget {
            self.look(path);
        }
        while total(self).saturating_add(more) > budget {
            if !self.bounds.remove_oldest || !copied || self.older.is_empty() {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "the audit log has reached its bound"));
            }
            std::fs::remove_file(&self.older[0].0)?;
            removed.push(self.older.remove(0).0);
        }
        Ok(removed)
    }

    /// What lies beyond the end is no longer known to be allocated.
    pub fn forget(&mut self) {
        self.allocated = 0;
    }

    /// Allocates the reserve after `length` again, once an eighth of it is used up; and measures.
    pub fn measure(&mut self, file: &File, length: u64) -> Measure {
        let (wanted, least) = (self.bounds.reserve, self.bounds.reserve / 8 * 7);
        if !self.unsupported && wanted > 0 && self.allocated.saturating_sub(length) < least {
            match fallocate(file, FallocateFlags::KEEP_SIZE, length, wanted) {
                Ok(()) => self.allocated = length + wanted,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.unsupported = true;
                    tracing::warn!("the file system of the audit log cannot reserve room");
                }
                Err(_) => {}
            }
        }
        let reserve = self.allocated.saturating_sub(length).min(wanted);
        let bound = match self.budget() {
            Some(budget) if !self.bounds.remove_oldest => {
                let total = self.older.iter().map(|(_, bytes)| bytes).sum::<u64>().saturating_add(length);
                total as f64 / budget.max(1) as f64
            }
            _ => 0.0,
        };
        let used = disk_used(file).max(bound).min(1.0);
        Measure { reserve, used, alarm: used >= ALARM || (reserve < least && !self.unsupported) }
    }
}

/// The part of the file system that is taken, as far as ordinary users may take it; 0 where that is not to be had.
fn disk_used(file: &File) -> f64 {
    match rustix::fs::fstatvfs(file) {
        Ok(it) if it.f_blocks > 0 => {
            let taken = it.f_blocks.saturating_sub(it.f_bfree);
            taken as f64 / (taken + it.f_bavail).max(1) as f64
        }
        _ => 0.0,
    }
}

/// Name of an older file: the log's own, and the number of its first record.
pub fn older_name(path: &Path, first: u64) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{first:012}"));
    path.with_file_name(name)
}

fn older(path: &Path) -> Vec<(PathBuf, u64)> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    prefix.push('.');
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let ours = |name: &str| name.strip_prefix(&prefix).is_some_and(|n| n.len() == 12 && n.parse::<u64>().is_ok());
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(ours))
        .map(|entry| (entry.path(), entry.metadata().map_or(0, |meta| meta.len())))
        .collect();
    found.sort();
    found
}
