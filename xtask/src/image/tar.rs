//! A tar archive (POSIX ustar), always the same bytes for the same entries: no times, no names of users.
//!
//! Called by `oci`, for an image's layer and for the file that holds the image. It must never take anything from this machine but the
//! content that it is given.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

const BLOCK: usize = 512;
const REGULAR: u8 = b'0';
const SYMLINK: u8 = b'2';
const DIRECTORY: u8 = b'5';

/// An archive that grows in memory.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    seen: BTreeSet<String>,
}

impl Archive {
    /// A file, after the folders in which it lies.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, REGULAR, mode, "", content)
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, to: &str) -> Result<()> {
        self.entry(path, SYMLINK, 0o777, to, &[])
    }

    /// A folder, after those in which it lies.
    pub fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.entry(path, DIRECTORY, mode, "", &[])
    }

    /// Whether there is an entry of this path.
    pub fn has(&self, path: &str) -> bool {
        self.seen.contains(path.trim_matches('/'))
    }

    /// The archive with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    /// The first entry of a path is the one that counts.
    fn entry(&mut self, path: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> Result<()> {
        let path = path.trim_matches('/');
        if self.has(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent, 0o755)?;
        }
        self.seen.insert(path.to_owned());
        self.bytes.extend_from_slice(&header(path, kind, mode, link, content.len())?);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }
}

fn header(path: &str, kind: u8, mode: u32, link: &str, size: usize) -> Result<[u8; BLOCK]> {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, room: usize, text: &str| -> Result<()> {
        if text.len() > room {
            bail!("{path}: {text} is longer than the {room} bytes that a tar header has for it");
        }
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
        Ok(())
    };
    put(0, 100, path)?;
    put(100, 8, &format!("{mode:07o}"))?;
    put(108, 8, "0000000")?; // user
    put(116, 8, "0000000")?; // group
    put(124, 12, &format!("{size:011o}"))?;
    put(136, 12, "00000000000")?; // time: 1970
    put(148, 8, "        ")?; // the checksum counts itself as spaces
    put(156, 1, char::from(kind).encode_utf8(&mut [0; 1]))?;
    put(157, 100, link)?;
    put(257, 8, "ustar\x0000")?;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_systems_tar_reads_what_was_written() {
        let mut archive = Archive::default();
        archive.file("/bin/program", 0o755, &[7; 513]).unwrap();
        archive.symlink("bin/link", "/bin/program").unwrap();
        archive.file("bin/program", 0o644, b"another").unwrap();
        let mut tar =
            Command::new("tar").args(["-tvf", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines.len(), 3, "{listing}");
        assert_eq!((lines[0][0], lines[0].last()), ("drwxr-xr-x", Some(&"bin")));
        assert_eq!((lines[1][0], lines[1][2], lines[1].last()), ("-rwxr-xr-x", "513", Some(&"bin/program")));
        assert_eq!((lines[2][0], lines[2].last()), ("lrwxrwxrwx", Some(&"/bin/program")));
    }

    #[test]
    fn a_name_that_does_not_fit_is_an_error() {
        assert!(Archive::default().file(&"x".repeat(101), 0o644, b"").is_err());
    }
}
