//! Where the picture of the mesh comes from: a directory of YAML files, or a Kubernetes cluster.
//!
//! A source publishes [`Snapshot`]s in a `watch`: the latest wins, nothing queues. It must never let bad input take away
//! what was in force before.

pub mod dir;
mod file;
pub mod kubernetes;
mod merge;
mod walk;
mod watch;
pub mod yaml;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::index::Index;
use crate::model::Problem;

/// What a source knows now.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The picture in force; none before the first good one.
    pub index: Option<Arc<Index>>,
    /// Files, or policy objects, that were never good since this process began to read. While there are any from the start on,
    /// **no rules are sent** to whom they may bind: nobody knows what they denied before a restart. Proxies keep what they have;
    /// answers are given.
    pub withheld: Vec<String>,
    /// Whom those may bind: these namespaces; empty: anybody (a file may hold rules of any namespace).
    pub withheld_in: BTreeSet<Arc<str>>,
    /// What is wrong now, one for each bad file, in order of path; or of objects and watches. What those said last holds on.
    pub problems: Vec<Problem>,
    /// What is odd, and was taken as the strictest or left out.
    pub warnings: Vec<String>,
    /// Files, or policy objects, read.
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
            withheld_in: BTreeSet::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            files: 0,
            change: 0,
            since: Instant::now(),
        }
    }

    /// Whether rules may be sent at all.
    pub fn serves_rules(&self) -> bool {
        self.index.is_some() && (self.withheld.is_empty() || !self.withheld_in.is_empty())
    }

    /// Whether rules may be sent to workloads of this namespace.
    pub fn serves_rules_to(&self, namespace: &str) -> bool {
        self.serves_rules() && !self.withheld_in.contains(namespace)
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
