//! The start: configuration, ports, upkeep; and the end. Called by `main`.
//!
//! It is started whether the API server answers or not: it says that it is not ready until there is a certificate.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use countersign_admin::{Log, SocketError, health};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::inside::Inside;
use crate::kubernetes::{Cluster, ConnectError, Namespaces};
use crate::metrics::Metrics;
use crate::server::Webhooks;
use crate::tls::Serving;
use crate::upkeep::{Clock, Upkeep};

/// Why the injector does not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StartError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("--admin-socket {0}")]
    Admin(#[from] SocketError),
    #[error("cannot listen on {address} ({flag}): {source}")]
    Bind { flag: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("--ready-file: {0}")]
    ReadyFile(std::io::Error),
}

/// An injector that serves. It ends when dropped, or in order by [`Running::shutdown`].
pub struct Running {
    /// Where HTTPS is served.
    pub listen: SocketAddr,
    /// Where health is served.
    pub health: SocketAddr,
    ending: CancellationToken,
    closing: CancellationToken,
    webhooks: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
}

/// Starts everything.
///
/// # Errors
/// A port or a socket is taken, or there is no way to an API server.
pub async fn start(config: Config, clock: Clock, log: Log) -> Result<Running, StartError> {
    if let Some(file) = &config.ready_file {
        // One of a former run would name ports that are gone.
        let _ = std::fs::remove_file(file);
    }
    let cluster = Cluster::connect(config.kubeconfig.as_deref(), &config.mesh.system_namespace).await?;
    let (https, listen) = tcp("--listen", config.listen).await?;
    let (probes, health) = tcp("--health-listen", config.health_listen).await?;
    let admin = countersign_admin::bind(&config.admin_socket)?;

    let (metrics, serving) = (Arc::new(Metrics::default()), Serving::default());
    let (ending, closing) = (CancellationToken::new(), CancellationToken::new());
    let published = Arc::new(AtomicBool::new(false));
    let inside = Arc::new(Inside {
        serving: serving.clone(),
        published: Arc::clone(&published),
        metrics: Arc::clone(&metrics),
        clock: Arc::clone(&clock),
        config: config.dump(),
        log,
        ending: ending.clone(),
    });
    let upkeep = Upkeep {
        cluster: cluster.clone(),
        terms: config.terms,
        serving: serving.clone(),
        clock,
        metrics: Arc::clone(&metrics),
        published,
    };
    let counter = |metrics: &Arc<Metrics>| {
        let metrics = Arc::clone(metrics);
        move |reason| metrics.connection_refused(reason)
    };
    let others = vec![
        tokio::spawn(upkeep.run()),
        tokio::spawn(health::serve(probes, Arc::clone(&inside), counter(&metrics))),
        tokio::spawn(countersign_admin::serve(admin, inside.routes(), counter(&metrics))),
    ];
    let webhooks = Arc::new(Webhooks::new(config.mesh, Namespaces::new(cluster), metrics));
    let webhooks = tokio::spawn(webhooks.serve(https, serving, closing.clone()));
    let running = Running { listen, health, ending, closing, webhooks, others };
    running.announce(config.ready_file.as_deref(), &config.admin_socket)?;
    Ok(running)
}

async fn tcp(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { flag, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

impl Running {
    /// The file first: who waits for the log line finds it.
    fn announce(&self, file: Option<&Path>, admin: &Path) -> Result<(), StartError> {
        if let Some(file) = file {
            let text =
                json!({ "listen": self.listen, "health": self.health, "admin": admin, "pid": std::process::id() });
            let beside = file.with_extension("new");
            let written = std::fs::write(&beside, format!("{text}\n")).and_then(|()| std::fs::rename(&beside, file));
            written.map_err(StartError::ReadyFile)?;
        }
        tracing::info!(listen = %self.listen, health = %self.health, admin = %admin.display(), "started");
        Ok(())
    }

    /// Not ready from now on, serving as before for `withdraw`, so that the service's endpoints forget us first; then no new
    /// connections, and requests under way may end. True if all ended within `drain`.
    pub async fn shutdown(mut self, withdraw: Duration, drain: Duration) -> bool {
        self.ending.cancel();
        tokio::time::sleep(withdraw).await;
        self.closing.cancel();
        let ended = tokio::time::timeout(drain, &mut self.webhooks).await.is_ok();
        for task in std::mem::take(&mut self.others) {
            task.abort();
            // Cancelled: that is how it ends. Then the admin socket's file is gone.
            let _ = task.await;
        }
        ended
    }

    /// Ends only if serving ends by itself, which it never should.
    pub async fn failed(&mut self) -> String {
        match (&mut self.webhooks).await {
            Ok(()) => "the HTTPS server ended".to_owned(),
            Err(error) => format!("the HTTPS server ended: {error}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ending.cancel();
        self.closing.cancel();
        self.webhooks.abort();
        self.others.iter().for_each(JoinHandle::abort);
    }
}
