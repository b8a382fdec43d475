//! `countersign-controller`, the process: arguments, logs, signals. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use countersign_admin::Log;
use countersign_admin::log::DEFAULT_FILTER;
use countersign_controller::ask::Ask;
use countersign_controller::config::{Args, Config};
use countersign_controller::run;
use countersign_credentials::{IncomingLimits, leave_no_core, raise_open_files, system_clock};
use tokio::signal::unix::{SignalKind, signal};

/// Files that are open beside connections: listeners, logs, the source's watches.
const SPARE: usize = 64;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == "ask") {
        return Ask::parse_from(words.into_iter().skip(1)).run();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.context("runtime").and_then(|runtime| runtime.block_on(serve())) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("countersign-controller: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// 0: ended in order. 1: the drain deadline or a second signal forced it. 2: it could not start, or failed.
async fn serve() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let log = Log::start(args.log.as_deref().unwrap_or(DEFAULT_FILTER)).context("--log")?;
    leave_no_core();
    let config = Config::check(args)?;
    raise_open_files(IncomingLimits::default().connections + SPARE);
    let drain = config.drain;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut running = run::start(config, system_clock(), log).await?;
    let announced = running.ready();
    let unannounced = async {
        match announced.await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        why = running.failed() => anyhow::bail!(why),
        error = unannounced => return Err(error.into()),
    }
    tracing::info!("shutting down");
    let in_order = tokio::select! {
        in_order = running.shutdown(drain) => in_order,
        _ = term.recv() => false,
        _ = int.recv() => false,
    };
    Ok(ExitCode::from(u8::from(!in_order)))
}
