//! The sub-command `intercept`: flags in, rules in force, checked or gone, exit code out.
//!
//! Called by `main`. It must never start anything else of the proxy.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use countersign_api::{env, ports};
use ipnet::IpNet;

use super::{Difference, Family, InterceptError, Rules, check, install, remove};

/// Exit code: the rules in force are not these.
const DIFFERENT: u8 = 1;
/// Exit code: nothing was changed, or nothing can be told.
const FAILED: u8 = 2;

/// What to do with the pod's rules.
#[derive(Debug, Subcommand)]
pub enum Intercept {
    /// Put the redirect rules in force, in place of older ones of ours.
    Install(RulesArgs),
    /// Take them away.
    Remove,
    /// Read them back and compare; exit code 1, and a line for each difference.
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
    pub exempt_mark: Option<u32>,
    /// User that the proxy runs as; 1337 where neither it nor --exempt-mark is given.
    #[arg(long, env = env::PROXY_UID, value_name = "UID")]
    pub exempt_uid: Option<u32>,
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
            family: Family::of_this_kernel(),
            inbound_port: args.inbound_port,
            outbound_port: args.outbound_port,
            health_port: args.health_port,
            exempt_uid: args.exempt_uid.or_else(|| args.exempt_mark.is_none().then_some(ports::PROXY_UID)),
            exempt_mark: args.exempt_mark,
            skip_inbound_ports: args.skip_inbound_ports,
            skip_outbound_ports: args.skip_outbound_ports,
            skip_outbound_cidrs: args.skip_outbound_cidrs,
        }
    }
}

impl Intercept {
    /// Does it, and says on stderr what was wrong.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.done() {
            Ok(differences) if differences.is_empty() => ExitCode::SUCCESS,
            Ok(differences) => {
                differences.iter().for_each(|difference| eprintln!("{difference}"));
                ExitCode::from(DIFFERENT)
            }
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(FAILED)
            }
        }
    }

    fn done(self) -> Result<Vec<Difference>, InterceptError> {
        match self {
            Self::Install(args) => {
                let rules = args.into();
                install(&rules)?;
                check(&rules) // what counts is what is in force
            }
            Self::Remove => remove().map(|()| Vec::new()),
            Self::Check(args) => check(&args.into()),
        }
    }
}
