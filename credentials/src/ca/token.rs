//! The projected ServiceAccount token: read anew for each request (the kubelet replaces it), bounded, wiped after use.

use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::error::CaError;

/// A ServiceAccount token is under 2 KiB; a CA would refuse a larger one than this anyway.
const MAX_BYTES: u64 = 16 * 1024;

/// The token without surrounding white space.
pub(super) async fn read(path: &Path) -> Result<Zeroizing<String>, CaError> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_bounded(&file)).await;
    let failed = |source| CaError::Token { path: path.to_owned(), source };
    match read {
        Ok(token) => token.map_err(failed),
        Err(_) => Err(failed(io::Error::other("reading was cancelled"))),
    }
}

fn read_bounded(path: &Path) -> io::Result<Zeroizing<String>> {
    let bad = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(bad("larger than 16 KiB"));
    }
    // No part of the content goes into the error.
    let text = std::str::from_utf8(&bytes).map_err(|_| bad("not UTF-8"))?.trim();
    if text.is_empty() {
        return Err(bad("empty"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad("not one token"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests;
