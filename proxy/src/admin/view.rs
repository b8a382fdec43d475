//! What `/status` and `/config_dump` show. Plain data: every field is named here, so that nothing secret can slip in by
//! being part of something larger.

use std::path::PathBuf;
use std::time::Duration;

use countersign_admin::health::Check;
use countersign_credentials::{Credentials, Status};
use countersign_policy::Modes;
use serde::Serialize;

use super::Admin;
use crate::config::probes::{AppProbe, ProbeView};
use crate::config::{Config, Limits, Pod, Ports};
use crate::discovery::{DiscoveryView, LinkView};
use crate::proof::ProofView;

/// `/status`.
#[derive(Serialize)]
pub struct StatusView {
    process: &'static str,
    version: &'static str,
    pid: u32,
    uptime_seconds: u64,
    phase: &'static str,
    ready: bool,
    checks: [Check; 5],
    id: String,
    pod: Pod,
    credentials: Option<CredentialsView>,
    ca: CaView,
    controller: LinkView,
    policy: Option<PolicyView>,
    interception: ProofView,
    open_connections: OpenView,
    denials: DenialsView,
    plaintext_inside_mesh: Vec<std::sync::Arc<str>>,
    log: String,
}

/// `/config_dump`.
#[derive(Serialize)]
pub struct DumpView {
    version: &'static str,
    config: ConfigView,
    credentials: Option<CredentialsView>,
    ca: CaView,
    discovery: DiscoveryView,
    log: String,
}

#[derive(Serialize)]
struct CredentialsView {
    id: String,
    serial: String,
    public_key_sha256: String,
    not_before: u64,
    not_after: u64,
    expired: bool,
    own_chain_trusted: bool,
    bundles: Vec<BundleView>,
}

#[derive(Serialize)]
struct BundleView {
    trust_domain: String,
    generation: u64,
    roots_sha256: Vec<String>,
}

#[derive(Serialize)]
struct CaView {
    renewals: u64,
    failures: u64,
    failures_in_a_row: u32,
    last_renewal: Option<u64>,
    next_attempt: Option<u64>,
    last_error: Option<ErrorView>,
    following_bundle: bool,
    bundles_refused: u64,
    last_bundle_error: Option<ErrorView>,
}

#[derive(Serialize)]
struct ErrorView {
    label: &'static str,
    text: String,
    at: u64,
}

#[derive(Serialize)]
struct PolicyView {
    revision: String,
    rules: usize,
    modes: Modes,
}

/// What the ring remembers: different denials, and how often they came in all.
#[derive(Serialize)]
struct DenialsView {
    remembered: usize,
    counted: u64,
}

#[derive(Serialize)]
struct OpenView {
    inbound: i64,
    outbound: i64,
}

#[derive(Serialize)]
struct ConfigView {
    trust_domain: String,
    system_namespace: String,
    id: String,
    pod: Pod,
    ca_address: String,
    ca_id: String,
    controller_addresses: Vec<String>,
    controller_id: String,
    token_file: PathBuf,
    bootstrap_bundle: PathBuf,
    svid_ttl_seconds: Option<u64>,
    ports: Ports,
    admin_socket: PathBuf,
    probes: Vec<ProbeView>,
    ready_file: Option<PathBuf>,
    mark: Option<u32>,
    worker_threads: usize,
    drain_deadline_ms: u128,
    access_log: bool,
    limits: LimitsView,
}

#[derive(Serialize)]
struct LimitsView {
    connections: usize,
    handshake_slots: usize,
    connect_ms: u128,
    handshake_ms: u128,
    first_bytes_ms: u128,
    permissive_hello_ms: u128,
    link_idle_ms: u128,
    pool_total: usize,
    pool_each: usize,
    pool_idle_ms: u128,
}

pub fn status(admin: &Admin) -> StatusView {
    let rules = admin.discovery.rules().borrow().clone();
    let (inbound, outbound) = admin.metrics.open_connections();
    let (remembered, counted) = admin.permits.denials().totals();
    StatusView {
        process: "countersign-proxy",
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        uptime_seconds: admin.started.elapsed().as_secs(),
        phase: admin.drain.phase().label(),
        ready: admin.readiness.ready(),
        checks: admin.readiness.checks(),
        id: admin.config.id.to_string(),
        pod: admin.config.pod.clone(),
        credentials: admin.credentials.borrow().as_deref().map(credentials),
        ca: ca(&admin.ca_status.borrow()),
        controller: admin.discovery.link(),
        policy: rules.map(|set| PolicyView {
            revision: set.revision().to_owned(),
            rules: set.len(),
            modes: set.modes(),
        }),
        interception: admin.proof.view(),
        open_connections: OpenView { inbound, outbound },
        denials: DenialsView { remembered, counted },
        plaintext_inside_mesh: admin.metrics.plaintext_destinations(),
        log: admin.log.filter(),
    }
}

pub fn dump(admin: &Admin) -> DumpView {
    DumpView {
        version: env!("CARGO_PKG_VERSION"),
        config: config(&admin.config),
        credentials: admin.credentials.borrow().as_deref().map(credentials),
        ca: ca(&admin.ca_status.borrow()),
        discovery: admin.discovery.snapshot_for_admin(),
        log: admin.log.filter(),
    }
}

fn credentials(held: &Credentials) -> CredentialsView {
    let svid = held.svid();
    let bundles = held.bundles().iter().map(|bundle| BundleView {
        trust_domain: bundle.trust_domain().to_string(),
        generation: bundle.generation(),
        roots_sha256: bundle.root_sha256s().map(|digest| hex(digest)).collect(),
    });
    CredentialsView {
        id: held.id().to_string(),
        serial: svid.serial().to_owned(),
        public_key_sha256: hex(&svid.spki_sha256()),
        not_before: svid.not_before().as_secs(),
        not_after: svid.not_after().as_secs(),
        expired: held.expired(),
        own_chain_trusted: held.own_chain_trusted(),
        bundles: bundles.collect(),
    }
}

fn ca(status: &Status) -> CaView {
    let error = |error: &countersign_credentials::LastError| ErrorView {
        label: error.label,
        text: error.text.clone(),
        at: error.at.as_secs(),
    };
    CaView {
        renewals: status.renewals,
        failures: status.failures,
        failures_in_a_row: status.failures_in_a_row,
        last_renewal: status.last_renewal.map(|at| at.as_secs()),
        next_attempt: status.next_attempt.map(|at| at.as_secs()),
        last_error: status.last_error.as_ref().map(error),
        following_bundle: status.following,
        bundles_refused: status.bundles_refused,
        last_bundle_error: status.last_bundle_error.as_ref().map(error),
    }
}

fn config(config: &Config) -> ConfigView {
    ConfigView {
        trust_domain: config.trust_domain.to_string(),
        system_namespace: config.system_namespace.clone(),
        id: config.id.to_string(),
        pod: config.pod.clone(),
        ca_address: config.ca.address.clone(),
        ca_id: config.ca.id.to_string(),
        controller_addresses: config.controller.addresses.clone(),
        controller_id: config.controller.id.to_string(),
        token_file: config.ca.token_file.clone(),
        bootstrap_bundle: config.ca.bootstrap.clone(),
        svid_ttl_seconds: config.ca.ttl.map(|ttl| ttl.as_secs()),
        ports: config.ports,
        admin_socket: config.admin_socket.clone(),
        probes: config.probes.iter().map(AppProbe::view).collect(),
        ready_file: config.ready_file.clone(),
        mark: config.mark,
        worker_threads: config.worker_threads,
        drain_deadline_ms: config.drain_deadline.as_millis(),
        access_log: config.access_log,
        limits: limits(&config.limits),
    }
}

fn limits(limits: &Limits) -> LimitsView {
    let ms = |time: Duration| time.as_millis();
    LimitsView {
        connections: limits.connections,
        handshake_slots: limits.handshake_slots,
        connect_ms: ms(limits.connect),
        handshake_ms: ms(limits.handshake),
        first_bytes_ms: ms(limits.first_bytes),
        permissive_hello_ms: ms(limits.permissive_hello),
        link_idle_ms: ms(limits.link_idle),
        pool_total: limits.pool_total,
        pool_each: limits.pool_each,
        pool_idle_ms: ms(limits.pool_idle),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
