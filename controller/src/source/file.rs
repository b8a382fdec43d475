//! One file to its text, bounded, and only if nobody wrote it meanwhile.
//!
//! Called by `source::dir`. It must never block (a pipe) nor read more than it may.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use crate::digest::{Content, Digest};
use crate::source::walk::{Found, Signature};

/// What a file says.
#[derive(Debug)]
pub struct Text {
    /// All of it.
    pub text: String,
    /// Of the bytes.
    pub digest: Digest,
    /// The state that was read.
    pub signature: Signature,
}

/// Why a file gives no text.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system says no.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// Larger than the bound.
    #[error("is larger than {0} bytes")]
    TooLarge(u64),
    /// A pipe, a device, a socket.
    #[error("is not a regular file")]
    NotAFile,
    /// Some byte is not UTF-8; the line, from 1.
    #[error("is not UTF-8")]
    NotUtf8 {
        /// From 1.
        line: u32,
    },
    /// It was written while it was read: look again soon.
    #[error("is being written")]
    Changing,
}

/// Reads the file.
pub fn read(found: &Found, max_bytes: u64) -> Result<Text, FileError> {
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(nonblock).open(&found.path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(FileError::NotAFile);
    }
    if before.len() > max_bytes {
        return Err(FileError::TooLarge(max_bytes));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.len().min(max_bytes)).unwrap_or_default());
    file.by_ref().take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(FileError::TooLarge(max_bytes));
    }
    let signature = Signature::of(&file.metadata()?);
    if signature != Signature::of(&before) || signature.size() != bytes.len() as u64 {
        return Err(FileError::Changing);
    }
    let digest = Content::of("file").bytes(&bytes).finish();
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Text { text, digest, signature }),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let lines = good.iter().filter(|byte| **byte == b'\n').count();
            Err(FileError::NotUtf8 { line: u32::try_from(lines).unwrap_or(u32::MAX).saturating_add(1) })
        }
    }
}
