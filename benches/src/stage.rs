//! What every peer shares: a client's and a server's pod, the application in the latter, certificates, free ports.
//!
//! Made once a run, inside the private namespaces. It must never differ from peer to peer.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_kit::mesh::binary;
use countersign_kit::testca::{LeafSpec, TestCa};
use countersign_kit::{Inside, Net, Pod, PodSpec, Running, wait_until};

/// Where the application listens.
pub const APP: u16 = 8080;
/// Who the client's side is.
pub const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
/// Who the server's side is.
pub const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/backend";
/// The server's certificate has a DNS name too: nginx cannot verify an identity.
pub const SERVER_NAME: &str = "backend.bench";
/// A program that is ready is so within this.
pub const READY: Duration = Duration::from_secs(20);

/// The two pods and what is in them.
pub struct Stage {
    _app: Running,
    /// The load runs here.
    pub client: Pod,
    /// The application runs here.
    pub server: Pod,
    /// Certificates: `ca.pem`, and in `client/` and `server/` `chain.pem`, `key.pem`, `both.pem`.
    pub certificates: PathBuf,
    folder: PathBuf,
    inside: Inside,
    next_port: AtomicU16,
    _net: Net,
}

impl Stage {
    /// Makes it; the application answers when this returns.
    ///
    /// # Errors
    /// If a pod cannot be made or the application does not start.
    pub fn new(inside: Inside) -> Result<Self> {
        let (net, client, server, app) = pods(inside, "bench")?;
        let folder = inside.scratch().join("bench");
        let certificates = folder.join("certificates");
        write_certificates(&certificates)?;
        Ok(Self { _app: app, client, server, certificates, folder, inside, next_port: AtomicU16::new(9000), _net: net })
    }

    /// A port that no peer uses yet.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }

    /// A folder of its own.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The proof that we are inside.
    #[must_use]
    pub fn inside(&self) -> Inside {
        self.inside
    }
}

/// The net, a client's and a server's pod on it, and the application in the latter, which answers when this returns.
///
/// # Errors
/// If a pod cannot be made or the application does not start.
pub fn pods(inside: Inside, name: &str) -> Result<(Net, Pod, Pod, Running)> {
    let net = Net::new(inside)?;
    let client = net.pod(PodSpec::numbered(&format!("{name}-client"), 51))?;
    let server = net.pod(PodSpec::numbered(&format!("{name}-server"), 52))?;
    tune(&client)?;
    tune(&server)?;
    let app = start_app(&server)?;
    Ok((net, client, server, app))
}

/// Many short connections between two addresses: their ports must not run out, nor their queues.
///
/// # Errors
/// If the kernel has no such settings.
pub fn tune(pod: &Pod) -> Result<()> {
    pod.sysctl("ipv4/tcp_tw_reuse", "1")?;
    pod.sysctl("ipv4/ip_local_port_range", "16384 65000")?;
    pod.sysctl("core/somaxconn", "4096")
}

/// Starts the application in a pod.
///
/// # Errors
/// If it does not listen in time.
pub fn start_app(pod: &Pod) -> Result<Running> {
    let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, APP));
    let app = pod.command(binary("countersign-bench")?).args(["app", "--listen", &listen.to_string()]).spawn()?;
    let address = SocketAddr::new(pod.v4().into(), APP);
    pod.inside(|| wait_until(READY, || TcpStream::connect_timeout(&address, READY)))
        .with_context(|| format!("the application does not listen: {}", app.log().join("; ")))?;
    Ok(app)
}

fn write_certificates(folder: &Path) -> Result<()> {
    let ca = TestCa::new("bench root")?;
    for (side, id) in [("client", CLIENT_ID), ("server", SERVER_ID)] {
        let folder = folder.join(side);
        std::fs::create_dir_all(&folder)?;
        let mut spec = LeafSpec { ends: 24 * 3600, ..LeafSpec::of(id) };
        if side == "server" {
            spec.names.push(SERVER_NAME.to_owned());
        }
        ca.leaf(&spec)?.write(&folder)?;
        let read = |name: &str| std::fs::read_to_string(folder.join(name));
        std::fs::write(folder.join("both.pem"), read("chain.pem")? + &read("key.pem")?)?;
    }
    Ok(std::fs::write(folder.join("ca.pem"), ca.root_pem())?)
}
