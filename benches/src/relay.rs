//! Our own plain relay as a process (`countersign-bench relay`): the floor where HAProxy is not installed.
//!
//! It must never do more than the kit's relay does.

use std::io;
use std::net::SocketAddr;

use countersign_kit::relay::relay_with;
use tokio::net::TcpSocket;

/// Relays until the listener breaks.
///
/// # Errors
/// If it cannot listen.
pub async fn serve(address: SocketAddr, target: SocketAddr, buffer: usize) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    relay_with(socket.listen(4096)?, target, buffer).await
}
