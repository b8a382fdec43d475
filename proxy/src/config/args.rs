//! The command line as typed: every value is text until `config` has checked it.
//!
//! Called by `main`. It must never hold a secret: tokens and keys are named by file.

use clap::{Args, Parser, Subcommand};
use countersign_api::{env, names};

use crate::ask::Ask;
use crate::drain::command::Drain;
use crate::intercept::command::Intercept;

/// The sidecar of Countersign: mutual TLS for a pod's connections, decided by identity.
#[derive(Debug, Parser)]
#[command(name = "countersign-proxy", version, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; `run` where nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carry the pod's connections (the default).
    Run(Box<RunArgs>),
    /// Set, check or remove the pod's redirect rules; needs NET_ADMIN.
    #[command(subcommand)]
    Intercept(Intercept),
    /// Tell the running proxy that its pod is going away: not ready from now on, serving as before (a preStop hook).
    Drain(Drain),
    /// Ask the running proxy by its admin socket, and print the answer. Exit codes: 0 answered, 2 not answered, 3 nothing there.
    Ask(Ask),
    /// Print the version.
    Version,
}

/// Settings of `run`. Each flag may be given by its environment variable instead.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Trust domain of the mesh.
    #[arg(long, env = env::TRUST_DOMAIN, default_value = names::TRUST_DOMAIN, value_name = "NAME")]
    pub trust_domain: String,
    /// Namespace of CA and controller.
    #[arg(long, env = env::SYSTEM_NAMESPACE, default_value = names::SYSTEM_NAMESPACE, value_name = "NAME")]
    pub system_namespace: String,
    /// The CA; several separated by commas. Required.
    #[arg(long, env = env::CA_ADDRESS, value_name = "HOST:PORT")]
    pub ca_address: Option<String>,
    /// The controller; several separated by commas. Required.
    #[arg(long, env = env::CONTROLLER_ADDRESS, value_name = "HOST:PORT")]
    pub controller_address: Option<String>,
    /// File with the projected ServiceAccount token.
    #[arg(
        long,
        env = env::TOKEN_FILE,
        default_value = "/var/run/secrets/tokens/countersign-token",
        value_name = "FILE"
    )]
    pub token_file: String,
    /// PEM file with the roots that verify the CA at first.
    #[arg(
        long,
        env = env::BOOTSTRAP_BUNDLE,
        default_value = "/var/run/secrets/countersign/bundle.pem",
        value_name = "FILE"
    )]
    pub bootstrap_bundle: String,
    /// Wanted life of the SVID; the CA's own default where not given.
    #[arg(long, env = env::SVID_TTL, value_name = "TIME")]
    pub svid_ttl: Option<String>,
    /// Name of the pod. Required.
    #[arg(long, env = env::POD_NAME, value_name = "NAME")]
    pub pod_name: Option<String>,
    /// UID of the pod. Required.
    #[arg(long, env = env::POD_UID, value_name = "UID")]
    pub pod_uid: Option<String>,
    /// Namespace of the pod. Required.
    #[arg(long, env = env::POD_NAMESPACE, value_name = "NAME")]
    pub pod_namespace: Option<String>,
    /// Service account of the pod. Required.
    #[arg(long, env = env::SERVICE_ACCOUNT, value_name = "NAME")]
    pub service_account: Option<String>,
    /// The pod's addresses, separated by commas. Required.
    #[arg(long, env = env::POD_IPS, value_name = "IP,IP")]
    pub pod_ips: Option<String>,
    /// Port of the inbound listener.
    #[arg(long, env = env::INBOUND_PORT, default_value = "15006", value_name = "PORT")]
    pub inbound_port: String,
    /// Port of the outbound listener.
    #[arg(long, env = env::OUTBOUND_PORT, default_value = "15001", value_name = "PORT")]
    pub outbound_port: String,
    /// Port of /livez, /readyz and /metrics.
    #[arg(long, env = env::HEALTH_PORT, default_value = "15020", value_name = "PORT")]
    pub health_port: String,
    /// The app's own probes, which the sidecar asks in the kubelet's place: JSON, as the injector writes it.
    #[arg(long, env = env::PROBES, value_name = "JSON", hide_env_values = true)]
    pub probes: Option<String>,
    /// Path of the admin socket.
    #[arg(
        long,
        env = env::ADMIN_SOCKET,
        default_value = "/run/countersign/proxy.sock",
        value_name = "FILE"
    )]
    pub admin_socket: String,
    /// Mark of the proxy's own connections, where its user id does not exempt it from the redirect.
    #[arg(long, env = env::MARK, value_name = "NUMBER")]
    pub mark: Option<String>,
    /// Threads that carry connections.
    #[arg(long, env = env::WORKER_THREADS, default_value = "1", value_name = "NUMBER")]
    pub worker_threads: String,
    /// How long open connections may go on once draining started.
    #[arg(long, env = env::DRAIN_DEADLINE, default_value = "25s", value_name = "TIME")]
    pub drain_deadline: String,
    /// Log filter: a level, or TARGET=LEVEL separated by commas.
    #[arg(long, env = env::LOG, default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// One line on stdout for each connection: on, off.
    #[arg(long, env = env::ACCESS_LOG, default_value = "on", value_name = "WORD")]
    pub access_log: String,
    /// A file that exists exactly while the proxy is ready.
    #[arg(long, env = env::READY_FILE, value_name = "FILE")]
    pub ready_file: Option<String>,
    /// Bounds.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Bounds of `run`.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Most connections open at once, in each direction; more are closed at once.
    #[arg(long, env = env::MAX_CONNECTIONS, default_value = "10000", value_name = "NUMBER")]
    pub max_connections: String,
    /// Most inbound connections that have not proven themselves yet; a quarter of them for one source.
    #[arg(long, env = env::HANDSHAKE_SLOTS, default_value = "512", value_name = "NUMBER")]
    pub handshake_slots: String,
    /// Longest dial.
    #[arg(long, env = env::CONNECT_TIMEOUT, default_value = "5s", value_name = "TIME")]
    pub connect_timeout: String,
    /// Longest TLS handshake.
    #[arg(long, env = env::HANDSHAKE_TIMEOUT, default_value = "5s", value_name = "TIME")]
    pub handshake_timeout: String,
    /// Longest wait for an inbound connection's first bytes.
    #[arg(long, env = env::FIRST_BYTES_TIMEOUT, default_value = "5s", value_name = "TIME")]
    pub first_bytes_timeout: String,
    /// Under Permissive: longest wait for a ClientHello from an unknown source.
    #[arg(long, env = env::PERMISSIVE_HELLO_TIMEOUT, default_value = "500ms", value_name = "TIME")]
    pub permissive_hello_timeout: String,
    /// Longest that an idle TLS connection is kept for a peer; longer than --pool-idle-timeout.
    #[arg(long, env = env::LINK_IDLE_TIMEOUT, default_value = "90s", value_name = "TIME")]
    pub link_idle_timeout: String,
    /// Most TLS connections kept for another use; 0 = none.
    #[arg(long, env = env::POOL_SIZE, default_value = "256", value_name = "NUMBER")]
    pub pool_size: String,
    /// Most of them to one endpoint.
    #[arg(long, env = env::POOL_SIZE_EACH, default_value = "32", value_name = "NUMBER")]
    pub pool_size_each: String,
    /// Longest that one is kept.
    #[arg(long, env = env::POOL_IDLE_TIMEOUT, default_value = "60s", value_name = "TIME")]
    pub pool_idle_timeout: String,
}
