//! A client that speaks TLS and shows no certificate: who claims mutual TLS must not answer it.
//!
//! Called by the benches, inside a pod's own runtime. It must never call silence a refusal.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::testca::careless_client;

const LIMIT: Duration = Duration::from_secs(5);

/// Connects without a certificate, sends `question` and gives back how it was refused, in words. (A TLS 1.3 client learns of its
/// refusal after its own side of the handshake; a status of 4xx is a refusal too.)
///
/// # Errors
/// If it was answered, or neither answered nor refused in 5 s, or if nobody listens.
pub async fn refusal(address: SocketAddr, alpn: &[&[u8]], question: &[u8]) -> Result<String> {
    let stream = timeout(LIMIT, TcpStream::connect(address)).await.context("no connection in time")??;
    let connector = TlsConnector::from(careless_client(None, &[&TLS13], alpn)?);
    let name = IpAddr::from([0, 0, 0, 0]).into();
    let mut tls = match timeout(LIMIT, connector.connect(name, stream)).await.context("no handshake in time")? {
        Ok(tls) => tls,
        Err(error) => return Ok(format!("in the handshake: {error}")),
    };
    let mut said = vec![0; 4096];
    let read = async {
        tls.write_all(question).await?;
        tls.flush().await?;
        tls.read(&mut said).await
    };
    match timeout(LIMIT, read).await.context("neither answered nor refused in time")? {
        Err(error) => Ok(format!("after the handshake: {error}")),
        Ok(0) => Ok("after the handshake: closed".to_owned()),
        Ok(length) if said[..length].starts_with(b"HTTP/1.1 4") => {
            Ok(format!("by {}", String::from_utf8_lossy(&said[..length]).lines().next().unwrap_or_default()))
        }
        Ok(length) => bail!("a client without a certificate was answered with {length} bytes"),
    }
}
