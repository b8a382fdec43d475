//! What the control tests talk with: an app that greets first and then echoes, and connections to it.
//!
//! Called by all tests of this room. The greeting proves that the app itself was reached: a local sidecar accepts whatever its
//! app dials, so that a connection alone proves nothing.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow, bail, ensure};
use countersign_kit::mesh::MeshPod;
use countersign_kit::{Namespace, Pod, Task, uninterrupted};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const GREETING: &str = "hello\n";
/// Longest wait for one read; whoever waits longer waits for nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// An app: greets, echoes, half-closes when its client does. Stops listening, and drops its connections, with the handle.
pub struct Echo {
    stop: Option<oneshot::Sender<()>>,
    task: Option<Task<()>>,
    greeted: Arc<AtomicUsize>,
}

impl Echo {
    /// Listens on all addresses of the pod when this returns.
    pub fn start(pod: &Namespace, port: u16) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (told, listening) = std::sync::mpsc::channel();
        let greeted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&greeted);
        let task = pod.start(move || async move {
            let bound = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await;
            let listener = match bound {
                Ok(listener) => listener,
                Err(error) => return drop(told.send(Err(error))),
            };
            let _ = told.send(Ok(()));
            tokio::select! {
                _ = stopped => {}
                () = serve(listener, count) => {}
            }
        })?;
        listening.recv()??;
        Ok(Self { stop: Some(stop), task: Some(task), greeted })
    }

    /// How many connections it had.
    pub fn greeted(&self) -> usize {
        self.greeted.load(Ordering::SeqCst)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            task.join();
        }
    }
}

async fn serve(listener: TcpListener, greeted: Arc<AtomicUsize>) {
    while let Ok((io, _)) = listener.accept().await {
        greeted.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(echo(io));
    }
}

async fn echo(mut io: tokio::net::TcpStream) -> io::Result<()> {
    io.set_nodelay(true)?;
    io.write_all(GREETING.as_bytes()).await?;
    let mut buffer = vec![0; 4096];
    loop {
        match io.read(&mut buffer).await? {
            0 => return io.shutdown().await,
            n => io.write_all(&buffer[..n]).await?,
        }
    }
}

/// How the other side ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Clean,
    Reset,
}

/// A connection of a pod's app.
pub struct Talk {
    stream: TcpStream,
    began: Instant,
    /// Refused so soon that connecting told.
    reset: bool,
    /// Its own end, by which the access log of its sidecar names it.
    pub local: SocketAddr,
}

impl Talk {
    /// Connects, and no more: through a sidecar this always succeeds, be it that the refusal comes later.
    pub fn dial(from: &Pod, to: SocketAddr) -> io::Result<Self> {
        let began = Instant::now();
        let own = from.addresses().into_iter().find(|own| own.is_ipv4() == to.is_ipv4());
        let own = own.ok_or(ErrorKind::AddrNotAvailable)?;
        let socket = from.inside(|| Socket::new(Domain::for_address(to), Type::STREAM, None))?;
        socket.bind(&SocketAddr::new(own, 0).into())?;
        let local = socket.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let reset = match socket.connect_timeout(&to.into(), PATIENCE) {
            Ok(()) => false,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
            Err(error) => return Err(error),
        };
        Ok(Self { stream: socket.into(), began, reset, local })
    }

    /// Connects, and hears the app's greeting.
    ///
    /// # Errors
    /// With what the dialling side's access log says of it.
    pub fn open(from: &MeshPod, to: SocketAddr) -> Result<Self> {
        let mut talk = Self::dial(from, to)?;
        match talk.greeted() {
            Ok(_) => Ok(talk),
            Err(error) => Err(told(from, talk.local, error)),
        }
    }

    /// Hears the app's greeting; how long after dialling it came.
    pub fn greeted(&mut self) -> io::Result<Duration> {
        self.hear(GREETING)?;
        Ok(self.began.elapsed())
    }

    /// Says a word, and hears it back.
    pub fn say(&mut self, word: &str) -> io::Result<()> {
        self.stream.write_all(word.as_bytes())?;
        self.hear(word)
    }

    /// Says a word, and waits for nothing.
    pub fn tell(&mut self, word: &str) -> io::Result<()> {
        if self.reset { Ok(()) } else { self.stream.write_all(word.as_bytes()) }
    }

    /// Hears a word.
    pub fn hear(&mut self, word: &str) -> io::Result<()> {
        if self.reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let mut heard = vec![0; word.len()];
        self.stream.read_exact(&mut heard)?;
        if heard == word.as_bytes() { Ok(()) } else { Err(io::Error::other(format!("heard {heard:?}"))) }
    }

    /// Ends well: half-close, then the other side's.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        match self.listen()? {
            0 => Ok(()),
            n => Err(io::Error::other(format!("{n} bytes after the end"))),
        }
    }

    /// One read.
    fn listen(&mut self) -> io::Result<usize> {
        uninterrupted(|| self.stream.read(&mut [0; 16]))
    }

    /// Ends by a reset.
    pub fn abort(self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// Whether it is still open after `span`; comes back at once when it ends.
    pub fn outlives(&mut self, span: Duration) -> Result<bool> {
        self.stream.set_read_timeout(Some(span))?;
        let read = self.listen();
        self.stream.set_read_timeout(Some(PATIENCE))?;
        match read {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            other => bail!("{other:?} instead of silence or a reset"),
        }
    }

    /// Waits until the other side ends it.
    pub fn end(&mut self, limit: Duration) -> Result<End> {
        if self.reset {
            return Ok(End::Reset);
        }
        self.stream.set_read_timeout(Some(limit))?;
        match self.listen() {
            Ok(0) => Ok(End::Clean),
            Ok(n) => bail!("{n} bytes instead of an end"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(End::Reset),
            Err(error) => bail!("no end within {limit:?}: {error}"),
        }
    }
}

/// A whole connection: greeting, a word there and back, a good end. Its own end of it.
///
/// # Errors
/// With what the dialling side's access log says of it.
pub fn exchange(from: &MeshPod, to: SocketAddr) -> Result<SocketAddr> {
    let mut talk = Talk::dial(from, to)?;
    let local = talk.local;
    let mut whole = || -> io::Result<()> {
        talk.greeted()?;
        talk.say("over\n")?;
        talk.finish()
    };
    match whole() {
        Ok(()) => Ok(local),
        Err(error) => Err(told(from, local, error)),
    }
}

/// An error, with what the sidecar has to say about it.
fn told(from: &MeshPod, local: SocketAddr, error: io::Error) -> Error {
    if !from.spec().sidecar {
        return error.into();
    }
    match account(from, local) {
        Ok(account) => anyhow!("{error}: {account}"),
        Err(none) => none.context(error),
    }
}

/// A connection that must be refused, by a reset; what the access log of the dialling side says of it.
pub fn refused(from: &MeshPod, to: SocketAddr) -> Result<Value> {
    let mut talk = Talk::dial(from, to)?;
    match talk.greeted() {
        Ok(_) => bail!("{to} was reached"),
        Err(error) => ensure!(error.kind() == ErrorKind::ConnectionReset, "refused by {error}, not by a reset"),
    }
    account(from, talk.local)
}

/// What the access log of the dialling side says of a connection of its app.
pub fn account(pod: &MeshPod, local: SocketAddr) -> Result<Value> {
    let local = json!(local.to_string());
    pod.access_line(|line| line["direction"] == "outbound" && line["source_address"] == local)
}
