//! HTTP/2 as an attacker speaks it: frames by hand, over TLS with any certificate or none.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use countersign_kit::testca::{Leaf, careless_client};
use rustls::version::TLS13;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const LIMIT: Duration = Duration::from_secs(10);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const CONTINUATION: u8 = 9;
pub const END_HEADERS: u8 = 4;

/// TLS is up and the preface said.
pub async fn dial(to: SocketAddr, leaf: Option<Leaf>) -> Result<TlsStream<TcpStream>> {
    let config = careless_client(leaf, &[&TLS13], &[b"h2"])?;
    let io = timeout(LIMIT, TcpStream::connect(to)).await??;
    let name = IpAddr::from([0, 0, 0, 0]).into();
    let mut tls = timeout(LIMIT, TlsConnector::from(config).connect(name, io)).await??;
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    timeout(LIMIT, tls.write_all(&hello)).await??;
    tls.flush().await?;
    Ok(tls)
}

pub fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), body].concat()
}

/// The headers of a gRPC call, nothing compressed.
pub fn call(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http
    literal(&mut block, &[0x04], path.as_bytes());
    literal(&mut block, &[0x01], b"countersign");
    literal(&mut block, &[0x0f, 0x10], b"application/grpc");
    literal(&mut block, b"\x00\x02te", b"trailers");
    block
}

/// A header of no name that is known, and of so many bytes.
pub fn filler(length: usize) -> Vec<u8> {
    let mut block = Vec::new();
    literal(&mut block, b"\x00\x01x", &vec![b'a'; length]);
    block
}

fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.extend_from_slice(name);
    if let Some(mut rest) = value.len().checked_sub(127) {
        block.push(127);
        while rest >= 128 {
            block.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        block.push(u8::try_from(rest).unwrap());
    } else {
        block.push(u8::try_from(value.len()).unwrap());
    }
    block.extend_from_slice(value);
}

/// A gRPC message that says how long it is, truly or not.
pub fn message(length: u32, body: &[u8]) -> Vec<u8> {
    [&[0][..], &length.to_be_bytes(), body].concat()
}
