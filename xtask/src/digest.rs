//! SHA-256, by the system's `sha256sum`: xtask is built before everything else and so has few crates.
//!
//! Called by `image` and `cluster`. It must never answer with anything but the digest of all that it was given.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The digest in lower-case hexadecimal.
pub fn sha256(content: &[u8]) -> Result<String> {
    let mut command = Command::new("sha256sum");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting sha256sum (coreutils)")?;
    // It writes only after it has read all.
    child.stdin.take().context("sha256sum's input")?.write_all(content).context("writing to sha256sum")?;
    let output = child.wait_with_output().context("waiting for sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next() {
        Some(digest) if output.status.success() && digest.len() == 64 => Ok(digest.to_owned()),
        _ => bail!("sha256sum said: {text}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn a_known_digest() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::sha256(b"abc").unwrap(), abc);
    }
}
