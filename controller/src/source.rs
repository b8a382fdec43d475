//! Where the picture of the mesh comes from. Today: a directory of YAML files; Kubernetes takes the same place later.
//!
//! A source publishes [`Snapshot`]s in a `watch`: the latest wins, nothing queues. It must never let bad input take away
//! what was in force before.

pub mod dir;
mod file;
mod merge;
mod walk;
mod watch;
pub mod yaml;

use std::sync::Arc;
use std::time::Instant;

use crate::index::Index;
use crate::model::Problem;

/// What a source knows now.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The picture in force; none before the first good one.
    pub index: Option<Arc<Index>>,
    /// Files that were never good since this process began to read. While there are any from the start on, **no rules are
    /// sent**: nobody knows what such a file denied before a restart. Proxies keep what they have; answers are given.
    pub withheld: Vec<String>,
    /// What is wrong now, one for each bad file, in order of path. What those files said last holds on.
    pub problems: Vec<Problem>,
    /// What is odd, and was taken as the strictest or left out.
    pub warnings: Vec<String>,
    /// Files read.
    pub files: usize,
    /// Number of the change; grows by one with each.
    pub change: u64,
    /// When this was published.
    pub since: Instant,
}

impl Snapshot {
    /// Before anything was read.
    pub fn nothing() -> Self {
        Snapshot {
            index: None,
            withheld: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            files: 0,
            change: 0,
            since: Instant::now(),
        }
    }

    /// Whether rules may be sent.
    pub fn serves_rules(&self) -> bool {
        self.index.is_some() && self.withheld.is_empty()
    }
}

/// What a person may put into a source, at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Files.
    pub files: usize,
    /// Directories, and so watches.
    pub directories: usize,
    /// Directories below the source's own.
    pub depth: usize,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all files together.
    pub total_bytes: u64,
    /// Documents of one file.
    pub documents: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            files: 10_000,
            directories: 1_000,
            depth: 8,
            file_bytes: 8 << 20,
            total_bytes: 256 << 20,
            documents: 50_000,
        }
    }
}
