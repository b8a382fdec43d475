//! A plain TCP relay: the floor beside which the mesh's latency is shown. No TLS, no rules, nothing but the copying.
//!
//! Called by the demo and the benches, inside a pod. It must never do less than a proxy has to: it dials for each
//! connection, forwards both ways and passes half-closes on.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};

/// As the proxy's own.
const BUFFER: usize = 64 * 1024;

/// Relays every connection that `listener` gets to `target`, until it is dropped.
///
/// # Errors
/// If the listener breaks; what happens to one connection ends that connection only.
pub async fn relay(listener: TcpListener, target: SocketAddr) -> io::Result<()> {
    relay_with(listener, target, BUFFER).await
}

/// The same with buffers of another size, in bytes: one for each direction of each connection.
///
/// # Errors
/// As [`relay`].
pub async fn relay_with(listener: TcpListener, target: SocketAddr, buffer: usize) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move { one(stream, target, buffer).await });
    }
}

async fn one(mut client: TcpStream, target: SocketAddr, buffer: usize) -> io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, buffer, buffer).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_and_half_closes_pass_both_ways() {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        tokio::spawn(relay(front, app.local_addr().unwrap()));
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    }
}
