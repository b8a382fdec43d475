//! The key that encrypts the state: 32 bytes from a file or from the environment. Called by `config`, before anything is
//! opened. It must never be printed, and never be read from a file that others can read.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Why there is no usable state key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be opened or read.
    #[error("state key file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory, a pipe or a device.
    #[error("state key file {0} is not a regular file")]
    NotAFile(PathBuf),
    /// Somebody else may read or write the key.
    #[error("state key file {path} has mode {mode:04o}: group and others must have no access (chmod 600 or 400)")]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not 32 bytes, neither raw nor as base64.
    #[error("{origin} must hold 32 bytes, raw or as standard base64 (`head -c 32 /dev/urandom | base64`)")]
    Form {
        /// The file or the variable.
        origin: String,
    },
}

const LEN: usize = 32;
/// A key file is never larger: 32 bytes as base64 are 44, and some editors leave blank lines.
const MAX_FILE: u64 = 256;

/// 32 secret bytes; wiped when dropped.
#[derive(Clone)]
pub struct StateKey(Zeroizing<[u8; LEN]>);

impl StateKey {
    /// Reads a file: 32 raw bytes, or base64 of 32 bytes with blanks around it. Permissions are those of the opened file.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let read = |source| KeyError::Read { path: path.to_owned(), source };
        let mut file = std::fs::File::open(path).map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        if !meta.is_file() {
            return Err(KeyError::NotAFile(path.to_owned()));
        }
        if !is_closed(meta.mode(), meta.uid(), rustix::process::geteuid().as_raw()) {
            return Err(KeyError::Readable { path: path.to_owned(), mode: meta.mode() & 0o7777 });
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
        file.by_ref().take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(read)?;
        Self::from_bytes(&format!("state key file {}", path.display()), &bytes)
    }

    /// 32 raw bytes, or base64 of 32 bytes with blanks around it, from `origin`.
    pub fn from_bytes(origin: &str, bytes: &[u8]) -> Result<Self, KeyError> {
        let raw = <[u8; LEN]>::try_from(bytes).ok().map(|raw| Self(Zeroizing::new(raw)));
        raw.or_else(|| std::str::from_utf8(bytes).ok().and_then(decode))
            .ok_or_else(|| KeyError::Form { origin: origin.to_owned() })
    }

    /// Reads the text of the environment variable `name`: base64 of 32 bytes.
    pub fn from_text(name: &str, text: &str) -> Result<Self, KeyError> {
        decode(text).ok_or_else(|| KeyError::Form { origin: name.to_owned() })
    }

    /// A name of the key that says nothing about it: tells a wrong key from a damaged state.
    pub(super) fn id(&self) -> String {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice()), b"countersign-ca state key id");
        tag.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateKey({})", self.id())
    }
}

/// Nobody but the owner may read or write; or, as Kubernetes mounts a Secret for a process that is not root: the file is
/// root's, and one group, which is ours since we can read it, may read.
fn is_closed(mode: u32, owner: u32, us: u32) -> bool {
    let mounted = owner == 0 && us != 0;
    mode & if mounted { 0o037 } else { 0o077 } == 0
}

fn decode(text: &str) -> Option<StateKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
    Some(StateKey(Zeroizing::new(<[u8; LEN]>::try_from(bytes.as_slice()).ok()?)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn raw_bytes_and_base64_give_the_same_key() {
        let raw: Vec<u8> = (0..32).collect();
        let (_dir, path) = file(&raw, 0o600);
        let (_dir2, text) = file(format!("{}\n", STANDARD.encode(&raw)).as_bytes(), 0o400);
        let key = StateKey::from_file(&path).unwrap();
        assert_eq!(key.bytes(), raw);
        assert_eq!(StateKey::from_file(&text).unwrap().id(), key.id());
        assert_eq!(StateKey::from_text("X", &STANDARD.encode(&raw)).unwrap().id(), key.id());
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o620, 0o644] {
            let (_dir, path) = file(&[7; 32], mode);
            let error = StateKey::from_file(&path).unwrap_err();
            assert!(matches!(error, KeyError::Readable { mode: seen, .. } if seen == mode), "{error}");
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused_with_a_hint() {
        for content in [&b""[..], &[1; 31], &[1; 33], b"bm90IDMyIGJ5dGVz", &[b'A'; 4096]] {
            let (_dir, path) = file(content, 0o600);
            let text = StateKey::from_file(&path).unwrap_err().to_string();
            assert!(text.contains("32 bytes"), "{text}");
        }
    }

    #[test]
    fn a_mounted_file_may_be_read_by_our_group_and_no_other_may() {
        assert!(is_closed(0o100_440, 0, 1000), "a Secret, mounted with fsGroup");
        for (mode, owner, us) in [(0o440, 1000, 1000), (0o440, 0, 0), (0o444, 0, 1000), (0o460, 0, 1000)] {
            assert!(!is_closed(mode, owner, us), "{mode:o} {owner} {us}");
        }
    }

    #[test]
    fn a_directory_is_no_key_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(StateKey::from_file(dir.path()), Err(KeyError::NotAFile(_))));
    }

    #[test]
    fn debug_never_shows_the_key() {
        let key = StateKey::from_text("X", &STANDARD.encode([0xAB; 32])).unwrap();
        let shown = format!("{key:?}").to_lowercase();
        assert!(!shown.contains("abab") && !shown.contains("171, 171"), "{shown}");
    }
}
