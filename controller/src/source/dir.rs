//! A directory of YAML files as the source of the picture. Each file stands alone: a bad one keeps what it last said well,
//! and the others go on.
//!
//! `run` is called by the binary; `Dir::scan` is one look, without clock or runtime, for it and for tests. It must never
//! forget what a file said because the file cannot be read just now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use countersign_identity::TrustDomain;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::digest::Digest;
use crate::index::Index;
use crate::model::{Object, Problem};
use crate::source::file::{self, FileError};
use crate::source::merge::{Part, Stuck, merge};
use crate::source::walk::{Found, Signature, Walk, walk};
use crate::source::watch::Watcher;
use crate::source::{Limits, Snapshot, yaml};

/// A file found in the middle of being written is looked at again after this.
const AGAIN: Duration = Duration::from_millis(50);
/// Listings, at most, until two agree on which files are gone.
const LISTINGS: usize = 4;

/// What is known of one file.
#[derive(Debug, Default)]
struct FileState {
    /// What was read last; `None` if that failed.
    read: Option<(Signature, Digest)>,
    /// An equal signature proves that nothing was written since.
    settled: bool,
    /// In force.
    good: Option<Arc<[Object]>>,
    /// Well formed, but not in force: it does not fit the rest, or there is no Mesh yet.
    candidate: Option<Arc<[Object]>>,
    /// Why the newest text is no candidate.
    bad: Option<Problem>,
    /// Why the candidate is not in force.
    held: Option<Problem>,
    /// Why it cannot be looked at.
    blind: Option<Problem>,
}

impl FileState {
    fn problem(&self) -> Option<&Problem> {
        self.blind.as_ref().or(self.bad.as_ref()).or(self.held.as_ref())
    }
}

/// The directory and what is known of it.
#[derive(Debug)]
pub struct Dir {
    root: PathBuf,
    limits: Limits,
    trust_domain: TrustDomain,
    files: BTreeMap<String, FileState>,
    /// Cannot be looked at, and nothing is known of them.
    blind: BTreeMap<String, Problem>,
    warnings: Vec<String>,
    stuck: Option<Problem>,
    index: Option<Arc<Index>>,
    /// All files were good at the same time, once.
    complete: bool,
    changes: u64,
}

/// What one look brought.
#[derive(Debug)]
pub struct Scanned {
    /// If anything changed.
    pub snapshot: Option<Snapshot>,
    /// Directories whose changes matter.
    pub watch: Vec<PathBuf>,
    /// A file was being written: look again soon.
    pub again: bool,
}

impl Dir {
    /// Nothing is read yet.
    pub fn new(root: PathBuf, limits: Limits, trust_domain: TrustDomain) -> Self {
        Dir {
            root,
            limits,
            trust_domain,
            files: BTreeMap::new(),
            blind: BTreeMap::new(),
            warnings: Vec::new(),
            stuck: None,
            index: None,
            complete: false,
            changes: 0,
        }
    }

    /// Looks at every file, reads those that changed, and puts in force what fits.
    pub fn scan(&mut self, now: SystemTime) -> Scanned {
        let mut walk = self.agreed(|| walk(&self.root, &self.limits));
        let mut changed = self.changes == 0;
        let mut again = false;
        changed |= self.forget(&walk);
        changed |= self.note(&mut walk);
        let mut total = 0u64;
        for (name, found) in &walk.files {
            total = total.saturating_add(found.signature.size());
            match self.look(name, found, total, now) {
                Looked::Same => {}
                Looked::Changed => changed = true,
                Looked::Changing => again = true,
            }
        }
        let snapshot = changed.then(|| {
            self.put_in_force();
            self.snapshot()
        });
        Scanned { snapshot, watch: walk.watch, again }
    }

    /// A listing that nobody's rename ran through. A file that is renamed while its directory is listed may be seen under
    /// neither name (readdir(3)): what it denies would not be denied until the next look.
    fn agreed(&self, mut list: impl FnMut() -> Walk) -> Walk {
        let gone = |walk: &Walk| -> Vec<&String> { self.files.keys().filter(|name| is_gone(walk, name)).collect() };
        let mut walk = list();
        for _ in 1..LISTINGS {
            let before = gone(&walk);
            if before.is_empty() {
                break;
            }
            walk = list();
            if gone(&walk) == before {
                break;
            }
        }
        walk
    }

    /// Files that are gone take their objects with them; files that cannot be seen do not.
    fn forget(&mut self, walk: &Walk) -> bool {
        let before = self.files.len();
        self.files.retain(|name, _| !is_gone(walk, name));
        self.files.len() != before
    }

    /// Writes down what cannot be looked at.
    fn note(&mut self, walk: &mut Walk) -> bool {
        let mut changed = false;
        for (name, state) in &mut self.files {
            let blind = match walk.files.contains_key(name) {
                true => None,
                false => walk.blind_over(name).map(|problem| Problem { file: name.clone(), ..problem.clone() }),
            };
            changed |= state.blind != blind;
            state.blind = blind;
        }
        let unknown = |problem: &Problem| !self.files.contains_key(&problem.file);
        let blind: BTreeMap<_, _> =
            walk.blind.drain(..).filter(unknown).map(|problem| (problem.file.clone(), problem)).collect();
        changed |= blind != self.blind || walk.warnings != self.warnings;
        self.blind = blind;
        self.warnings = std::mem::take(&mut walk.warnings);
        changed
    }

    fn look(&mut self, name: &str, found: &Found, total: u64, now: SystemTime) -> Looked {
        let state = self.files.entry(name.to_owned()).or_default();
        if state.settled && state.read.as_ref().is_some_and(|(signature, _)| *signature == found.signature) {
            return Looked::Same;
        }
        let text = match total > self.limits.total_bytes {
            true => Err(format!("and the files before it are larger than {} bytes together", self.limits.total_bytes)),
            false => match file::read(found, self.limits.file_bytes) {
                Ok(text) => Ok(text),
                Err(FileError::Changing) => {
                    if state.good.is_none() && state.problem().is_none() {
                        state.bad = Some(Problem::of_file(name, FileError::Changing.to_string()));
                    }
                    return Looked::Changing;
                }
                Err(FileError::NotUtf8 { line }) => {
                    let message = FileError::NotUtf8 { line }.to_string();
                    return state.refuse(Problem { line, ..Problem::of_file(name, message) });
                }
                Err(error) => Err(error.to_string()),
            },
        };
        let text = match text {
            Ok(text) => text,
            Err(message) => return state.refuse(Problem::of_file(name, message)),
        };
        let same = state.read.as_ref().is_some_and(|(_, digest)| *digest == text.digest);
        state.settled = text.signature.is_settled(now);
        state.read = Some((text.signature, text.digest));
        if same {
            return Looked::Same;
        }
        match yaml::parse(name, &text.text, &self.limits) {
            Ok(objects) => {
                state.candidate = Some(objects.into());
                state.bad = None;
            }
            Err(problem) => {
                state.candidate = None;
                state.held = None;
                state.bad = Some(problem);
            }
        }
        Looked::Changed
    }

    fn put_in_force(&mut self) {
        let parts: Vec<Part<'_>> = self
            .files
            .iter()
            .map(|(file, state)| Part { file, good: state.good.as_deref(), candidate: state.candidate.as_deref() })
            .collect();
        let (held, index) = match merge(&parts, &self.trust_domain) {
            Ok(merged) => {
                self.stuck = None;
                (merged.held, Some(merged.index))
            }
            Err(Stuck { why, held }) => {
                self.stuck = Some(why);
                (held, None)
            }
        };
        for (file, state) in &mut self.files {
            state.held = held.get(file).cloned();
            if index.is_some() && state.held.is_none() && state.candidate.is_some() {
                state.good = state.candidate.take();
            }
        }
        if let Some(index) = index {
            let same = self.index.as_ref().is_some_and(|old| old.revision() == index.revision());
            if !same {
                self.index = Some(Arc::new(index));
            }
            if self.unknown().next().is_none() {
                self.complete = true;
            }
        }
    }

    /// Files of which nothing good is known.
    fn unknown(&self) -> impl Iterator<Item = &String> {
        let files = self.files.iter().filter(|(_, state)| state.good.is_none() && state.problem().is_some());
        files.map(|(file, _)| file).chain(self.blind.keys())
    }

    fn snapshot(&mut self) -> Snapshot {
        self.changes += 1;
        let mut problems: Vec<Problem> = self.files.values().filter_map(FileState::problem).cloned().collect();
        problems.extend(self.blind.values().cloned());
        problems.sort_by(|a, b| a.file.cmp(&b.file));
        // A stuck merge blames a file that has its own problem already, or the source as a whole.
        if let Some(why) = &self.stuck
            && !problems.contains(why)
        {
            problems.push(why.clone());
        }
        let mut warnings = self.warnings.clone();
        for (name, rules) in self.index.iter().flat_map(|index| index.namespaces()) {
            warnings.extend(rules.label_problems.iter().map(|problem| format!("Namespace {name}: {problem}")));
        }
        Snapshot {
            index: self.index.clone(),
            withheld: match self.complete {
                true => Vec::new(),
                false => self.unknown().cloned().collect(),
            },
            withheld_in: BTreeSet::new(),
            problems,
            warnings,
            files: self.files.len(),
            change: self.changes,
            since: Instant::now(),
        }
    }
}

impl FileState {
    fn refuse(&mut self, problem: Problem) -> Looked {
        self.read = None;
        self.candidate = None;
        self.held = None;
        if self.bad.as_ref() == Some(&problem) {
            return Looked::Same;
        }
        self.bad = Some(problem);
        Looked::Changed
    }
}

fn is_gone(walk: &Walk, name: &str) -> bool {
    !walk.files.contains_key(name) && walk.blind_over(name).is_none()
}

enum Looked {
    Same,
    Changed,
    Changing,
}

/// Follows the directory for ever; publishes each change.
///
/// # Errors
/// Only when a scan panicked: what was known is lost, and the process had better start anew.
pub async fn run(mut dir: Dir, publish: watch::Sender<Arc<Snapshot>>) -> Result<(), tokio::task::JoinError> {
    let mut watcher = Watcher::new();
    loop {
        let scanned;
        (dir, scanned) = tokio::task::spawn_blocking(move || {
            let scanned = dir.scan(SystemTime::now());
            (dir, scanned)
        })
        .await?;
        if let Some(snapshot) = scanned.snapshot {
            log(&publish.borrow(), &snapshot);
            publish.send_replace(Arc::new(snapshot));
        }
        // What appeared before its directory was watched made no event.
        if watcher.watch(&scanned.watch) {
            continue;
        }
        match scanned.again {
            true => tokio::time::sleep(AGAIN).await,
            false => watcher.changed().await,
        }
    }
}

fn log(old: &Snapshot, new: &Snapshot) {
    for problem in new.problems.iter().filter(|problem| !old.problems.contains(problem)) {
        error!(file = problem.file, line = problem.line, field = problem.field, "{problem}; what it said before holds");
    }
    for problem in &old.problems {
        if !new.problems.iter().any(|other| other.file == problem.file) {
            info!(file = problem.file, "is good again");
        }
    }
    for warning in new.warnings.iter().filter(|warning| !old.warnings.contains(warning)) {
        warn!("{warning}");
    }
    if !new.withheld.is_empty() && new.withheld != old.withheld {
        error!(files = ?new.withheld, "rules are withheld until these files were good once: nobody knows what they deny");
    }
    let revision = new.index.as_ref().map(|index| index.revision().to_owned()).unwrap_or_default();
    info!(change = new.change, files = new.files, problems = new.problems.len(), revision, "the picture changed");
}

#[cfg(test)]
#[path = "dir/tests.rs"]
mod tests;
