//! Starts the parts, in order, and ends them: bind, credentials, discovery, journeys, health and admin, drain.
//!
//! Called by `main` with settings that were checked. It must never bind a port before they are, nor serve a connection
//! before every part is there.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use countersign_admin::{Log, health};
use countersign_api::ca::ConnectionCounts;
use countersign_api::ports;
use countersign_credentials::{CaClient, Places, Tally, Watch, raise_open_files, system_clock};
use hyper::Request;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::access_log::{AccessLog, Writer};
use crate::admin::Admin;
use crate::config::{Config, Limits};
use crate::discovery::{Discovery, Settings};
use crate::drain::{Drain, Ended};
use crate::health::Shown;
use crate::intercept::guard::Own;
use crate::listen::{accept_loop, bind};
use crate::metrics::{Metrics, follow_credentials};
use crate::outcome::Direction;
use crate::permit::Permits;
use crate::pool::{self, Pool};
use crate::probes::Probes;
use crate::proof::Proof;
use crate::proxy::Proxy;
use crate::ready::Readiness;
use crate::reauth::{self, Reauth};
use crate::{inbound, outbound};

/// How long the last access-log lines may take.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Files that a connection takes: its own, and the one to the other side.
const FILES_EACH: usize = 2;
/// Each direction has its own bound on connections.
const DIRECTIONS: usize = 2;
/// How often kept links are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// Runs the proxy until it is told to end.
///
/// # Errors
/// When a port cannot be bound or a part cannot be started.
pub fn run(config: Config, log: Log) -> anyhow::Result<Ended> {
    raise_open_files(FILES_EACH * DIRECTIONS * config.limits.connections);
    let mut runtime = match config.worker_threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(threads);
            runtime
        }
    };
    let runtime = runtime.enable_all().build().context("starting the runtime")?;
    let (ended, writer) = runtime.block_on(serve(Arc::new(config), log))?;
    if let Some(writer) = writer {
        writer.finish(LAST_LINES);
    }
    // Tasks that still hold sockets end with the process.
    runtime.shutdown_background();
    Ok(ended)
}

async fn serve(config: Arc<Config>, log: Log) -> anyhow::Result<(Ended, Option<Writer>)> {
    let started = std::time::Instant::now();
    let admin_socket = countersign_admin::bind(&config.admin_socket).context("binding the admin socket")?;
    let health_listener =
        health::bind((Ipv6Addr::UNSPECIFIED, config.ports.health).into()).context("binding the health port")?;
    let inbound_listeners = bind(Direction::Inbound, config.ports.inbound).context("binding the inbound port")?;
    let outbound_listeners = bind(Direction::Outbound, config.ports.outbound).context("binding the outbound port")?;
    let drain = Drain::new(config.drain_deadline);
    tokio::spawn(drain.listen().context("listening for signals")?);

    let metrics = Metrics::new();
    let (access_log, writer) = access_log(&config, &metrics)?;
    let reauth = Reauth::new();
    let client = ca_client(&config, &metrics, &reauth);
    let svid = countersign_credentials::start(client, config.id.clone(), system_clock());
    tokio::spawn(svid.task);
    tokio::spawn(follow_credentials(metrics.clone(), svid.credentials.clone(), svid.status.clone()));
    let (discovery, follow) = Discovery::start(discovery_settings(&config), svid.credentials.clone(), metrics.clone());
    tokio::spawn(follow);
    let permits = Permits::new(discovery.rules());
    tokio::spawn(Arc::clone(&permits).follow());

    let proof = Proof::new(metrics.clone());
    let readiness = Readiness::new(svid.credentials.clone(), discovery.rules(), proof.outbound(), drain.clone());
    let shown = Shown { readiness: readiness.clone(), metrics: metrics.clone() };
    tokio::spawn(serve_health(health_listener, shown.clone(), &config));
    let admin = Admin {
        config: Arc::clone(&config),
        credentials: svid.credentials.clone(),
        ca_status: svid.status,
        discovery: discovery.clone(),
        permits: Arc::clone(&permits),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        proof: proof.clone(),
        drain: drain.clone(),
        log,
        started,
    };
    let (routes, shed) = (Arc::new(admin).routes(), metrics.clone());
    tokio::spawn(countersign_admin::serve(admin_socket, routes, move |what| shed.shed(what)));
    if let Some(file) = config.ready_file.clone() {
        tokio::spawn(readiness.clone().keep_file(file));
    }

    let proxy = Arc::new(Proxy {
        own: own(&config),
        credentials: svid.credentials.clone(),
        rules: discovery.rules(),
        discovery,
        permits,
        pool: Pool::new(pool_limits(&config.limits), metrics.pool_idle()),
        turns: Arc::default(),
        picks: Arc::default(),
        slots: Places::in_quarters(config.limits.handshake_slots),
        metrics,
        access_log,
        reauth,
        proof: proof.clone(),
        health: shown,
        drain: drain.clone(),
        config,
    });
    tokio::spawn(reauth::keep(Arc::clone(&proxy)));
    tokio::spawn(keep_pool(Arc::clone(&proxy), svid.credentials.clone()));
    tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move { proxy.pool.settle_in_time().await }
    });
    let places =
        [Direction::Inbound, Direction::Outbound].map(|_| Arc::new(Semaphore::new(proxy.config.limits.connections)));
    accept(&proxy, Direction::Inbound, inbound_listeners, &places[0]);
    accept(&proxy, Direction::Outbound, outbound_listeners, &places[1]);
    readiness.listeners_bound();
    let (ips, mark) = (proxy.config.pod.ips.clone(), proxy.config.mark);
    tokio::spawn(proof.clone().keep_proving(ips, mark, Arc::clone(&places[1]), drain.clone()));
    tokio::spawn(proof.keep_watching(Arc::clone(&places[0]), drain));
    tracing::info!(
        pod = %proxy.config.pod.name,
        id = %proxy.config.id,
        inbound = proxy.config.ports.inbound,
        outbound = proxy.config.ports.outbound,
        "listening"
    );

    let all = u32::try_from(proxy.config.limits.connections).unwrap_or(u32::MAX);
    let idle = async {
        // Every place given back: nothing is open any more.
        for places in &places {
            let _ = places.acquire_many(all).await;
        }
    };
    let ended = proxy.drain.finish(idle).await;
    tracing::info!(forced = ended == Ended::Forced, "ended");
    Ok((ended, writer))
}

/// `/livez`, `/readyz`, `/metrics`, and the app's own probes.
fn serve_health(listener: TcpListener, shown: Shown, config: &Config) -> impl Future<Output = ()> + use<> {
    // The first is the one that the kubelet would ask.
    let address = config.pod.ips.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into());
    let probes = Arc::new(Probes::new(&config.probes, address, config.mark));
    let (life, metrics) = (probes.life(), shown.metrics.clone());
    let handle = move |request: Request<Incoming>| {
        let (shown, probes) = (shown.clone(), Arc::clone(&probes));
        async move {
            let path = request.uri().path();
            if !Probes::concerns(path) {
                return health::answer(&shown, &request);
            }
            let (method, path) = (request.method().clone(), path.to_owned());
            drop(request);
            probes.answer(&method, &path).await
        }
    };
    health::serve_by(listener, life, move |what| metrics.shed(what), handle)
}

fn accept(proxy: &Arc<Proxy>, direction: Direction, listeners: Vec<TcpListener>, places: &Arc<Semaphore>) {
    for listener in listeners {
        let (metrics, drain) = (proxy.metrics.clone(), proxy.drain.clone());
        let (proxy, places) = (Arc::clone(proxy), Arc::clone(places));
        tokio::spawn(accept_loop(listener, direction, places, metrics, drain, move |io, source, place| {
            let proxy = Arc::clone(&proxy);
            match direction {
                Direction::Inbound => drop(tokio::spawn(inbound::serve(proxy, io, source, place))),
                Direction::Outbound => drop(tokio::spawn(outbound::serve(proxy, io, source, place))),
            }
        }));
    }
}

/// Keeps the pool clear of what is too old, at intervals and at once when our credentials change.
async fn keep_pool(proxy: Arc<Proxy>, mut credentials: Watch) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = credentials.changed() => if changed.is_err() { return },
        }
        let current = credentials.borrow_and_update().clone();
        proxy.pool.sweep(current.as_deref(), Instant::now());
    }
}

fn access_log(config: &Config, metrics: &Metrics) -> io::Result<(AccessLog, Option<Writer>)> {
    if !config.access_log {
        return Ok((AccessLog::off(), None));
    }
    let (log, writer) = AccessLog::start(io::stdout(), metrics.clone())?;
    Ok((log, Some(writer)))
}

fn own(config: &Config) -> Own {
    let ours = config.ports;
    Own::new(config.pod.ips.iter().copied(), [ours.inbound, ours.outbound, ours.health, ports::SELF_PROOF])
}

fn ca_client(config: &Config, metrics: &Metrics, reauth: &Arc<Reauth>) -> CaClient {
    let (metrics, reauth) = (metrics.clone(), Arc::clone(reauth));
    CaClient {
        trust_domain: config.trust_domain.clone(),
        ca_address: config.ca.address.clone(),
        ca_id: config.ca.id.clone(),
        token_file: config.ca.token_file.clone(),
        bootstrap: config.ca.bootstrap.clone(),
        mark: config.mark,
        ttl: config.ca.ttl,
        tally: Tally::new(move || ConnectionCounts { behind: reauth.behind(), ..metrics.tally() }),
    }
}

fn discovery_settings(config: &Config) -> Settings {
    Settings {
        trust_domain: config.trust_domain.clone(),
        controller: config.controller.id.clone(),
        addresses: config.controller.addresses.clone(),
        namespace: config.pod.namespace.clone(),
        pod_uid: config.pod.uid.clone(),
        mark: config.mark,
    }
}

fn pool_limits(limits: &Limits) -> pool::Limits {
    pool::Limits { total: limits.pool_total, each: limits.pool_each, idle: limits.pool_idle }
}
