//! The start, in order: state, audit log, token keys, own SVID; then the ports; then ready. And the end. Called by `main`, and
//! by tests that run the CA inside their own process. Whatever fails at the start fails before a port is bound to the world.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use countersign_admin::{AdminSocket, Log, SocketError, health};
use countersign_credentials::{ClientAuth, IncomingLimits, SharedClock, incoming};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::attest::{Attestor, Jwks, JwksError};
use crate::audit::{Audit, AuditError, Event};
use crate::clock::millis;
use crate::config::Config;
use crate::inside::Inside;
use crate::issue::{Issuance, Parts};
use crate::metrics::Metrics;
use crate::own::Own;
use crate::server::Service;
use crate::state::{self, DirectoryError, Opened, State, StateError, write_whole};
use crate::upkeep::{Upkeep, UpkeepError, record_ca};
use crate::watch::Bundles;

/// Why the CA does not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StartError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    File(#[from] DirectoryError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("--jwks-file {0}")]
    Jwks(#[from] JwksError),
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    #[error("admin socket {0}")]
    Admin(#[from] SocketError),
    #[error("cannot listen on {address} ({flag}): {source}")]
    Bind { flag: &'static str, address: SocketAddr, source: std::io::Error },
}

/// A CA that serves. It ends when dropped, or in order by [`Running::shutdown`].
pub struct Running {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where health is served.
    pub health: SocketAddr,
    /// Where the admin socket is.
    pub admin: PathBuf,
    /// Where the public bundle is.
    pub bundle: PathBuf,
    shutdown: CancellationToken,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    others: Vec<JoinHandle<()>>,
}

/// Starts everything. When this returns `Ok`, callers are served.
pub async fn start(config: Config, clock: SharedClock, log: Log) -> Result<Running, StartError> {
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    if let Some(file) = &config.ready_file {
        // One of a former run would name ports that are gone.
        let _ = std::fs::remove_file(file);
    }
    let jwks = Arc::new(Jwks::open(&config.jwks_file, config.token.clone())?);
    let (state, audit) = open_state(&config, &clock).await?;
    let bundle_pem = state.authority().root().pem();
    for file in &config.bundle_files {
        write_whole(file, bundle_pem.as_bytes(), 0o644)?;
    }
    let metrics = Arc::new(Metrics::new());
    let own = Arc::new(Own::new(config.own_id.clone(), config.terms, clock.clone()));
    let upkeep = Upkeep {
        state: Arc::clone(&state),
        own: Arc::clone(&own),
        jwks: Arc::clone(&jwks),
        audit: audit.clone(),
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
    };
    upkeep.renew().await?;

    let ports = Ports::bind(&config).await?;
    let shutdown = CancellationToken::new();
    let bundles =
        Arc::new(Bundles::new(Arc::clone(&state), clock.clone(), config.max_watchers, shutdown.child_token()));
    let parts = Parts {
        attestor: Attestor::Jwks(Arc::clone(&jwks)),
        state: Arc::clone(&state),
        audit,
        clock: clock.clone(),
        own_id: config.own_id.clone(),
        terms: config.terms,
        metrics: Arc::clone(&metrics),
    };
    let issuance = Arc::new(Issuance::new(parts, config.calls));
    let inside = Arc::new(Inside {
        state,
        own: Arc::clone(&own),
        jwks,
        bundles: Arc::clone(&bundles),
        metrics: Arc::clone(&metrics),
        clock,
        config: config.dump(),
        log,
        shutdown: shutdown.clone(),
    });
    let limits = IncomingLimits {
        connections: config.max_connections,
        handshakes: config.max_handshakes,
        ..IncomingLimits::default()
    };
    let (listen, health) = (ports.listen, ports.health);
    let incoming = incoming(ports.grpc, own.subscribe(), ClientAuth::Optional, limits, counter(&metrics));
    let probes = health::serve(ports.probes, Arc::clone(&inside), counter(&metrics));
    let admin = countersign_admin::serve(ports.admin, inside.routes(), counter(&metrics));
    let service = Service::new(issuance, bundles, metrics);
    let running = Running {
        listen,
        health,
        admin: config.admin_socket.clone(),
        bundle: config.state_dir.join(state::BUNDLE),
        grpc: tokio::spawn(service.serve(incoming, shutdown.clone().cancelled_owned())),
        others: vec![tokio::spawn(upkeep.run()), tokio::spawn(probes), tokio::spawn(admin)],
        shutdown,
    };
    running.announce(&config)?;
    Ok(running)
}

fn counter(metrics: &Arc<Metrics>) -> impl Fn(&'static str) + Send + Sync + use<> {
    let metrics = Arc::clone(metrics);
    move |reason| metrics.connection_refused(reason)
}

async fn open_state(config: &Config, clock: &SharedClock) -> Result<(Arc<State>, Audit), StartError> {
    let (now, now_ms) = (clock.now(), millis(&**clock));
    let opened = state::open(&config.state_dir, config.state_key.clone(), &config.trust_domain, config.lifetimes, now)?;
    // Only now, when what is there could be read, is the log opened: it is the first file that is written.
    let audit = Audit::open(&config.audit_log)?;
    let state = match opened {
        Opened::Found(state) => state,
        Opened::Vacant(vacant) => {
            let draft = vacant.draft(now)?;
            let _root = record_ca(&audit, Event::Root, &draft, now_ms).await?;
            let _issuer = record_ca(&audit, Event::Issuer, &draft, now_ms).await?;
            tracing::info!(trust_domain = %config.trust_domain, root = draft.root().serial(), "a new root was made");
            vacant.commit(draft)?
        }
    };
    Ok((Arc::new(state), audit))
}

struct Ports {
    grpc: TcpListener,
    listen: SocketAddr,
    probes: TcpListener,
    health: SocketAddr,
    admin: AdminSocket,
}

impl Ports {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let (grpc, listen) = tcp("--listen", config.listen).await?;
        let (probes, health) = tcp("--health-listen", config.health_listen).await?;
        let admin = countersign_admin::bind(&config.admin_socket)?;
        Ok(Self { grpc, listen, probes, health, admin })
    }
}

async fn tcp(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { flag, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

impl Running {
    /// The file first: who waits for the log line finds it.
    fn announce(&self, config: &Config) -> Result<(), StartError> {
        if let Some(file) = &config.ready_file {
            let text = json!({
                "listen": self.listen, "health": self.health, "admin": self.admin, "bundle": self.bundle,
                "pid": std::process::id(),
            });
            write_whole(file, format!("{text}\n").as_bytes(), 0o644)?;
        }
        tracing::info!(
            listen = %self.listen, health = %self.health, admin = %self.admin.display(),
            bundle = %self.bundle.display(), "ready"
        );
        Ok(())
    }

    /// Not ready from now on; streams end, calls under way may end. True if all ended within `limit`.
    pub async fn shutdown(mut self, limit: std::time::Duration) -> bool {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(limit, &mut self.grpc).await.is_ok();
        for task in std::mem::take(&mut self.others) {
            task.abort();
            // Cancelled: that is how it ends. Once all are gone the state's lock is free, and the admin socket's file gone.
            let _ = task.await;
        }
        ended
    }

    /// Ends only if serving ends by itself, which it never should.
    pub async fn failed(&mut self) -> String {
        match (&mut self.grpc).await {
            Ok(Ok(())) => "the gRPC server ended".to_owned(),
            Ok(Err(error)) => format!("the gRPC server ended: {error}"),
            Err(error) => format!("the gRPC server ended: {error}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.grpc.abort();
        self.others.iter().for_each(JoinHandle::abort);
    }
}

#[cfg(test)]
mod tests;
