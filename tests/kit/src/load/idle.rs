//! Connections that were used once and are then held open: what they cost is measured by whoever holds them.
//!
//! Called by the benches, and by the loop for its first requests. It must never send again on a held connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::REQUEST_LIMIT;
use super::http::{Response, request};

/// Lets this process, and those that it starts, open as many files as the system allows without asking.
///
/// # Errors
/// If the system refuses.
pub fn raise_open_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")
}

/// Held connections; closed when dropped.
pub struct Idle {
    target: SocketAddr,
    request: Vec<u8>,
    streams: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl Idle {
    /// Opens so many, each with one request and its response, so that all that a connection needs was set up.
    ///
    /// # Errors
    /// If one cannot be opened or is not answered.
    pub fn open(target: SocketAddr, path: &str, count: usize) -> Result<Self> {
        let request = request(&target.to_string(), path, false);
        let mut idle = Self { target, request, streams: Vec::new(), buffer: vec![0; 64 * 1024] };
        idle.grow_to(count)?;
        Ok(idle)
    }

    /// Opens more, up to so many.
    ///
    /// # Errors
    /// As [`Idle::open`].
    pub fn grow_to(&mut self, count: usize) -> Result<()> {
        while self.streams.len() < count {
            let number = self.streams.len() + 1;
            let mut stream = connect(self.target).with_context(|| format!("idle connection {number}"))?;
            exchange(&mut stream, &self.request, &mut self.buffer)
                .with_context(|| format!("the request on idle connection {number}"))?;
            self.streams.push(stream);
        }
        Ok(())
    }

    /// How many were opened.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// How many the other side has not closed by now.
    #[must_use]
    pub fn still_open(&self) -> usize {
        let open = |stream: &&TcpStream| {
            stream.set_nonblocking(true).is_ok()
                && matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
        };
        self.streams.iter().filter(open).count()
    }
}

/// A blocking connection with limits.
pub(super) fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, REQUEST_LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REQUEST_LIMIT))?;
    stream.set_write_timeout(Some(REQUEST_LIMIT))?;
    Ok(stream)
}

/// One request and its whole response.
pub(super) fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> io::Result<()> {
    stream.write_all(request)?;
    let mut response = Response::default();
    loop {
        let length = stream.read(buffer)?;
        if length == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection ended before the response did"));
        }
        if response.feed(&buffer[..length])? {
            return response.good();
        }
    }
}
