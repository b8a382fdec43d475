//! `countersign-ca`, the process: arguments, logs, files, signals. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use countersign_admin::Log;
use countersign_admin::log::DEFAULT_FILTER;
use countersign_ca::ask::Ask;
use countersign_ca::config::{Args, Config, STATE_KEY};
use countersign_ca::run;
use countersign_credentials::{leave_no_core, raise_open_files, system_clock};
use tokio::signal::unix::{SignalKind, signal};

/// A signature takes hundreds of small pieces of memory: the system's allocator takes twice the time for them.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Files that are open beside connections: listeners, logs, the state's lock.
const SPARE: usize = 64;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == "ask") {
        return Ask::parse_from(words.into_iter().skip(1)).run();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("runtime").and_then(|runtime| runtime.block_on(serve())) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("countersign-ca: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// 0: ended in order. 1: the drain deadline or a second signal forced it. 2: it could not start, or failed.
async fn serve() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let log = Log::start(args.log.as_deref().unwrap_or(DEFAULT_FILTER)).context("--log")?;
    leave_no_core();
    let config = Config::check(args, std::env::var(STATE_KEY).ok().as_deref())?;
    raise_open_files(config.max_connections.saturating_add(SPARE));
    let drain = config.drain;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A file that has reached a limit of the system's (ulimit -f) is an error to be told, not a death.
    let _too_long = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    let mut running = run::start(config, system_clock(), log).await?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        why = running.failed() => anyhow::bail!(why),
    }
    tracing::info!("shutting down");
    let in_order = tokio::select! {
        in_order = running.shutdown(drain) => in_order,
        _ = term.recv() => false,
        _ = int.recv() => false,
    };
    Ok(ExitCode::from(u8::from(!in_order)))
}
