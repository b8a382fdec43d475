//! The start, in order: state, audit log, token keys, own SVID; then the ports; then ready. And the end. Called by `main`, and
//! by tests that run the CA inside their own process. Whatever fails at the start fails before a port is bound to the world.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_admin::health::{self, Check, Health};
use countersign_admin::{AdminSocket, Log, SocketError};
use countersign_credentials::{ClientAuth, IncomingLimits, SharedClock, incoming};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::attest::{Attestor, Jwks, JwksError};
use crate::audit::{Audit, AuditError, Event, GRANTED, SUPERSEDED};
use crate::clock::millis;
use crate::config::{Attestation, Config, KeyFrom};
use crate::holders::Holders;
use crate::inside::Inside;
use crate::issue::{Issuance, Parts};
use crate::kubernetes::{ConnectError, Connector, KeySecret, Publisher, StateSecret, TokenReviews};
use crate::metrics::Metrics;
use crate::own::Own;
use crate::rotation::Rotations;
use crate::server::Service;
use crate::siblings::Siblings;
use crate::state::{
    self, Authority, DirectoryError, KeySource, Opened, Place, Race, State, StateError, Vacant, write_whole,
};
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
    Cluster(#[from] ConnectError),
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    #[error("admin socket {0}")]
    Admin(#[from] SocketError),
    #[error("cannot listen on {address} ({flag}): {source}")]
    Bind { flag: &'static str, address: SocketAddr, source: std::io::Error },
}

/// A disk that does not answer holds up neither start nor end for longer.
const LAST_WORD: Duration = Duration::from_secs(2);

/// After the API server could not be asked for the state.
const AGAIN: Duration = Duration::from_secs(2);

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
    last: LastWord,
}

/// Signs the audit log as it is: at the start, so that what began is bound at once, and at the end.
struct LastWord {
    audit: Audit,
    own: Arc<Own>,
    clock: SharedClock,
}

impl LastWord {
    /// Whatever comes of it, it was tried: the log has told why not.
    async fn say(&self) {
        let own = self.own.subscribe();
        let signer = own.borrow().as_ref().map(|credentials| Arc::clone(credentials.svid()));
        if let Some(signer) = signer {
            let signed = self.audit.checkpoint(&signer, millis(&*self.clock));
            let _ = tokio::time::timeout(LAST_WORD, signed).await;
        }
    }
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
    let connector = Connector::new(config.kubeconfig.as_deref(), &config.system_namespace);
    let (attestor, jwks) = attestor(&config, &connector).await?;
    let loading = match config.state_secret {
        Some(_) => Some(answer_while_loading(&config).await?),
        None => None,
    };
    let (state, audit, made) = open_state(&config, &connector, &clock).await?;
    let published = state.subscribe();
    write_bundle(&config.bundle_files, &state.authority())?;
    // Where replicas share the state the record of them says who else signed; where it is ours alone we know those of our own time, or of all time.
    let since = if made || state.is_shared() { 0 } else { clock.now().as_secs() };
    let holders = Arc::new(Holders::new(since));
    let metrics = Arc::new(Metrics::new());
    let own = Arc::new(Own::new(config.own_id.clone(), config.terms, clock.clone()));
    let upkeep = Upkeep {
        state: Arc::clone(&state),
        own: Arc::clone(&own),
        jwks: jwks.clone(),
        audit: audit.clone(),
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
    };
    upkeep.renew().await?;
    let last = LastWord { audit: audit.clone(), own: Arc::clone(&own), clock: clock.clone() };
    last.say().await;

    let (grpc, listen) = tcp("--listen", config.listen).await?;
    let max_leaf = config.terms.max;
    let (of, known, by) = (Arc::clone(&state), Arc::clone(&holders), clock.clone());
    let siblings = Arc::new(Siblings::new(of, known, Arc::clone(&own), by, max_leaf));
    register(&siblings, config.reached_at(listen)).await?;
    if let Some(loading) = loading {
        loading.abort();
        let _ = loading.await;
    }
    let ports = Ports::bind(&config, grpc, listen).await?;
    let shutdown = CancellationToken::new();
    let (most, token) = (config.max_watchers, shutdown.child_token());
    let bundles = Arc::new(Bundles::new(Arc::clone(&state), Arc::clone(&holders), clock.clone(), most, token));
    let rotations = Arc::new(Rotations {
        state: Arc::clone(&state),
        holders: Arc::clone(&holders),
        audit: audit.clone(),
        own: Arc::clone(&own),
        clock: clock.clone(),
        max_leaf,
        siblings: Arc::clone(&siblings),
    });
    let mut tasks = vec![
        tokio::spawn(state::follow(Arc::clone(&state), clock.clone())),
        tokio::spawn(keep_bundle(config.bundle_files.clone(), published)),
        tokio::spawn(Arc::clone(&rotations).run()),
        tokio::spawn(Arc::clone(&siblings).run()),
        tokio::spawn(audit.clone().keep(own.subscribe(), clock.clone())),
    ];
    if config.publish_bundle {
        let publisher = Publisher {
            cluster: connector.cluster().await?,
            state: Arc::clone(&state),
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
        };
        tasks.push(tokio::spawn(publisher.run()));
    }
    let parts = Parts {
        attestor,
        state: Arc::clone(&state),
        audit: audit.clone(),
        clock: clock.clone(),
        own_id: config.own_id.clone(),
        terms: config.terms,
        holders,
        metrics: Arc::clone(&metrics),
    };
    let issuance = Arc::new(Issuance::new(parts, config.calls));
    let inside = Arc::new(Inside {
        state,
        own: Arc::clone(&own),
        audit,
        jwks,
        bundles: Arc::clone(&bundles),
        rotations,
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
    tasks.extend([tokio::spawn(upkeep.run()), tokio::spawn(probes), tokio::spawn(admin)]);
    let service = Service::new(issuance, bundles, metrics, siblings);
    let running = Running {
        listen,
        health,
        admin: config.admin_socket.clone(),
        bundle: config.state_dir.join(state::BUNDLE),
        grpc: tokio::spawn(service.serve(incoming, shutdown.clone().cancelled_owned())),
        others: tasks,
        shutdown,
        last,
    };
    running.announce(&config)?;
    Ok(running)
}

/// How callers are attested, and the key set to keep fresh where there is one.
async fn attestor(config: &Config, connector: &Connector<'_>) -> Result<(Attestor, Option<Arc<Jwks>>), StartError> {
    match &config.attest {
        Attestation::Jwks { file, rules } => {
            let jwks = Arc::new(Jwks::open(file, rules.clone())?);
            Ok((Attestor::Jwks(Arc::clone(&jwks)), Some(jwks)))
        }
        Attestation::TokenReview { audience, at_once } => {
            let reviews = TokenReviews::new(connector.cluster().await?, audience.clone(), *at_once);
            Ok((Attestor::Review(reviews), None))
        }
    }
}

fn counter(metrics: &Arc<Metrics>) -> impl Fn(&'static str) + Send + Sync + use<> {
    let metrics = Arc::clone(metrics);
    move |reason| metrics.connection_refused(reason)
}

/// The public bundle, wherever it is wanted.
fn write_bundle(files: &[PathBuf], authority: &Authority) -> Result<(), DirectoryError> {
    let pem = authority.bundle_pem();
    files.iter().try_for_each(|file| write_whole(file, pem.as_bytes(), 0o644))
}

/// The same after each change, until nothing changes any more. A file that cannot be written is tried again.
async fn keep_bundle(files: Vec<PathBuf>, mut authority: watch::Receiver<Arc<Authority>>) {
    while authority.changed().await.is_ok() {
        loop {
            let now = Arc::clone(&authority.borrow_and_update());
            match write_bundle(&files, &now) {
                Ok(()) => break,
                Err(error) => tracing::error!(%error, "the public bundle could not be written; trying again"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// The state, the log, and whether the state was made just now.
async fn open_state(
    config: &Config,
    connector: &Connector<'_>,
    clock: &SharedClock,
) -> Result<(Arc<State>, Audit, bool), StartError> {
    let key = match &config.state_key {
        KeyFrom::Given(key) => KeySource::Given(key.clone()),
        KeyFrom::Secret(name) => KeySource::Secret(KeySecret::new(connector.cluster().await?, name.clone())),
    };
    let opened = persistently("the state cannot be read yet", || async {
        let place = place(config, connector).await?;
        Ok(state::open(place, &key, &config.trust_domain, config.lifetimes, clock.now()).await?)
    })
    .await?;
    // Only now, when what is there could be read, is the log opened: it is the first file that is written.
    let audit = Audit::start(&config.audit, millis(&**clock)).await?;
    let (state, made) = match opened {
        Opened::Found(state) => (state, false),
        Opened::Vacant(vacant) => (make_root(config, vacant, &audit, clock).await?, true),
    };
    Ok((Arc::new(state), audit, made))
}

/// Nothing is signed before the other replicas can know of it.
async fn register(siblings: &Siblings, address: Option<SocketAddr>) -> Result<(), StartError> {
    let what = "this replica cannot be put in the record of replicas yet";
    persistently(what, || async { Ok(siblings.register(address).await?) }).await
}

/// Tries until it is done, as long as what fails may pass. Each other reason is said once.
async fn persistently<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T, StartError>
where
    F: Future<Output = Result<T, StartError>>,
{
    let mut told = String::new();
    loop {
        match attempt().await {
            Err(StartError::State(error)) if error.may_pass() => {
                let text = error.to_string();
                if text != told {
                    tracing::error!(error = text, "{what}; trying again");
                    told = text;
                }
                tokio::time::sleep(AGAIN).await;
            }
            ended => return ended,
        }
    }
}

async fn place(config: &Config, connector: &Connector<'_>) -> Result<Place, StartError> {
    match &config.state_secret {
        None => Ok(Place::directory(&config.state_dir)?),
        Some(name) => {
            // The directory has the audit log only, and is made and judged as ever.
            drop(Place::directory(&config.state_dir)?);
            Ok(Place::Secret(StateSecret::new(connector.cluster().await?, name.clone())))
        }
    }
}

async fn make_root(config: &Config, vacant: Vacant, audit: &Audit, clock: &SharedClock) -> Result<State, StartError> {
    let now_ms = millis(&**clock);
    let draft = vacant.draft(clock.now())?;
    let made = draft.authority();
    for event in [Event::Root, Event::Issuer] {
        let _recorded = record_ca(audit, event, GRANTED, &made, now_ms).await?;
    }
    let serial = made.root().serial();
    let (state, race) = vacant.commit(draft, clock.now()).await?;
    match race {
        Race::Won => tracing::info!(trust_domain = %config.trust_domain, root = serial, "a new root was made"),
        Race::Lost => {
            for event in [Event::Root, Event::Issuer] {
                let _recorded = record_ca(audit, event, SUPERSEDED, &made, now_ms).await?;
            }
            tracing::info!(root = serial, "another replica made the root first; this one was never used");
        }
    }
    Ok(state)
}

/// While the state cannot be read, which in a cluster may take a while: alive, and not ready.
struct Loading;

impl Health for Loading {
    fn checks(&self) -> Vec<Check> {
        vec![Check::new("state", Some("the state is not loaded yet"))]
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        Ok("# EOF\n".to_owned())
    }
}

async fn answer_while_loading(config: &Config) -> Result<JoinHandle<()>, StartError> {
    let (listener, _) = tcp("--health-listen", config.health_listen).await?;
    Ok(tokio::spawn(health::serve(listener, Arc::new(Loading), |_| {})))
}

struct Ports {
    grpc: TcpListener,
    listen: SocketAddr,
    probes: TcpListener,
    health: SocketAddr,
    admin: AdminSocket,
}

impl Ports {
    async fn bind(config: &Config, grpc: TcpListener, listen: SocketAddr) -> Result<Self, StartError> {
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
    pub async fn shutdown(mut self, limit: Duration) -> bool {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(limit, &mut self.grpc).await.is_ok();
        self.last.say().await;
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
mod in_cluster_tests;
#[cfg(test)]
mod tests;
