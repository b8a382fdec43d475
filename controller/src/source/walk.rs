//! Which files a directory holds now, with what tells a changed one from an unchanged one. Reads no file.
//!
//! Called by `source::dir` at each scan. It must never loop on links, nor take "cannot be listed" for "is empty".

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::model::Problem;
use crate::source::Limits;

/// A file younger than this may be written again without its times changing (clock ticks of the file system are coarse).
const SETTLED: Duration = Duration::from_secs(2);

/// What tells two states of a file apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    /// Of the file as it is.
    pub fn of(meta: &Metadata) -> Self {
        Signature {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether an equal signature later proves that nothing was written since `now`.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let age = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_sub(self.changed.0.max(self.modified.0));
        age > SETTLED.as_secs().cast_signed()
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// A file that is to be read.
#[derive(Debug)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Its state when it was found.
    pub signature: Signature,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Walk {
    /// Every `*.yaml` and `*.yml`, by path relative to the root.
    pub files: BTreeMap<String, Found>,
    /// What could not be looked at; whatever was known at or below these paths is still held to be there.
    pub blind: Vec<Problem>,
    /// What was left out on purpose.
    pub warnings: Vec<String>,
    /// Directories whose changes matter.
    pub watch: Vec<PathBuf>,
}

impl Walk {
    /// Why the path cannot be looked at: it, or what it is below.
    pub fn blind_over(&self, file: &str) -> Option<&Problem> {
        self.blind.iter().find(|problem| {
            problem.file == "."
                || file.strip_prefix(problem.file.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// Lists the root recursively. Names beginning with a dot are left out: editors' and, in Kubernetes' volumes, the hidden
/// directories that the visible names are links into.
pub fn walk(root: &Path, limits: &Limits) -> Walk {
    let mut walker = Walker { limits, walk: Walk::default(), seen: HashSet::new() };
    walker.directory(root, "", 0);
    walker.walk
}

struct Walker<'a> {
    limits: &'a Limits,
    walk: Walk,
    /// Device and inode of each directory entered: a link back ends there.
    seen: HashSet<(u64, u64)>,
}

impl Walker<'_> {
    fn directory(&mut self, path: &Path, relative: &str, depth: usize) {
        let shown = if relative.is_empty() { "." } else { relative };
        if depth > self.limits.depth {
            return self.blind(shown, format!("lies deeper than {} directories", self.limits.depth));
        }
        if self.seen.len() >= self.limits.directories {
            return self.blind(shown, format!("is one of more than {} directories", self.limits.directories));
        }
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) => return self.blind(shown, format!("cannot be read: {error}")),
        };
        if !self.seen.insert((meta.dev(), meta.ino())) {
            let warning = format!("{shown}: links to a directory that was read already; left out");
            return self.walk.warnings.push(warning);
        }
        self.walk.watch.push(path.to_owned());
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) => return self.blind(shown, format!("cannot be listed: {error}")),
        };
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            let name = match name.to_str() {
                Some(name) if name.starts_with('.') => continue,
                Some(name) => name,
                None => {
                    let warning = format!("{shown}/{}: the name is not UTF-8; left out", name.to_string_lossy());
                    self.walk.warnings.push(warning);
                    continue;
                }
            };
            let relative = if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") };
            self.entry(&path.join(name), relative, depth);
        }
    }

    fn entry(&mut self, path: &Path, relative: String, depth: usize) {
        let wanted = relative.ends_with(".yaml") || relative.ends_with(".yml");
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            // Gone between listing and looking, or a link to nowhere.
            Err(error) if wanted => match fs::symlink_metadata(path) {
                Ok(_) => return self.blind(&relative, format!("cannot be read: {error}")),
                Err(_) => return,
            },
            Err(_) => return,
        };
        if meta.is_dir() {
            return self.directory(path, &relative, depth + 1);
        }
        if !wanted {
            return;
        }
        if !meta.is_file() {
            return self.blind(&relative, "is not a regular file".to_owned());
        }
        if self.walk.files.len() >= self.limits.files {
            return self.blind(&relative, format!("is one of more than {} files", self.limits.files));
        }
        self.watch_target(path);
        let signature = Signature::of(&meta);
        self.walk.files.insert(relative, Found { path: path.to_owned(), signature });
    }

    /// A linked file changes where it lies.
    fn watch_target(&mut self, path: &Path) {
        let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        if !is_link || self.walk.watch.len() >= 2 * self.limits.directories {
            return;
        }
        if let Ok(target) = fs::canonicalize(path)
            && let Some(parent) = target.parent()
            && !self.walk.watch.iter().any(|watched| watched == parent)
        {
            self.walk.watch.push(parent.to_owned());
        }
    }

    fn blind(&mut self, relative: &str, message: String) {
        self.walk.blind.push(Problem::of_file(relative, message));
    }
}
