//! Flags and environment, read once and checked whole before a port is bound, into one immutable [`Config`]. Called by `main`. An
//! unknown flag stops the start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use countersign_api::{env as names_env, names, ports};
use serde_json::{Value, json};

use crate::keeper::Terms;
use crate::mesh::{Mesh, MeshArgs, MeshError};

/// A shorter one would be renewed before every API server knows it.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(90 * 86_400);

/// Why the configuration is no good. Each names the flag.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error(transparent)]
    Mesh(#[from] MeshError),
    #[error("--certificate-life: {0:?} is not from 1m to 90d")]
    Life(Duration),
}

/// The flags as they are typed. Durations are a number and a unit: 90s, 15m, 1h, 30d.
#[derive(Parser, Debug)]
#[command(
    name = "countersign-injector",
    version,
    about = "Countersign's admission webhook: puts sidecars into pods, and judges rules"
)]
#[allow(missing_docs)]
pub struct Args {
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Address of the HTTPS port; port 0 picks a free one
    #[arg(long, env = "COUNTERSIGN_INJECTOR_LISTEN", default_value_t = any(ports::INJECTOR))]
    pub listen: SocketAddr,
    /// Address of /livez, /readyz, /metrics; port 0 picks a free one
    #[arg(long, env = "COUNTERSIGN_INJECTOR_HEALTH_LISTEN", default_value_t = any(ports::INJECTOR_HEALTH))]
    pub health_listen: SocketAddr,
    /// Path of the admin socket
    #[arg(long, env = names_env::ADMIN_SOCKET, default_value = "/run/countersign/injector.sock")]
    pub admin_socket: PathBuf,
    /// Outside of a cluster: how to reach its API server
    #[arg(long, env = "COUNTERSIGN_INJECTOR_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Life of the serving certificate and its root; renewed at half of it
    #[arg(long, env = "COUNTERSIGN_INJECTOR_CERTIFICATE_LIFE", default_value = "24h", value_parser = duration)]
    pub certificate_life: Duration,
    /// Time from SIGTERM, when it says that it is not ready, until it accepts no more connections
    #[arg(long, env = "COUNTERSIGN_INJECTOR_WITHDRAW", default_value = "5s", value_parser = duration)]
    pub withdraw: Duration,
    /// Time for requests under way after that
    #[arg(long, env = "COUNTERSIGN_INJECTOR_DRAIN", default_value = "10s", value_parser = duration)]
    pub drain: Duration,
    /// Written, whole, once all ports are bound: JSON with the addresses
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    /// Log filter: a level, or TARGET=LEVEL separated by commas
    #[arg(long, env = names_env::LOG)]
    pub log: Option<String>,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Config {
    pub mesh: Mesh,
    pub listen: SocketAddr,
    pub health_listen: SocketAddr,
    pub admin_socket: PathBuf,
    pub kubeconfig: Option<PathBuf>,
    pub terms: Terms,
    pub withdraw: Duration,
    pub drain: Duration,
    pub ready_file: Option<PathBuf>,
}

impl Config {
    /// Checks everything.
    ///
    /// # Errors
    /// The first flag that is no good.
    pub fn check(args: Args) -> Result<Self, ConfigError> {
        let mesh = Mesh::check(&args.mesh)?;
        if !(SHORTEST..=LONGEST).contains(&args.certificate_life) {
            return Err(ConfigError::Life(args.certificate_life));
        }
        let service = format!("{}.{}", names::INJECTOR_ACCOUNT, mesh.system_namespace);
        let names = vec![format!("{service}.svc"), format!("{service}.svc.cluster.local"), service];
        Ok(Self {
            terms: Terms { names, life: args.certificate_life },
            mesh,
            listen: args.listen,
            health_listen: args.health_listen,
            admin_socket: args.admin_socket,
            kubeconfig: args.kubeconfig,
            withdraw: args.withdraw,
            drain: args.drain,
            ready_file: args.ready_file,
        })
    }

    /// The configuration for people.
    #[must_use]
    pub fn dump(&self) -> Value {
        let mesh = &self.mesh;
        let permitted: Vec<_> = mesh.permitted.iter().map(|setting| setting.as_str()).collect();
        json!({
            "listen": self.listen, "health_listen": self.health_listen, "admin_socket": self.admin_socket,
            "kubeconfig": self.kubeconfig, "certificate_names": self.terms.names,
            "certificate_life_s": self.terms.life.as_secs(),
            "withdraw_s": self.withdraw.as_secs(), "drain_s": self.drain.as_secs(), "ready_file": self.ready_file,
            "proxy_image": mesh.image, "proxy_image_pull_policy": mesh.pull_policy, "trust_domain": mesh.trust_domain,
            "system_namespace": mesh.system_namespace, "ca_address": mesh.ca_address,
            "controller_address": mesh.controller_address, "permitted_annotations": permitted,
            "max_cpu": mesh.max_cpu.as_str(), "max_memory": mesh.max_memory.as_str(),
            "pod_security_exempt": mesh.pod_security_exempt,
        })
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

/// A number and a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a number with one of the units s, m, h, d");
    let unit = text.chars().last().ok_or_else(bad)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| bad())?;
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_flag_is_named_and_the_rest_has_its_default() {
        let config = |flags: &[&str]| Config::check(Args::try_parse_from(["x"].iter().chain(flags)).unwrap());
        let good = config(&[]).unwrap();
        assert_eq!(good.terms.names[0], "countersign-injector.countersign-system.svc");
        assert_eq!((good.listen.port(), good.health_listen.port()), (15050, 15051));
        let named = |flags: &[&str]| config(flags).unwrap_err().to_string();
        assert!(named(&["--certificate-life", "59s"]).starts_with("--certificate-life"));
        assert!(named(&["--max-cpu", "x"]).starts_with("--max-cpu"));
        assert!(Args::try_parse_from(["x", "--certificate-life", "1y"]).is_err());
        assert!(Args::try_parse_from(["x", "--unknown"]).is_err());
    }
}
