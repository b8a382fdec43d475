//! A few bytes each way over records, without frames: the second connection of `tls::reauth`.
//!
//! It must never read more than its callers wait for.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::out::Out;
use super::records::{MOST_SEALED, Opened, RecordError, Records};

/// One connection whose handshake is complete. Its callers set the deadlines.
#[derive(Debug)]
pub struct Talk {
    io: TcpStream,
    records: Records,
    sealed: Vec<u8>,
}

impl Talk {
    /// `unread`: what was read beyond the handshake.
    #[must_use]
    pub fn new(io: TcpStream, records: Records, unread: Vec<u8>) -> Self {
        Self { io, records, sealed: unread }
    }

    /// Says something short.
    ///
    /// # Errors
    /// When the socket or the cipher fails.
    pub async fn say(&mut self, words: &[u8]) -> io::Result<()> {
        let mut out = Out::default();
        self.records.seal(&[words], &mut out).map_err(broken)?;
        self.send(out).await
    }

    /// Exactly so many bytes, in one record or several.
    ///
    /// # Errors
    /// When the peer ends before that, says more, or breaks TLS.
    pub async fn hear<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (mut words, mut heard) = ([0; N], 0);
        let mut plain = vec![0; MOST_SEALED];
        while heard < N {
            match self.records.open(&self.sealed, &mut plain) {
                Ok(Some((taken, opened))) => {
                    self.sealed.drain(..taken);
                    match opened {
                        Opened::Data(length) => {
                            let place = words.get_mut(heard..heard + length);
                            place.ok_or_else(|| broken(RecordError::Form))?.copy_from_slice(&plain[..length]);
                            heard += length;
                        }
                        Opened::Nothing => {}
                        Opened::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
                    }
                }
                // No longer than a record: a longer one is refused by its header.
                Ok(None) => {
                    if self.io.read_buf(&mut self.sealed).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => {
                    let mut out = Out::default();
                    self.records.seal_alert(error, &mut out);
                    let _ = self.send(out).await;
                    return Err(broken(error));
                }
            }
        }
        Ok(words)
    }

    /// Says that nothing more is said.
    ///
    /// # Errors
    /// When the socket or the cipher fails.
    pub async fn end(&mut self) -> io::Result<()> {
        let mut out = Out::default();
        self.records.seal_end(&mut out).map_err(broken)?;
        self.send(out).await?;
        self.io.shutdown().await
    }

    async fn send(&mut self, mut out: Out) -> io::Result<()> {
        std::future::poll_fn(|cx| out.poll_flush(&mut self.io, cx)).await
    }
}

fn broken(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
