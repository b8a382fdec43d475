//! A sidecar that says what it likes, with an identity of the mesh.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use countersign_api::names::ALPN;
use countersign_kit::mesh::MeshPod;
use countersign_kit::testca::{LeafSpec, TestCa, careless_client, careless_server};
use countersign_kit::wait_until;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::world::World;

/// Longest that anything here may take.
pub const LIMIT: Duration = Duration::from_secs(20);

pub const OPEN: [u8; 4] = [1, 0, 0, 0];
pub const FIN: [u8; 4] = [3, 0, 0, 0];
pub const RST: [u8; 4] = [4, 0, 0, 0];
pub const ACCEPTED: [u8; 5] = [5, 0, 0, 1, 0];
pub const UNREACHABLE: [u8; 5] = [5, 0, 0, 1, 2];
pub const CLOSING: [u8; 4] = [6, 0, 0, 0];

pub fn data(bytes: &[u8]) -> Vec<u8> {
    let [.., a, b, c] = bytes.len().to_be_bytes();
    [&[2, a, b, c], bytes].concat()
}

/// A link on which anything may be said.
pub struct Rude(TlsStream<TcpStream>);

/// How a link may end before all was said.
#[derive(Clone, Copy, Debug)]
pub enum Torn {
    /// The end of TLS, and that of TCP behind it.
    Tls,
    /// The end of TCP alone.
    Tcp,
    /// A reset.
    Reset,
}

impl Torn {
    pub const ALL: [Self; 3] = [Self::Tls, Self::Tcp, Self::Reset];
}

/// One frame that was heard.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub body: Vec<u8>,
}

impl Rude {
    /// As a client that proves `account`, for so many seconds.
    pub async fn dial(to: SocketAddr, ca: &TestCa, account: &str, life: i64) -> Result<Self> {
        let spec = LeafSpec { ends: life, ..LeafSpec::of(&id(account)) };
        let config = careless_client(Some(ca.leaf(&spec)?), &[&TLS13], &[ALPN])?;
        let io = TcpStream::connect(to).await?;
        io.set_nodelay(true)?;
        let name = IpAddr::from([0, 0, 0, 0]).into();
        Ok(Self(timeout(LIMIT, TlsConnector::from(config).connect(name, io)).await??.into()))
    }

    /// Our own end of it.
    pub fn local_address(&self) -> Result<SocketAddr> {
        Ok(self.0.get_ref().0.local_addr()?)
    }

    /// As a server that proves `account`.
    pub async fn accept(io: TcpStream, ca: &TestCa, account: &str) -> Result<Self> {
        let config = careless_server(ca.leaf(&LeafSpec::of(&id(account)))?, &[ALPN])?;
        io.set_nodelay(true)?;
        Ok(Self(timeout(LIMIT, TlsAcceptor::from(Arc::clone(&config)).accept(io)).await??.into()))
    }

    pub async fn say(&mut self, bytes: &[u8]) -> Result<()> {
        timeout(LIMIT, self.0.write_all(bytes)).await.context("nobody takes it")??;
        Ok(self.0.flush().await?)
    }

    pub async fn hear(&mut self) -> Result<Frame> {
        let mut header = [0; 4];
        timeout(LIMIT, self.0.read_exact(&mut header)).await.context("nothing is said")??;
        let mut body = vec![0; usize::from(header[2]) << 8 | usize::from(header[3])];
        ensure!(header[1] == 0, "a frame of more than 64 KiB");
        timeout(LIMIT, self.0.read_exact(&mut body)).await.context("half a frame")??;
        Ok(Frame { kind: header[0], body })
    }

    pub async fn hears(&mut self, kind: u8) -> Result<Vec<u8>> {
        let frame = self.hear().await?;
        ensure!(frame.kind == kind, "expected kind {kind}: {frame:?}");
        Ok(frame.body)
    }

    /// Waits for an end; what is said before does not count.
    pub async fn is_cut(&mut self, limit: Duration) -> Result<()> {
        let ended = async { while self.0.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {} };
        timeout(limit, ended).await.context("it was not cut")
    }

    /// Says `bytes` again and again until the link ends.
    pub async fn flood(&mut self, bytes: &[u8], limit: Duration) -> Result<Duration> {
        let began = std::time::Instant::now();
        while began.elapsed() < limit {
            match timeout(limit.saturating_sub(began.elapsed()), self.0.write_all(bytes)).await {
                Err(_) => break,
                Ok(Err(_)) => return Ok(began.elapsed()),
                Ok(Ok(())) => {}
            }
        }
        bail!("it was not cut within {limit:?}")
    }

    /// Ends as one should.
    pub async fn leave(mut self) {
        let _ = self.0.shutdown().await;
    }

    /// Ends so, whatever frame is due.
    pub async fn tear(self, torn: Torn) -> Result<()> {
        match torn {
            Torn::Tls => self.leave().await,
            Torn::Tcp => drop(self),
            Torn::Reset => self.0.get_ref().0.set_zero_linger()?,
        }
        Ok(())
    }
}

pub fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

/// The mesh's own issuer.
pub fn stolen(world: &World) -> Result<TestCa> {
    let ca = world.mesh.folder().join("ca");
    TestCa::stolen(&ca.join("state"), &ca.join("state.key"))
}

pub fn address(pod: &MeshPod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), port)
}

/// Waits until no process of the pod's holds a connection with any of `peers`: the far ends, one by one, so that what other tests
/// do with the same pod at the same time does not count.
pub fn nothing_is_left_of(pod: &MeshPod, peers: &[SocketAddr]) -> Result<()> {
    ensure!(!peers.is_empty(), "nobody to look for");
    wait_until(LIMIT, || match held_with(pod, peers) {
        Ok(0) => Ok(()),
        held => Err(format!("{held:?} connections are still held")),
    })
}

fn held_with(pod: &MeshPod, peers: &[SocketAddr]) -> Result<usize> {
    let pid = pod.with_sidecar(|sidecar| Ok(sidecar.pid()))?;
    let mut held = 0;
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (remote, inode) = (fields.get(2).context("no remote")?, fields.get(9).context("no inode")?);
            // Inode 0: only the kernel still knows of it.
            held += usize::from(*inode != "0" && peers.contains(&end(remote)?));
        }
    }
    Ok(held)
}

/// An address as the kernel prints it: words of the host's byte order, and a port.
fn end(text: &str) -> Result<SocketAddr> {
    let (ip, port) = text.split_once(':').context("no port")?;
    let mut bytes = Vec::new();
    for word in 0..ip.len() / 8 {
        bytes.extend(u32::from_str_radix(&ip[word * 8..][..8], 16)?.to_ne_bytes());
    }
    let ip = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    let ip = ip.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from));
    Ok(SocketAddr::new(ip.map_err(|_| anyhow::anyhow!("{text}"))?.to_canonical(), u16::from_str_radix(port, 16)?))
}
