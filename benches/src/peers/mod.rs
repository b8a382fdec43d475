//! The peers: who is measured, one file each.
//!
//! **To add a peer**: write a file with a type that implements [`Peer`], and add it to [`all`]. `start` puts one process (or more) into
//! `stage.client`, where the load arrives, and one into `stage.server`, which dials the application at 127.0.0.1:8080; between
//! them goes what is to be compared, TLS 1.3 only and both identities verified where it is mutual TLS: the certificates are in
//! `stage.certificates`. One worker thread a process, no session resumption, no access log: as the others. A peer must never be
//! given less to do than the others, nor be configured worse than its own manual advises.

mod countersign;
mod direct;
mod envoy;
mod haproxy;
mod nginx;
mod relay;

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use countersign_kit::load::Idle;
use countersign_kit::nameless;
use countersign_kit::{Namespace, PodCommand, Running, wait_until};

use crate::stage::{APP, READY, Stage};

pub use countersign::{Countersign, Settings};
pub use relay::Relay;

/// Somebody who carries bytes from the client's pod to the application.
pub trait Peer {
    /// Short, lower case, stable: `--only` and the JSON use it.
    fn name(&self) -> &'static str;
    /// What it is, for the table: a few words.
    fn about(&self) -> &'static str;
    /// Whether both sides verify each other by certificates. It is then held to it: a client without one must be refused.
    fn claims_mtls(&self) -> bool;
    /// What is missing here to run it, with what to do about it.
    fn lacks(&self) -> Option<String>;
    /// Its program's own words.
    fn version(&self) -> String;
    /// The file that runs on each side, for its size.
    fn binary(&self) -> Option<PathBuf>;
    /// Starts both sides. They need not be ready yet.
    ///
    /// # Errors
    /// If something cannot be started.
    fn start<'a>(&self, stage: &'a Stage) -> Result<Up<'a>>;
}

/// A peer that runs; it ends when this is dropped.
pub struct Up<'a> {
    /// From where the load goes.
    pub place: Place<'a>,
    /// Where the load goes.
    pub target: SocketAddr,
    /// The processes of the client's side; their children count too.
    pub client: Vec<u32>,
    /// The processes of the server's side.
    pub server: Vec<u32>,
    /// For peers that claim mutual TLS: where a client without a certificate is to be refused.
    pub guarded: Option<Guarded<'a>>,
    /// What has to live as long.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// A namespace, borrowed from the stage or owned by the peer.
pub enum Place<'a> {
    /// The stage's.
    Stage(&'a Namespace),
    /// The peer's own.
    Own(Box<dyn std::ops::Deref<Target = Namespace> + Send + Sync>),
}

impl std::ops::Deref for Place<'_> {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        match self {
            Self::Stage(namespace) => namespace,
            Self::Own(pod) => pod,
        }
    }
}

/// The server side's TLS, reached by going round the client's side.
pub struct Guarded<'a> {
    /// From where it is tried.
    pub from: Place<'a>,
    /// Its address.
    pub address: SocketAddr,
    /// What a client of it offers.
    pub alpn: Vec<Vec<u8>>,
    /// What would be answered, if a client were let in.
    pub question: Vec<u8>,
}

impl<'a> Guarded<'a> {
    fn http(stage: &'a Stage, address: SocketAddr) -> Self {
        Self {
            from: Place::Stage(&stage.client),
            address,
            alpn: Vec::new(),
            question: b"GET /16 HTTP/1.1\r\nHost: bench\r\n\r\n".to_vec(),
        }
    }
}

impl Guarded<'_> {
    /// How a client without a certificate is refused, in words.
    ///
    /// # Errors
    /// If it is not.
    pub fn refusal(&self) -> Result<String> {
        let (address, alpn, question) = (self.address, &self.alpn, &self.question);
        let alpn: Vec<&[u8]> = alpn.iter().map(Vec::as_slice).collect();
        self.from.run(|| nameless::refusal(address, &alpn, question))
    }
}

impl Up<'_> {
    /// Waits until a request goes through.
    ///
    /// # Errors
    /// If none does in time.
    pub fn ready(&self) -> Result<()> {
        self.place.inside(|| wait_until(READY, || Idle::open(self.target, "/16", 1))).map(drop)
    }
}

/// Every peer, in the order of the table, and `before`: another build of our sidecar, if one is to be compared.
#[must_use]
pub fn all(before: Option<&Path>) -> Vec<Box<dyn Peer>> {
    let mut all: Vec<Box<dyn Peer>> = vec![
        Box::new(direct::Direct),
        Box::new(Relay::small()),
        Box::new(Relay::large()),
        Box::new(Relay::redirected()),
        Box::new(Countersign::default()),
        Box::new(envoy::Envoy { http: false }),
        Box::new(envoy::Envoy { http: true }),
        Box::new(nginx::Nginx { http: false }),
        Box::new(nginx::Nginx { http: true }),
        Box::new(haproxy::Haproxy { http: false }),
        Box::new(haproxy::Haproxy { http: true }),
    ];
    if let Some(before) = before {
        let before = Countersign { before: Some(before.to_path_buf()), ..Countersign::default() };
        all.insert(5, Box::new(before));
    }
    all
}

/// Addresses of a peer whose two sides are programs with a configuration file each.
struct Pair<'a> {
    stage: &'a Stage,
    name: &'static str,
    /// The client's side listens here.
    client: SocketAddr,
    /// The server's side listens here.
    server: SocketAddr,
    /// The application, for the server's side.
    app: SocketAddr,
}

impl<'a> Pair<'a> {
    fn new(stage: &'a Stage, name: &'static str) -> Self {
        Self {
            client: SocketAddr::from((Ipv4Addr::LOCALHOST, stage.port())),
            server: SocketAddr::new(stage.server.v4().into(), stage.port()),
            app: SocketAddr::from((Ipv4Addr::LOCALHOST, APP)),
            stage,
            name,
        }
    }

    /// Writes a side's configuration; gives its path and the side's folder.
    fn configure(&self, side: &str, text: &str) -> Result<(String, String)> {
        let folder = self.stage.folder(&format!("{}-{side}", self.name))?;
        let file = folder.join("config");
        std::fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok((file.display().to_string(), folder.display().to_string()))
    }

    /// `side` is `client` or `server`: its chain, key, both in one file, and the root.
    fn certificates(&self, side: &str) -> [String; 4] {
        let folder = &self.stage.certificates;
        ["chain.pem", "key.pem", "both.pem", "../ca.pem"].map(|name| folder.join(side).join(name).display().to_string())
    }

    /// Starts both sides.
    fn up(self, client: PodCommand, server: PodCommand, mtls: bool) -> Result<Up<'a>> {
        let sides: Vec<Running> = vec![client.spawn()?, server.spawn()?];
        let up = Up {
            place: Place::Stage(&self.stage.client),
            target: self.client,
            client: vec![sides[0].pid()],
            server: vec![sides[1].pid()],
            guarded: mtls.then(|| Guarded::http(self.stage, self.server)),
            keep: Box::new(()),
        };
        if let Err(error) = up.ready() {
            let log = |side: &Running| side.log().iter().rev().take(5).rev().cloned().collect::<Vec<_>>().join("\n");
            bail!("{error:#}\nclient's side:\n{}\nserver's side:\n{}", log(&sides[0]), log(&sides[1]));
        }
        Ok(Up { keep: Box::new(sides), ..up })
    }
}

/// Where a program is.
fn find(program: &str) -> Option<PathBuf> {
    countersign_kit::programs::find(program)
}

/// The reason why a program's peer cannot run here.
fn missing(program: &str) -> Option<String> {
    let package = countersign_kit::programs::package(program);
    find(program).is_none().then(|| format!("{program} is not installed (apt-get install {package})"))
}

/// The first line of what a program says of itself, on either stream.
fn first_line(program: Option<PathBuf>, argument: &str) -> String {
    let output = program.and_then(|program| Command::new(program).arg(argument).output().ok());
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("unknown").to_owned()
}
