//! One question to an admin socket, without a runtime: for the sub-commands that ask the process beside them in an image that holds
//! nothing else.
//!
//! Called by `countersign-ca ask` and `countersign-proxy drain`. It must never wait for ever, nor read without bound.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// What was answered.
#[derive(Debug)]
pub struct Answered {
    /// Status line and headers.
    pub head: String,
    /// None: no HTTP answer, or one that ended in its head.
    pub body: Option<String>,
}

/// `GET` or `POST` of a path, each read and write waited for at most `patience`, the answer read up to `most` bytes.
///
/// # Errors
/// When nobody listens, or does not answer in time, or not in UTF-8.
pub fn ask(socket: &Path, method: &str, path: &str, patience: Duration, most: u64) -> io::Result<Answered> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(most).read_to_string(&mut answer)?;
    Ok(match answer.split_once("\r\n\r\n") {
        Some((head, body)) => Answered { head: head.to_owned(), body: Some(body.to_owned()) },
        None => Answered { head: answer, body: None },
    })
}
