//! All settings, read once before a port is bound, into one value that never changes.
//!
//! `main` makes it from the command line and hands it to `run`. It must never let a bad value pass, nor stop at the first: each
//! is named with its flag and its environment variable.

pub mod args;
pub mod probes;
mod values;

pub(crate) use values::time as duration;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory as _;
use countersign_api::{names, ports};
use countersign_identity::{SpiffeId, TrustDomain};
use serde::Serialize;

use args::{Cli, RunArgs};
use probes::AppProbe;
use values::{addresses, file, log, name, number, on_or_off, parsed, pod_ips, port, short, socket, time_within};

/// The settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// Namespace of CA and controller.
    pub system_namespace: String,
    /// Whom we carry connections for.
    pub pod: Pod,
    /// The id that the CA must give us.
    pub id: SpiffeId,
    /// Where our SVID comes from.
    pub ca: Ca,
    /// Where rules and addresses come from.
    pub controller: Controller,
    /// What we listen on.
    pub ports: Ports,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
    /// The app's own probes, which we ask in the kubelet's place.
    pub probes: Vec<AppProbe>,
    /// File that exists exactly while we are ready.
    pub ready_file: Option<PathBuf>,
    /// Mark of our own connections.
    pub mark: Option<u32>,
    /// Threads that carry connections.
    pub worker_threads: usize,
    /// How long open connections may go on once draining started.
    pub drain_deadline: Duration,
    /// Log filter.
    pub log: String,
    /// Whether each connection is one line on stdout.
    pub access_log: bool,
    /// Bounds.
    pub limits: Limits,
}

/// The pod.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Its own addresses, never loopback.
    pub ips: Vec<IpAddr>,
}

/// The CA.
#[derive(Clone, Debug)]
pub struct Ca {
    /// `host:port`, several separated by commas.
    pub address: String,
    /// The only identity accepted as CA.
    pub id: SpiffeId,
    /// File with our token.
    pub token_file: PathBuf,
    /// File with the first roots.
    pub bootstrap: PathBuf,
    /// Wanted life of the SVID.
    pub ttl: Option<Duration>,
}

/// The controller.
#[derive(Clone, Debug)]
pub struct Controller {
    /// `host:port`, each.
    pub addresses: Vec<String>,
    /// The only identity accepted as controller.
    pub id: SpiffeId,
}

/// Ports, all different, none of them zero.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ports {
    /// Inbound listener.
    pub inbound: u16,
    /// Outbound listener; loopback only.
    pub outbound: u16,
    /// `/livez`, `/readyz`, `/metrics`.
    pub health: u16,
}

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections open at once, in each direction.
    pub connections: usize,
    /// Most inbound connections that have not proven themselves yet.
    pub handshake_slots: usize,
    /// Longest dial.
    pub connect: Duration,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Longest wait for an inbound connection's first bytes.
    pub first_bytes: Duration,
    /// Under Permissive: longest wait for a ClientHello from an unknown source.
    pub permissive_hello: Duration,
    /// Longest that the server side keeps an idle TLS connection.
    pub link_idle: Duration,
    /// Most TLS connections kept for another use.
    pub pool_total: usize,
    /// Most of them to one endpoint.
    pub pool_each: usize,
    /// Longest that one is kept.
    pub pool_idle: Duration,
}

/// All that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError(Vec<Problem>);

/// One thing that is wrong.
#[derive(Debug)]
struct Problem {
    /// The argument's id in `args`.
    setting: &'static str,
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let (flag, variable) = spelled(problem.setting);
            let end = if i + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "error: --{flag} ({variable}): {}{end}", problem.message)?;
        }
        Ok(())
    }
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn read(args: &RunArgs) -> Result<Self, ConfigError> {
        let mut checks = Checks::default();
        let read = checks.all(args);
        match read {
            Some(config) if checks.0.is_empty() => Ok(config),
            _ => Err(ConfigError(checks.0)),
        }
    }
}

/// Variables that look like ours and are no setting of this process: a misspelled one would otherwise go unnoticed. They
/// may be meant for another process, so the start goes on and names them. What Kubernetes itself writes for a service
/// named `countersign-...` is not among them.
#[must_use]
pub fn unknown_variables(present: &[String]) -> Vec<&str> {
    let known = known_variables(&Cli::command());
    let services: Vec<_> = present.iter().filter_map(|name| name.strip_suffix("SERVICE_HOST")).collect();
    let of_kubernetes = |name: &str| services.iter().any(|service| name.starts_with(service));
    let ours = present.iter().map(String::as_str).filter(|name| name.starts_with("COUNTERSIGN_"));
    ours.filter(|name| !known.iter().any(|known| known == name) && !of_kubernetes(name)).collect()
}

fn known_variables(command: &clap::Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned));
    own.chain(command.get_subcommands().flat_map(known_variables)).collect()
}

#[derive(Default)]
struct Checks(Vec<Problem>);

impl Checks {
    fn all(&mut self, args: &RunArgs) -> Option<Config> {
        let trust_domain = self.check("trust_domain", &args.trust_domain, |v| parsed(TrustDomain::parse(v)));
        let system_namespace = self.check("system_namespace", &args.system_namespace, name);
        let pod = self.pod(args);
        let ca_address = self.required("ca_address", args.ca_address.as_ref(), addresses);
        let controller = self.required("controller_address", args.controller_address.as_ref(), addresses);
        let token_file = self.check("token_file", &args.token_file, file);
        let bootstrap = self.check("bootstrap_bundle", &args.bootstrap_bundle, file);
        let ttl = self.optional("svid_ttl", args.svid_ttl.as_ref(), |v| time_within(v, 10, 30 * 86_400));
        let ports = self.ports(args);
        let probes = self.optional("probes", args.probes.as_ref(), probes::read);
        if let (Some(ports), Some(Some(probes))) = (ports, &probes) {
            self.foreign(ports, probes);
        }
        let admin_socket = self.check("admin_socket", &args.admin_socket, socket);
        let ready_file = self.optional("ready_file", args.ready_file.as_ref(), file);
        let mark = self.optional("mark", args.mark.as_ref(), |v| number(v, 1, u32::MAX));
        let worker_threads = self.check("worker_threads", &args.worker_threads, |v| number(v, 1, 64));
        let drain_deadline = self.check("drain_deadline", &args.drain_deadline, |v| time_within(v, 0, 86_400));
        let log = self.check("log", &args.log, log);
        let access_log = self.check("access_log", &args.access_log, on_or_off);
        let limits = self.limits(args);

        let (trust_domain, system_namespace, pod) = (trust_domain?, system_namespace?, pod?);
        let id = |setting, namespace: &str, account: &str| {
            let id = SpiffeId::for_service_account(&trust_domain, namespace, account);
            id.map_err(|e| Problem { setting, message: e.to_string() })
        };
        let ids = [
            id("service_account", &pod.namespace, &pod.service_account),
            id("system_namespace", &system_namespace, names::CA_ACCOUNT),
            id("system_namespace", &system_namespace, names::CONTROLLER_ACCOUNT),
        ];
        let [own, ca_id, controller_id] = ids.map(|id| id.map_err(|problem| self.0.push(problem)).ok());
        Some(Config {
            id: own?,
            ca: Ca {
                address: ca_address?.join(","),
                id: ca_id?,
                token_file: token_file?,
                bootstrap: bootstrap?,
                ttl: ttl?,
            },
            controller: Controller { addresses: controller?, id: controller_id? },
            ports: ports?,
            probes: probes?.unwrap_or_default(),
            admin_socket: admin_socket?,
            ready_file: ready_file?,
            mark: mark?,
            worker_threads: worker_threads?,
            drain_deadline: drain_deadline?,
            log: log?,
            access_log: access_log?,
            limits: limits?,
            trust_domain,
            system_namespace,
            pod,
        })
    }

    fn pod(&mut self, args: &RunArgs) -> Option<Pod> {
        let name_ = self.required("pod_name", args.pod_name.as_ref(), name);
        let uid = self.required("pod_uid", args.pod_uid.as_ref(), name);
        let namespace = self.required("pod_namespace", args.pod_namespace.as_ref(), name);
        let service_account = self.required("service_account", args.service_account.as_ref(), name);
        let ips = self.required("pod_ips", args.pod_ips.as_ref(), pod_ips);
        Some(Pod { name: name_?, uid: uid?, namespace: namespace?, service_account: service_account?, ips: ips? })
    }

    fn ports(&mut self, args: &RunArgs) -> Option<Ports> {
        let inbound = self.check("inbound_port", &args.inbound_port, port);
        let outbound = self.check("outbound_port", &args.outbound_port, port);
        let health = self.check("health_port", &args.health_port, port);
        let (inbound, outbound, health) = (inbound?, outbound?, health?);
        if outbound == inbound {
            self.add("outbound_port", format!("{outbound} is the inbound port"));
        }
        if health == inbound || health == outbound {
            self.add("health_port", format!("{health} is a port of the data path"));
        }
        Some(Ports { inbound, outbound, health })
    }

    /// A probe asks the app, and nobody else.
    fn foreign(&mut self, ours: Ports, probes: &[AppProbe]) {
        let ours = [ours.inbound, ours.outbound, ours.health, ports::SELF_PROOF];
        for probe in probes.iter().filter(|probe| ours.contains(&probe.port())) {
            let (container, kind) = (&probe.container, probe.kind.as_str());
            self.add("probes", format!("{container}.{kind}: port {} is the proxy's own", probe.port()));
        }
    }

    fn limits(&mut self, args: &RunArgs) -> Option<Limits> {
        let args = &args.limits;
        let connections = self.check("max_connections", &args.max_connections, |v| number(v, 1, 1_000_000));
        let handshake_slots = self.check("handshake_slots", &args.handshake_slots, |v| number(v, 4, 100_000));
        let connect = self.check("connect_timeout", &args.connect_timeout, short);
        let handshake = self.check("handshake_timeout", &args.handshake_timeout, short);
        let first_bytes = self.check("first_bytes_timeout", &args.first_bytes_timeout, short);
        let permissive_hello = self.check("permissive_hello_timeout", &args.permissive_hello_timeout, short);
        let link_idle = self.check("link_idle_timeout", &args.link_idle_timeout, |v| time_within(v, 1, 86_400));
        let pool_total = self.check("pool_size", &args.pool_size, |v| number(v, 0, 100_000));
        let pool_each = self.check("pool_size_each", &args.pool_size_each, |v| number(v, 0, 100_000));
        let pool_idle = self.check("pool_idle_timeout", &args.pool_idle_timeout, |v| time_within(v, 1, 86_400));
        let (link_idle, pool_idle) = (link_idle?, pool_idle?);
        if pool_idle >= link_idle {
            // Else a connection is mostly closed by its server side just as the client side uses it again.
            self.add("pool_idle_timeout", "must be shorter than --link-idle-timeout".to_owned());
        }
        Some(Limits {
            connections: connections?,
            handshake_slots: handshake_slots?,
            connect: connect?,
            handshake: handshake?,
            first_bytes: first_bytes?,
            permissive_hello: permissive_hello?,
            link_idle,
            pool_total: pool_total?,
            pool_each: pool_each?,
            pool_idle,
        })
    }

    fn check<T>(
        &mut self,
        setting: &'static str,
        value: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let result = if value.is_empty() { Err("is empty".to_owned()) } else { read(value) };
        result.map_err(|message| self.add(setting, message)).ok()
    }

    fn required<T>(
        &mut self,
        setting: &'static str,
        value: Option<&String>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match value {
            Some(value) => self.check(setting, value, read),
            None => {
                self.add(setting, "is required".to_owned());
                None
            }
        }
    }

    fn optional<T>(
        &mut self,
        setting: &'static str,
        value: Option<&String>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        match value {
            Some(value) => self.check(setting, value, read).map(Some),
            None => Some(None),
        }
    }

    fn add(&mut self, setting: &'static str, message: String) {
        self.0.push(Problem { setting, message });
    }
}

/// Flag and variable of an argument, as the command line itself spells them.
fn spelled(setting: &str) -> (String, String) {
    let command = Cli::command();
    let arg = command.get_arguments().find(|arg| arg.get_id() == setting);
    let flag = arg.and_then(|arg| arg.get_long()).unwrap_or(setting).to_owned();
    let variable = arg.and_then(|arg| arg.get_env()).map(|env| env.to_string_lossy().into_owned());
    (flag, variable.unwrap_or_default())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
