//! The start, in order: ports; then the source, our own SVID and the gRPC server side by side; then ready. And the end.
//! Called by `main`, and by tests that run the controller inside their own process.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_admin::{Log, SocketError, health};
use countersign_credentials::{ClientAuth, IncomingLimits, SharedClock, Started, incoming};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Source};
use crate::inside::Inside;
use crate::metrics::Metrics;
use crate::server::{self, Registry, Shared};
use crate::source::dir::{self, Dir};
use crate::source::kubernetes::{self, ConnectError};
use crate::source::{Limits, Snapshot};

/// Without a change of credentials or picture, readiness is looked at again after this (an SVID may have expired).
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why the controller does not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StartError {
    #[error("admin socket {0}")]
    Admin(#[from] SocketError),
    #[error("cannot listen on {address} ({flag}): {source}")]
    Bind { flag: &'static str, address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Kubernetes(#[from] ConnectError),
    #[error("--ready-file {path}: {source}")]
    ReadyFile { path: PathBuf, source: io::Error },
}

/// A controller that runs. It ends when dropped, or in order by [`Running::shutdown`].
pub struct Running {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where health is served.
    pub health: SocketAddr,
    /// Where the admin socket is.
    pub admin: PathBuf,
    ready_file: Option<PathBuf>,
    inside: Arc<Inside>,
    shutdown: CancellationToken,
    grpc: JoinHandle<String>,
    source: JoinHandle<String>,
    others: Vec<JoinHandle<()>>,
}

/// Starts everything. When this returns `Ok` the ports are bound; [`Running::ready`] waits for the rest.
///
/// # Errors
/// A port or the admin socket cannot be bound.
pub async fn start(config: Config, clock: SharedClock, log: Log) -> Result<Running, StartError> {
    let (grpc, listen) = tcp("--listen", config.listen).await?;
    let (probes, health) = tcp("--health-listen", config.health_listen).await?;
    let admin = countersign_admin::bind(&config.admin_socket)?;

    let (publish, snapshots) = watch::channel(Arc::new(Snapshot::nothing()));
    let source = source(&config, publish).await?;
    let Started { credentials, status, task } =
        countersign_credentials::start(config.ca.clone(), config.own_id.clone(), clock.clone());
    let inside = Arc::new(Inside {
        snapshots: snapshots.clone(),
        registry: Arc::new(Registry::default()),
        metrics: Arc::new(Metrics::new()),
        credentials: credentials.clone(),
        ca: status,
        clock,
        config: config.dump(),
        log,
        shutdown: CancellationToken::new(),
    });
    let shared = Shared {
        snapshots,
        registry: Arc::clone(&inside.registry),
        metrics: Arc::clone(&inside.metrics),
        lines: Arc::default(),
        shutdown: inside.shutdown.clone(),
    };
    let connections = incoming(grpc, credentials, ClientAuth::Required, IncomingLimits::default(), counter(&inside));
    let probes = health::serve(probes, Arc::clone(&inside), counter(&inside));
    let admin = countersign_admin::serve(admin, inside.routes(), counter(&inside));
    Ok(Running {
        listen,
        health,
        admin: config.admin_socket.clone(),
        ready_file: config.ready_file,
        shutdown: inside.shutdown.clone(),
        grpc: tokio::spawn(async move { format!("{:?}", server::serve(shared, connections).await) }),
        source,
        others: vec![tokio::spawn(task), tokio::spawn(probes), tokio::spawn(admin)],
        inside,
    })
}

async fn source(config: &Config, publish: watch::Sender<Arc<Snapshot>>) -> Result<JoinHandle<String>, StartError> {
    let trust_domain = config.trust_domain.clone();
    Ok(match &config.source {
        Source::Directory(directory) => {
            let dir = Dir::new(directory.clone(), Limits::default(), trust_domain);
            tokio::spawn(async move { format!("{:?}", dir::run(dir, publish).await) })
        }
        Source::Kubernetes(ranges) => {
            let (client, ranges) = (kubernetes::client().await?, ranges.clone());
            tokio::spawn(async move { format!("{:?}", kubernetes::run(client, trust_domain, ranges, publish).await) })
        }
    })
}

fn counter(inside: &Arc<Inside>) -> impl Fn(&'static str) + Send + Sync + use<> {
    let metrics = Arc::clone(&inside.metrics);
    move |reason| metrics.connection_refused(reason)
}

async fn tcp(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { flag, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

impl Running {
    /// Waits until proxies can be served, and says so: in the log, and in the ready file. Borrows nothing.
    pub fn ready(&self) -> impl Future<Output = Result<(), StartError>> + Send + use<> {
        let (listen, health, admin) = (self.listen, self.health, self.admin.clone());
        let (inside, file) = (Arc::clone(&self.inside), self.ready_file.clone());
        async move {
            until_ready(&inside).await;
            tracing::info!(%listen, %health, admin = %admin.display(), "ready");
            let Some(file) = file else { return Ok(()) };
            let text = json!({ "listen": listen, "health": health, "admin": admin, "pid": std::process::id() });
            write_whole(&file, &format!("{text}\n")).map_err(|source| StartError::ReadyFile { path: file, source })
        }
    }

    /// Not ready from now on; streams are told to go. True if all ended within `limit`.
    pub async fn shutdown(mut self, limit: Duration) -> bool {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(limit, &mut self.grpc).await.is_ok();
        for task in std::mem::take(&mut self.others) {
            task.abort();
            // Cancelled: that is how it ends. Once all are gone so is the admin socket's file.
            let _ = task.await;
        }
        if let Some(file) = &self.ready_file {
            let _ = std::fs::remove_file(file);
        }
        ended
    }

    /// Ends only if a part ends by itself, which it never should.
    pub async fn failed(&mut self) -> String {
        let (part, ended) = tokio::select! {
            ended = &mut self.grpc => ("the gRPC server", ended),
            ended = &mut self.source => ("the source", ended),
        };
        match ended {
            Ok(how) => format!("{part} ended: {how}"),
            Err(error) => format!("{part} ended: {error}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.grpc.abort();
        self.source.abort();
        self.others.iter().for_each(JoinHandle::abort);
    }
}

async fn until_ready(inside: &Inside) {
    let (mut snapshots, mut credentials) = (inside.snapshots.clone(), inside.credentials.clone());
    let mut told = Cow::default();
    while let Err(why) = inside.ready() {
        if why != told {
            tracing::info!(why = &*why, "not ready yet");
            told = why;
        }
        tokio::select! {
            Ok(()) = snapshots.changed() => {}
            Ok(()) = credentials.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Whoever waits for the file must never read half of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut hidden = path.file_name().unwrap_or_default().to_owned();
    hidden.push(".tmp");
    let hidden = path.with_file_name(hidden);
    std::fs::write(&hidden, text)?;
    std::fs::rename(hidden, path)
}

#[cfg(test)]
mod tests;
