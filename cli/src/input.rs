//! Files that people name, `-` being standard input.
//!
//! Called by the commands that take text. It must never read without an end.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Result, ensure};

/// A file's text, of at most so many bytes.
///
/// # Errors
/// It cannot be read, is longer, or is no UTF-8.
pub fn text(file: &Path, most: u64) -> Result<String> {
    let mut text = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().take(most + 1).read_to_end(&mut text)?;
    } else {
        std::fs::File::open(file)?.take(most + 1).read_to_end(&mut text)?;
    }
    ensure!(text.len() as u64 <= most, "larger than {most} bytes");
    Ok(String::from_utf8(text)?)
}
