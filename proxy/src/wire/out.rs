//! Sealed bytes on their way to a socket. `records` fills it, `link` empties it.
//!
//! Where nothing waits it holds nothing: a thread's connections take turns with one buffer. It must never send a byte twice, or one that was
//! not filled.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

use super::BUFFER;
use super::records::MOST_SEALED;

/// What a full buffer of the app needs once it is sealed, and a record more.
const ROOM: usize = BUFFER + MOST_SEALED;

thread_local! {
    /// The buffer that waits for its next user.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What waits for the socket.
#[derive(Debug, Default)]
pub struct Out {
    /// Initialised throughout; what waits is `at..end`.
    bytes: Vec<u8>,
    at: usize,
    end: usize,
}

impl Out {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// What waits.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        &self.bytes[self.at..self.end]
    }

    /// Room for so many bytes behind what waits.
    pub(super) fn room(&mut self, length: usize) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = SPARE.take();
        }
        let end = self.end + length;
        if self.bytes.is_empty() {
            // Zeros as the kernel gives them: pages that nothing was written to take no memory.
            self.bytes = vec![0; end.max(ROOM)];
        } else if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.end..end]
    }

    /// So much of the room was filled.
    pub(super) fn filled(&mut self, length: usize) {
        self.end = (self.end + length).min(self.bytes.len());
    }

    /// So many bytes of what waits have gone.
    pub fn gone(&mut self, length: usize) {
        self.at = (self.at + length).min(self.end);
        if self.is_empty() {
            let bytes = std::mem::take(self).bytes;
            if bytes.len() == ROOM {
                SPARE.set(bytes);
            }
        }
    }

    /// Writes what the socket takes now; an error where that is not all.
    ///
    /// # Errors
    /// When the socket fails, or is full.
    pub fn try_flush(&mut self, io: &TcpStream) -> io::Result<()> {
        while !self.is_empty() {
            match io.try_write(self.waiting())? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                length => self.gone(length),
            }
        }
        Ok(())
    }

    /// Writes until nothing waits.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn poll_flush(&mut self, io: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, self.waiting()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => self.gone(length),
            }
        }
        Poll::Ready(Ok(()))
    }
}
