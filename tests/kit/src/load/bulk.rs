//! Bulk transfer: as many bytes as go, in one direction, for a time.
//!
//! Called by the benches. The server must know two paths: a GET of `/bulk/N` gives N bytes, a POST takes what its Content-Length says.
//! It must never count a byte that was not read, or not taken by the socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::idle::connect;

/// More than any run can move: it is the clock that ends it.
const ENDLESS: u64 = 1 << 44;
const PIECE: usize = 256 * 1024;
/// Moved before the clock starts: windows are open then.
const WARM: u64 = 4 * 1024 * 1024;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the server to us.
    Down,
    /// From us to the server.
    Up,
}

/// A bulk transfer.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Where to.
    pub target: SocketAddr,
    /// Which way.
    pub direction: Direction,
    /// Connections, a thread each.
    pub streams: usize,
    /// For how long.
    pub length: Duration,
}

/// What was moved.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Over all streams.
    pub bytes: u64,
    /// In this time.
    pub elapsed: Duration,
}

impl Bulk {
    /// Moves bytes until the time is over, then cuts the connections.
    ///
    /// # Errors
    /// If a stream breaks before its time.
    pub fn run(&self) -> Result<Moved> {
        let parts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.streams).map(|_| scope.spawn(|| self.stream())).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<_>>>()
        })?;
        ensure!(!parts.is_empty(), "a transfer without streams");
        let elapsed = parts.iter().map(|part| part.elapsed).max().unwrap_or_default();
        Ok(Moved { bytes: parts.iter().map(|part| part.bytes).sum(), elapsed })
    }

    fn stream(&self) -> Result<Moved> {
        let mut stream = connect(self.target).context("a bulk stream")?;
        let mut buffer = vec![b'x'; PIECE];
        let host = self.target;
        let head = match self.direction {
            Direction::Down => format!("GET /bulk/{ENDLESS} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            Direction::Up => format!("POST /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: {ENDLESS}\r\n\r\n"),
        };
        stream.write_all(head.as_bytes())?;
        let mut step = || match self.direction {
            Direction::Down => stream.read(&mut buffer),
            Direction::Up => stream.write(&buffer),
        };
        until(&mut step, |bytes, _| bytes >= WARM)?;
        until(&mut step, |_, elapsed| elapsed >= self.length)
    }
}

fn until(step: &mut impl FnMut() -> io::Result<usize>, over: impl Fn(u64, Duration) -> bool) -> Result<Moved> {
    let (mut bytes, start) = (0, Instant::now());
    loop {
        match step() {
            Ok(0) => {
                return Err(io::Error::from(ErrorKind::UnexpectedEof)).context("a bulk stream ended before its time");
            }
            Ok(length) => bytes += length as u64,
            Err(error) => return Err(error).context("a bulk stream"),
        }
        let elapsed = start.elapsed();
        if over(bytes, elapsed) {
            return Ok(Moved { bytes, elapsed });
        }
    }
}
