//! Flags and environment, read once and checked whole before a port is bound, into one immutable [`Config`]. Called by
//! `main`. An unknown flag stops the start; an unknown `COUNTERSIGN_*` variable does not, since Kubernetes sets such ones by
//! itself for a service named countersign-controller.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use countersign_api::{env as names_env, names, ports};
use countersign_credentials::{CaClient, Tally};
use countersign_identity::{SpiffeId, SpiffeIdError, TrustDomain};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::source::kubernetes::Ranges;

/// The word for `--source`.
const KUBERNETES: &str = "kubernetes";
/// Of one kind; each message of rules carries all of them.
const MAX_RANGES: usize = 64;
/// Longest path of a unix socket (unix(7), without the ending zero).
const MAX_SOCKET_PATH: usize = 107;

/// Why the configuration is no good. Each names the flag.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("--trust-domain {0:?}: {1}")]
    TrustDomain(String, SpiffeIdError),
    #[error("--system-namespace {0:?}: {1}")]
    SystemNamespace(String, SpiffeIdError),
    #[error("--source {0:?}: want dir:PATH or kubernetes")]
    Source(String),
    #[error("--source dir:{path}: {why}")]
    Directory { path: PathBuf, why: String },
    #[error("--{flag} {text:?}: {why}")]
    Range { flag: &'static str, text: String, why: String },
    #[error("--{0}: has no meaning with --source dir:PATH, whose Mesh object says the ranges")]
    RangesTwice(&'static str),
    #[error("--ca-address {0:?}: want host:port, several separated by commas")]
    CaAddress(String),
    #[error("--{flag} {path}: {why}")]
    File { flag: &'static str, path: PathBuf, why: String },
    #[error("--admin-socket {0}: longer than {MAX_SOCKET_PATH} bytes")]
    AdminSocket(PathBuf),
}

/// The flags as they are typed. Durations are a number and a unit: 90s, 15m, 1h.
#[derive(Parser, Debug)]
#[command(
    name = "countersign-controller",
    version,
    about = "Countersign's discovery: who is where, and which rules bind whom"
)]
#[allow(missing_docs)]
pub struct Args {
    /// Where the mesh is described: dir:PATH, a directory of YAML files, or kubernetes, the cluster of the pod's service account (or of
    /// KUBECONFIG); followed as it changes
    #[arg(long, env = "COUNTERSIGN_SOURCE")]
    pub source: String,
    /// With --source kubernetes: a CIDR that holds pods' addresses; several by commas, or by repeating the flag. Together they must
    /// hold every pod of the mesh: outside them nobody is meshed [default: as the nodes' spec.podCIDRs say]
    #[arg(long = "pod-range", env = "COUNTERSIGN_POD_RANGES", value_delimiter = ',')]
    pub pod_ranges: Vec<String>,
    /// With --source kubernetes: a CIDR that holds cluster IPs; several likewise [default: as the ServiceCIDR objects say]
    #[arg(long = "service-range", env = "COUNTERSIGN_SERVICE_RANGES", value_delimiter = ',')]
    pub service_ranges: Vec<String>,
    /// Trust domain of the mesh
    #[arg(long, env = names_env::TRUST_DOMAIN, default_value = names::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// Namespace of the mesh's own processes
    #[arg(long, env = names_env::SYSTEM_NAMESPACE, default_value = names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Address of the gRPC port; port 0 picks a free one
    #[arg(long, env = "COUNTERSIGN_CONTROLLER_LISTEN", default_value_t = any(ports::CONTROLLER))]
    pub listen: SocketAddr,
    /// Address of /livez, /readyz, /metrics; port 0 picks a free one
    #[arg(long, env = "COUNTERSIGN_CONTROLLER_HEALTH_LISTEN", default_value_t = any(ports::CONTROLLER_HEALTH))]
    pub health_listen: SocketAddr,
    /// Path of the admin socket
    #[arg(long, env = names_env::ADMIN_SOCKET, default_value = "/run/countersign/controller.sock")]
    pub admin_socket: PathBuf,
    /// host:port of the CA, several separated by commas
    #[arg(long, env = names_env::CA_ADDRESS)]
    pub ca_address: String,
    /// File with our own projected ServiceAccount token; read anew for each use
    #[arg(long, env = names_env::TOKEN_FILE)]
    pub token_file: PathBuf,
    /// PEM file with the roots that vouch for the CA until its first bundle came
    #[arg(long, env = names_env::BOOTSTRAP_BUNDLE)]
    pub bootstrap_bundle: PathBuf,
    /// Wanted life of our own SVID [default: the CA's]
    #[arg(long, env = "COUNTERSIGN_CONTROLLER_SVID_TTL", value_parser = duration)]
    pub svid_ttl: Option<Duration>,
    /// Mark of our own connections to the CA
    #[arg(long, env = "COUNTERSIGN_CONTROLLER_MARK")]
    pub mark: Option<u32>,
    /// Written, whole, once all ports are bound and the controller is ready: JSON with the addresses
    #[arg(long, env = "COUNTERSIGN_CONTROLLER_READY_FILE")]
    pub ready_file: Option<PathBuf>,
    /// Time for streams to end after SIGTERM
    #[arg(long, env = "COUNTERSIGN_CONTROLLER_DRAIN", default_value = "5s", value_parser = duration)]
    pub drain: Duration,
    /// Log filter: a level, or TARGET=LEVEL separated by commas
    #[arg(long, env = names_env::LOG)]
    pub log: Option<String>,
}

/// Where the picture comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of YAML files.
    Directory(PathBuf),
    /// A Kubernetes cluster, with these ranges.
    Kubernetes(Ranges),
}

/// The configuration, checked.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Config {
    /// Where the picture comes from.
    pub source: Source,
    pub trust_domain: TrustDomain,
    /// The controller's own identity.
    pub own_id: SpiffeId,
    /// How to get our own SVID.
    pub ca: CaClient,
    pub listen: SocketAddr,
    pub health_listen: SocketAddr,
    pub admin_socket: PathBuf,
    pub ready_file: Option<PathBuf>,
    pub drain: Duration,
}

impl Config {
    /// Checks everything that can be checked without the CA.
    ///
    /// # Errors
    /// The first flag that is no good.
    pub fn check(args: Args) -> Result<Self, ConfigError> {
        let trust_domain = TrustDomain::parse(&args.trust_domain)
            .map_err(|error| ConfigError::TrustDomain(args.trust_domain.clone(), error))?;
        let system = |account| {
            SpiffeId::for_service_account(&trust_domain, &args.system_namespace, account)
                .map_err(|error| ConfigError::SystemNamespace(args.system_namespace.clone(), error))
        };
        let (own_id, ca_id) = (system(names::CONTROLLER_ACCOUNT)?, system(names::CA_ACCOUNT)?);
        let source = source(&args.source, &args.pod_ranges, &args.service_ranges)?;
        if !args.ca_address.split(',').all(is_host_and_port) {
            return Err(ConfigError::CaAddress(args.ca_address));
        }
        if args.admin_socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(ConfigError::AdminSocket(args.admin_socket));
        }
        readable("token-file", &args.token_file)?;
        readable("bootstrap-bundle", &args.bootstrap_bundle)?;
        Ok(Config {
            source,
            own_id,
            ca: CaClient {
                trust_domain: trust_domain.clone(),
                ca_address: args.ca_address,
                ca_id,
                token_file: args.token_file,
                bootstrap: args.bootstrap_bundle,
                mark: args.mark,
                ttl: args.svid_ttl,
                tally: Tally::none(),
            },
            trust_domain,
            listen: args.listen,
            health_listen: args.health_listen,
            admin_socket: args.admin_socket,
            ready_file: args.ready_file,
            drain: args.drain,
        })
    }

    /// The configuration for people. It holds no secret: the token is a file's name.
    pub fn dump(&self) -> Value {
        json!({
            "source": match &self.source {
                Source::Directory(path) => format!("dir:{}", path.display()),
                Source::Kubernetes(_) => KUBERNETES.to_owned(),
            },
            "pod_ranges": match &self.source {
                Source::Kubernetes(ranges) => ranges.pods.iter().map(ToString::to_string).collect(),
                Source::Directory(_) => Vec::new(),
            },
            "service_ranges": match &self.source {
                Source::Kubernetes(ranges) => ranges.services.iter().map(ToString::to_string).collect(),
                Source::Directory(_) => Vec::new(),
            },
            "trust_domain": self.trust_domain.as_str(), "own_id": self.own_id.as_str(),
            "listen": self.listen, "health_listen": self.health_listen, "admin_socket": self.admin_socket,
            "ca_address": self.ca.ca_address, "ca_id": self.ca.ca_id.as_str(), "token_file": self.ca.token_file,
            "bootstrap_bundle": self.ca.bootstrap, "mark": self.ca.mark,
            "svid_ttl_s": self.ca.ttl.map(|ttl| ttl.as_secs()),
            "ready_file": self.ready_file, "drain_s": self.drain.as_secs(),
        })
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

fn source(source: &str, pods: &[String], services: &[String]) -> Result<Source, ConfigError> {
    if source != KUBERNETES {
        return match (pods, services) {
            ([], []) => Ok(Source::Directory(directory(source)?)),
            ([], _) => Err(ConfigError::RangesTwice("service-range")),
            _ => Err(ConfigError::RangesTwice("pod-range")),
        };
    }
    let pods = ranges("pod-range", pods)?;
    let services = ranges("service-range", services)?;
    for service in &services {
        if let Some(pod) = pods.iter().find(|pod| pod.contains(service) || service.contains(*pod)) {
            let why = format!("overlaps --pod-range {pod}");
            return Err(ConfigError::Range { flag: "service-range", text: service.to_string(), why });
        }
    }
    Ok(Source::Kubernetes(Ranges { pods, services }))
}

/// As in a Mesh object.
fn ranges(flag: &'static str, texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    let wrong = |text: &str, why: String| ConfigError::Range { flag, text: text.to_owned(), why };
    if texts.len() > MAX_RANGES {
        return Err(wrong(&texts.len().to_string(), format!("more than {MAX_RANGES} ranges")));
    }
    let range = |text: &String| {
        let range: IpNet =
            text.trim().parse().map_err(|_| wrong(text, "is not a CIDR like 10.244.0.0/16".to_owned()))?;
        if range.trunc() != range {
            return Err(wrong(text, format!("has host bits set; {} is meant?", range.trunc())));
        }
        if range.addr().to_canonical() != range.addr() {
            return Err(wrong(text, "write the range as IPv4".to_owned()));
        }
        Ok(range)
    };
    texts.iter().map(range).collect()
}

/// The source must be there at the start: a wrong path is a mistake, a path that goes away later is an outage.
fn directory(source: &str) -> Result<PathBuf, ConfigError> {
    let path = match source.split_once(':') {
        Some(("dir", path)) if !path.is_empty() => PathBuf::from(path),
        _ => return Err(ConfigError::Source(source.to_owned())),
    };
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => Ok(path),
        Ok(_) => Err(ConfigError::Directory { path, why: "is not a directory".to_owned() }),
        Err(error) => Err(ConfigError::Directory { path, why: error.to_string() }),
    }
}

fn is_host_and_port(address: &str) -> bool {
    let address = address.trim();
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    !bare.is_empty() && (bare == host) != host.contains(':') && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn readable(flag: &'static str, path: &PathBuf) -> Result<(), ConfigError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(ConfigError::File { flag, path: path.clone(), why: error.to_string() }),
    }
}

/// A number and a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration like 90s, 15m or 1h");
    let unit = text.char_indices().next_back().ok_or_else(wrong)?;
    let number: u64 = text[..unit.0].parse().map_err(|_| wrong())?;
    let seconds = match unit.1 {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    match number.checked_mul(seconds).filter(|seconds| (1..=31_536_000).contains(seconds)) {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err(wrong()),
    }
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
