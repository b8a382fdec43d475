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
        if let Err(Fault) = forth.poll(cx, client, server, &mut flow.sent) {
            return Poll::Ready(PlainEnd::ClientReset);
        }
        if let Err(Fault) = back.poll(cx, server, client, &mut flow.received) {
            return Poll::Ready(PlainEnd::ServerReset);
        }
        match (forth.over, back.over) {
            (Some(Over::Deaf), Some(_)) => Poll::Ready(PlainEnd::ServerReset),
            (Some(_), Some(Over::Deaf)) => Poll::Ready(PlainEnd::ClientReset),
            (Some(Over::Well), Some(Over::Well)) => Poll::Ready(PlainEnd::Done),
            _ => Poll::Pending,
        }
    })
    .await
}

/// The socket that is read failed.
struct Fault;

/// How one half ended.
#[derive(Clone, Copy)]
enum Over {
    /// By an end of what is read, passed on.
    Well,
    /// What is written to was reset. What it said before that is still on its way: the other half goes on to its end.
    Deaf,
}

#[derive(Default)]
struct Half {
    /// Read, and not yet written. The source is not read while there is some.
    waiting: Vec<u8>,
    eof: bool,
    over: Option<Over>,
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
        while self.over.is_none() {
            if !self.waiting.is_empty() {
                match write_some(cx, to, &self.waiting, count) {
                    Err(_) => self.over = Some(Over::Deaf),
                    Ok(None) => return Ok(()),
                    Ok(Some(n)) if n == self.waiting.len() => self.waiting = Vec::new(),
                    Ok(Some(n)) => drop(self.waiting.drain(..n)),
                }
                continue;
            }
            if self.eof {
                let _ = Pin::new(&mut *to).poll_shutdown(cx);
                self.over = Some(Over::Well);
                return Ok(());
            }
            let blocked = with_network_buffer(|buffer| {
                let mut read = ReadBuf::new(buffer);
                match Pin::new(&mut *from).poll_read(cx, &mut read) {
                    Poll::Pending => return Ok(true),
                    Poll::Ready(Err(_)) => return Err(Fault),
                    Poll::Ready(Ok(())) => {}
                }
                let bytes = read.filled();
                if bytes.is_empty() {
                    self.eof = true;
                    return Ok(false);
                }
                match write_some(cx, to, bytes, count) {
                    Err(_) => self.over = Some(Over::Deaf),
                    Ok(written) => self.waiting.extend_from_slice(&bytes[written.unwrap_or(0)..]),
                }
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
