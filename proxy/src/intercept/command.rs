//! The sub-command `intercept`: flags in, rules in force, checked or gone, exit code out.
//!
//! Called by `main`. It must never start anything else of the proxy.

use clap::{Args, Subcommand};
use countersign_api::{env, ports};
use ipnet::IpNet;

use super::{InterceptError, Rules, check, install, remove};

/// What to do with the pod's rules.
#[derive(Debug, Subcommand)]
pub enum Intercept {
    /// Put the redirect rules in force, in place of older ones of ours.
    Install(RulesArgs),
    /// Take them away.
    Remove,
    /// Read them back and compare; exit code 1 and a line each where they differ.
    Check(RulesArgs),
}

/// Which rules.
#[derive(Debug, Args)]
pub struct RulesArgs {
    /// Port of the inbound listener.
    #[arg(long, env = env::INBOUND_PORT, default_value_t = ports::INBOUND, value_name = "PORT")]
    pub inbound_port: u16,
    /// Port of the outbound listener.
    #[arg(long, env = env::OUTBOUND_PORT, default_value_t = ports::OUTBOUND, value_name = "PORT")]
    pub outbound_port: u16,
    /// Port of /livez, /readyz and /metrics: reached without redirect.
    #[arg(long, env = env::HEALTH_PORT, default_value_t = ports::PROXY_HEALTH, value_name = "PORT")]
    pub health_port: u16,
    /// Mark of the proxy's own connections. Without it they are known by the proxy's user.
    #[arg(long, env = env::MARK, value_name = "NUMBER")]
    pub mark: Option<u32>,
    /// User that the proxy runs as; 1337 where neither it nor --mark is given.
    #[arg(long, env = env::PROXY_UID, value_name = "UID")]
    pub uid: Option<u32>,
    /// Ports of the pod that are reached past the sidecar, with neither mTLS nor rules.
    #[arg(long, env = env::SKIP_INBOUND_PORTS, value_delimiter = ',', value_name = "PORT,PORT")]
    pub skip_inbound_ports: Vec<u16>,
    /// Ports elsewhere that the app reaches past the sidecar.
    #[arg(long, env = env::SKIP_OUTBOUND_PORTS, value_delimiter = ',', value_name = "PORT,PORT")]
    pub skip_outbound_ports: Vec<u16>,
    /// Addresses that the app reaches past the sidecar.
    #[arg(long, env = env::SKIP_OUTBOUND_CIDRS, value_delimiter = ',', value_name = "CIDR,CIDR")]
    pub skip_outbound_cidrs: Vec<IpNet>,
}

impl From<RulesArgs> for Rules {
    fn from(args: RulesArgs) -> Self {
        Self {
            inbound_port: args.inbound_port,
            outbound_port: args.outbound_port,
            health_port: args.health_port,
            exempt_uid: args.uid.or_else(|| args.mark.is_none().then_some(ports::PROXY_UID)),
            exempt_mark: args.mark,
            skip_inbound_ports: args.skip_inbound_ports,
            skip_outbound_ports: args.skip_outbound_ports,
            skip_outbound_cidrs: args.skip_outbound_cidrs,
        }
    }
}

impl Intercept {
    /// Does it. The exit code: 0 done, 1 the rules in force are not the wanted ones (each difference is a line on stderr).
    ///
    /// # Errors
    /// See [`InterceptError`].
    pub fn run(self) -> Result<u8, InterceptError> {
        match self {
            Self::Install(args) => {
                let rules = args.into();
                install(&rules)?;
                compare(&rules)
            }
            Self::Remove => remove().map(|()| 0),
            Self::Check(args) => compare(&args.into()),
        }
    }
}

/// Also after an install: what counts is what is in force.
fn compare(rules: &Rules) -> Result<u8, InterceptError> {
    let differences = check(rules)?;
    for difference in &differences {
        eprintln!("{difference}");
    }
    Ok(u8::from(!differences.is_empty()))
}
