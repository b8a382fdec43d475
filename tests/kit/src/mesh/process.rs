//! What all processes of ours have: a binary, a file that says when they are ready, an admin socket.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::READY;
use crate::child::Running;
use crate::wait::wait_for;

/// For what a process said before it ended to be read.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A GET over a unix socket, as `countersign status` makes it.
///
/// # Errors
/// If nobody listens, or the answer is no JSON with status 200.
pub fn admin_get(socket: &Path, path: &str) -> Result<Value> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    serde_json::from_str(body).with_context(|| body.to_owned())
}

/// Waits until the process has written its file; not longer than it lives.
pub(super) fn become_ready(process: &mut Running, what: &str, ready: &Path) -> Result<()> {
    let waited = wait_for(READY, &format!("{what} becomes ready"), || ready.exists() || process.ended());
    let waited = waited.and_then(|()| {
        ensure!(ready.exists(), "{what} ended before it was ready");
        Ok(())
    });
    waited.with_context(|| {
        let log = if process.ended() { process.log_to_its_end(LAST_WORDS) } else { process.log() };
        format!("its log ends:\n{}", log[log.len().saturating_sub(20)..].join("\n"))
    })
}

/// A binary of ours: in `COUNTERSIGN_BIN_DIR`, else beside the running program (or above it, for test programs).
///
/// # Errors
/// If it is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folders: Vec<PathBuf> = match std::env::var_os("COUNTERSIGN_BIN_DIR") {
        Some(folder) => vec![folder.into()],
        None => std::env::current_exe()?.ancestors().skip(1).take(2).map(Path::to_path_buf).collect(),
    };
    let found = folders.iter().map(|f| f.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not in {folders:?}: build it first (cargo build --workspace)"))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
