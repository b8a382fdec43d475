//! `countersign-proxy`: settings, then the log, then `run`.
//!
//! Exit codes of `run`: 0 ended well, 1 failed, 2 bad settings, 3 ended with connections cut. `intercept`, `drain` and `ask` say their own.

use std::process::ExitCode;

use clap::Parser as _;
use countersign_admin::Log;
use countersign_proxy::config::args::{Cli, Command, RunArgs};
use countersign_proxy::config::{Config, unknown_variables};
use countersign_proxy::run;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Exit code of bad settings; clap's own, too.
const BAD_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => carry(&cli.run),
        Some(Command::Run(args)) => carry(&args),
        Some(Command::Intercept(intercept)) => intercept.run(),
        Some(Command::Drain(drain)) => drain.run(),
        Some(Command::Ask(ask)) => ask.run(),
        Some(Command::Version) => {
            println!("countersign-proxy {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

fn carry(args: &RunArgs) -> ExitCode {
    let config = match Config::read(args) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(BAD_SETTINGS);
        }
    };
    let log = match Log::start(&config.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("error: the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    let present: Vec<_> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    for name in unknown_variables(&present) {
        tracing::warn!(name, "this variable is no setting of the proxy");
    }
    match run::run(config, log) {
        Ok(ended) => ended.exit_code(),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
