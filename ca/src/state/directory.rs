//! A directory of our own: locked for as long as we live, each file written whole or not at all. Called by `state` (and by
//! `run` for the public files). It must never leave a half-written file under a real name, nor a secret readable by others.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process holds the lock.
    #[error("state directory {0} is in use by another countersign-ca")]
    InUse(PathBuf),
    /// Others may enter the directory.
    #[error("state directory {path} has mode {mode:04o}: group and others must have no access (chmod 700)")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is larger than we ever write it.
    #[error("{path} is larger than {max} bytes: not written by countersign-ca")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        max: u64,
    },
    /// The system refused.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What we were doing.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

const LOCK: &str = "lock";

/// The directory; the lock ends with this value.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates the directory (0700) if it is missing, and locks it.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))?;
        let mode = std::fs::metadata(path).map_err(io_error("inspect", path))?.mode();
        if mode & 0o077 != 0 {
            return Err(DirectoryError::Open { path: path.to_owned(), mode: mode & 0o7777 });
        }
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DirectoryError::InUse(path.to_owned())),
            Err(errno) => Err(io_error("lock", &lock_path)(errno.into())),
        }
    }

    /// The whole file, or `None` when there is none.
    pub fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, DirectoryError> {
        let path = self.path.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(io_error("read", &path))?;
        if bytes.len() as u64 > max {
            return Err(DirectoryError::TooLarge { path, max });
        }
        Ok(Some(bytes))
    }

    /// Writes the whole file, or leaves the old one.
    pub fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), DirectoryError> {
        write_whole(&self.path.join(name), bytes, mode)
    }

    /// True if a file of that name holds anything.
    pub fn holds(&self, name: &str) -> bool {
        std::fs::metadata(self.path.join(name)).is_ok_and(|meta| meta.len() > 0)
    }

    /// Where a file of that name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Writes a whole file through a temporary one beside it: on the disk before it gets its name, and its name on the disk
/// before this returns. A crash in between leaves the old file.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DirectoryError> {
    stage(path, bytes, mode)?.commit()
}

/// A file that is on the disk under its temporary name only.
#[must_use]
struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

fn stage(path: &Path, bytes: &[u8], mode: u32) -> Result<Staged, DirectoryError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    // A left-over of a crash may have another mode, or be a link: never write into it.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &temporary)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    // The mode exactly: a umask must not hide the public bundle.
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", &temporary))?;
    Ok(Staged { temporary, path: path.to_owned() })
}

impl Staged {
    fn commit(self) -> Result<(), DirectoryError> {
        std::fs::rename(&self.temporary, &self.path).map_err(io_error("rename to", &self.path))?;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_error("sync", parent))
    }
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { verb, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::private_dir;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn two_never_share_a_directory() {
        let dir = private_dir();
        let first = Directory::open(dir.path()).unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryError::InUse(_))));
        drop(first);
        Directory::open(dir.path()).unwrap();
    }

    #[test]
    fn a_new_directory_and_its_files_are_closed_to_others() {
        let dir = private_dir();
        let path = dir.path().join("a/b");
        let ours = Directory::open(&path).unwrap();
        ours.write("secret", b"x", 0o600).unwrap();
        assert_eq!((mode(&path), mode(&path.join("secret")), mode(&path.join("lock"))), (0o700, 0o600, 0o600));
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let dir = private_dir();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryError::Open { mode: 0o750, .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
    }

    #[test]
    fn a_crash_between_temporary_file_and_rename_keeps_the_old_state() {
        let dir = private_dir();
        let ours = Directory::open(dir.path()).unwrap();
        ours.write("state", b"old", 0o600).unwrap();
        let crashed = stage(&ours.path("state"), b"new", 0o600).unwrap();
        drop(crashed);
        assert_eq!(ours.read("state", 100).unwrap().unwrap(), b"old");
        ours.write("state", b"newer", 0o600).unwrap();
        assert_eq!(ours.read("state", 100).unwrap().unwrap(), b"newer");
        assert!(!ours.path("state.tmp").exists());
    }

    #[test]
    fn a_link_left_in_place_of_the_temporary_file_is_not_followed() {
        let dir = private_dir();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        let ours = Directory::open(&dir.path().join("ours")).unwrap();
        std::os::unix::fs::symlink(&victim, ours.path("state.tmp")).unwrap();
        ours.write("state", b"secret", 0o600).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    }

    #[test]
    fn a_missing_file_is_none_and_a_huge_one_is_refused() {
        let dir = private_dir();
        let ours = Directory::open(dir.path()).unwrap();
        assert!(ours.read("state", 4).unwrap().is_none());
        ours.write("state", b"12345", 0o600).unwrap();
        assert!(matches!(ours.read("state", 4), Err(DirectoryError::TooLarge { .. })));
    }
}
