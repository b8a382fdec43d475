//! Socket <-> socket: where no mutual TLS is spoken (un-meshed addresses, the pod's own address).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

use super::Flow;
use crate::permit::Permit;
use crate::wire::with_network_buffer;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainEnd {
    /// Both halves closed well.
    Done,
    /// The client's socket was reset or failed; the server's must be reset too.
    ClientReset,
    /// The server's socket was reset or failed; the client's must be reset too.
    ServerReset,
}

/// Relays between two sockets. `first` are bytes already read from the client.
pub async fn splice(
    _permit: &Permit,
    client: &mut TcpStream,
    first: Vec<u8>,
    server: &mut TcpStream,
    flow: &mut Flow,
) -> PlainEnd {
    let mut forth = Half { waiting: first, ..Half::default() };
    let mut back = Half::default();
    poll_fn(|cx| {
        match forth.poll(cx, client, server, &mut flow.sent) {
            Err(Fault::Source) => return Poll::Ready(PlainEnd::ClientReset),
            Err(Fault::Sink) => return Poll::Ready(PlainEnd::ServerReset),
            Ok(()) => {}
        }
        match back.poll(cx, server, client, &mut flow.received) {
            Err(Fault::Source) => return Poll::Ready(PlainEnd::ServerReset),
            Err(Fault::Sink) => return Poll::Ready(PlainEnd::ClientReset),
            Ok(()) => {}
        }
        if forth.over && back.over { Poll::Ready(PlainEnd::Done) } else { Poll::Pending }
    })
    .await
}

/// Whose socket failed.
enum Fault {
    Source,
    Sink,
}

#[derive(Default)]
struct Half {
    /// Read, and not yet written. The source is not read while there is some.
    waiting: Vec<u8>,
    eof: bool,
    over: bool,
}

impl Half {
    /// Moves what can be moved; returns when either socket is not ready, or the half is over.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: &mut u64,
    ) -> Result<(), Fault> {
        while !self.over {
            if !self.waiting.is_empty() {
                match write_some(cx, to, &self.waiting, count).map_err(|_| Fault::Sink)? {
                    None => return Ok(()),
                    Some(n) if n == self.waiting.len() => self.waiting = Vec::new(),
                    Some(n) => drop(self.waiting.drain(..n)),
                }
                continue;
            }
            if self.eof {
                let _ = Pin::new(&mut *to).poll_shutdown(cx);
                self.over = true;
                return Ok(());
            }
            let blocked = with_network_buffer(|buffer| {
                let mut read = ReadBuf::new(buffer);
                match Pin::new(&mut *from).poll_read(cx, &mut read) {
                    Poll::Pending => return Ok(true),
                    Poll::Ready(Err(_)) => return Err(Fault::Source),
                    Poll::Ready(Ok(())) => {}
                }
                let bytes = read.filled();
                if bytes.is_empty() {
                    self.eof = true;
                    return Ok(false);
                }
                let written = write_some(cx, to, bytes, count).map_err(|_| Fault::Sink)?.unwrap_or(0);
                self.waiting.extend_from_slice(&bytes[written..]);
                Ok(false)
            })?;
            if blocked {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn write_some(cx: &mut Context<'_>, to: &mut TcpStream, bytes: &[u8], count: &mut u64) -> io::Result<Option<usize>> {
    match Pin::new(to).poll_write(cx, bytes) {
        Poll::Pending => Ok(None),
        Poll::Ready(Err(e)) => Err(e),
        Poll::Ready(Ok(n)) => {
            *count += n as u64;
            Ok(Some(n))
        }
    }
}
