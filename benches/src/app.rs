//! The application behind every peer: an HTTP/1.1 server that does nearly nothing, so that it is not what is measured.
//!
//! Run as a process of its own (`countersign-bench app`) in the server's pod. It knows three things: a GET of `/N` gives N bytes, a GET of
//! `/bulk/N` too (N may be huge), a POST takes what its Content-Length says. It must never log, and never hold a request back.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A request's head must fit.
const MAX_HEAD: usize = 32 * 1024;
/// Payloads up to this are sent together with their head.
const PIECE: usize = 256 * 1024;

/// Serves until the listener breaks.
///
/// # Errors
/// If it cannot listen.
pub async fn serve(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    serve_on(socket.listen(4096)?).await
}

async fn serve_on(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move { one(stream).await });
    }
}

struct Asked {
    /// Bytes to send.
    send: u64,
    /// Bytes to take first.
    take: u64,
    close: bool,
    /// Length of the head.
    head: usize,
}

async fn one(mut stream: TcpStream) -> io::Result<()> {
    // Small until a bulk transfer: a thousand idle connections are to be cheap here too.
    let (mut buffer, mut have, mut answer) = (vec![0; 4096], 0, Vec::new());
    loop {
        let asked = loop {
            if let Some(asked) = read_head(&buffer[..have])? {
                break asked;
            }
            if have == buffer.len() {
                if have >= MAX_HEAD {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                buffer.resize(MAX_HEAD, 0);
            }
            match stream.read(&mut buffer[have..]).await? {
                0 => return Ok(()),
                length => have += length,
            }
        };
        let mut extra = (have - asked.head) as u64;
        if asked.take > extra {
            drain(&mut stream, asked.take - extra).await?;
            extra = 0;
        } else {
            extra -= asked.take;
        }
        let rest = have - usize::try_from(extra).unwrap_or(have)..have;
        have = rest.len();
        buffer.copy_within(rest, 0);
        respond(&mut stream, &asked, &mut answer).await?;
        if asked.close {
            return stream.shutdown().await;
        }
    }
}

async fn drain(stream: &mut TcpStream, mut left: u64) -> io::Result<()> {
    let mut sink = vec![0; PIECE];
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        match stream.read(&mut sink[..room]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => left -= length as u64,
        }
    }
    Ok(())
}

async fn respond(stream: &mut TcpStream, asked: &Asked, answer: &mut Vec<u8>) -> io::Result<()> {
    let close = if asked.close { "Connection: close\r\n" } else { "" };
    answer.clear();
    answer.extend_from_slice(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{close}\r\n", asked.send).as_bytes());
    if let Ok(small) = usize::try_from(asked.send)
        && small <= PIECE
    {
        answer.resize(answer.len() + small, b'x');
        return stream.write_all(answer).await;
    }
    stream.write_all(answer).await?;
    let (piece, mut left) = (vec![b'x'; PIECE], asked.send);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        stream.write_all(&piece[..length]).await?;
        left -= length as u64;
    }
    Ok(())
}

fn read_head(bytes: &[u8]) -> io::Result<Option<Asked>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| bad())?;
    let mut lines = text.split("\r\n");
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or_else(bad)?;
    let mut asked = Asked {
        send: path.rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(0),
        take: 0,
        close: false,
        head: end + 4,
    };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            asked.take = value.trim().parse().map_err(|_| bad())?;
        }
        asked.close |= name.eq_ignore_ascii_case("connection") && value.trim().eq_ignore_ascii_case("close");
    }
    Ok(Some(asked))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use countersign_kit::load::{Bulk, Direction, Plan};

    use super::*;

    fn start() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { serve_on(TcpListener::from_std(listener).unwrap()).await }).unwrap();
        });
        address
    }

    #[test]
    fn kept_and_fresh_connections_are_answered() {
        let target = start();
        for fresh in [false, true] {
            let plan = Plan { fresh, length: Duration::from_millis(50), ..Plan::new(target, "/1024") };
            let measured = plan.run(&mut |_| true).unwrap();
            assert!(measured.answered > 0 && measured.failed == 0, "{:?}", measured.failure);
        }
    }

    #[test]
    fn bytes_flow_both_ways() {
        let target = start();
        for direction in [Direction::Down, Direction::Up] {
            let moved = Bulk { target, direction, streams: 2, length: Duration::from_millis(50) }.run().unwrap();
            assert!(moved.bytes > 100_000, "{moved:?}");
        }
    }

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        assert!(read_head(b"GET /10 HTTP/1.1\r\nHost").unwrap().is_none());
        let asked =
            read_head(b"POST /sink HTTP/1.1\r\ncontent-length: 7\r\nConnection: Close\r\n\r\nabc").unwrap().unwrap();
        assert_eq!((asked.send, asked.take, asked.close), (0, 7, true));
        assert_eq!(read_head(b"GET /bulk/99 HTTP/1.1\r\n\r\n").unwrap().unwrap().send, 99);
    }
}
