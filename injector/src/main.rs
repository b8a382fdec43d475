//! `countersign-injector`, the process: arguments, log, signals. Everything else is in the library.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Parser as _;
use countersign_admin::Log;
use countersign_admin::log::DEFAULT_FILTER;
use countersign_injector::config::{Args, Config};
use countersign_injector::run;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("runtime").and_then(|runtime| runtime.block_on(serve())) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("countersign-injector: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// 0: ended in order. 1: the drain deadline or a second signal forced it. 2: it could not start, or failed.
async fn serve() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let log = Log::start(args.log.as_deref().unwrap_or(DEFAULT_FILTER)).context("--log")?;
    let config = Config::check(args)?;
    let (withdraw, drain) = (config.withdraw, config.drain);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut running = run::start(config, Arc::new(now), log).await?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        why = running.failed() => anyhow::bail!(why),
    }
    tracing::info!("shutting down");
    let in_order = tokio::select! {
        in_order = running.shutdown(withdraw, drain) => in_order,
        _ = term.recv() => false,
        _ = int.recv() => false,
    };
    Ok(ExitCode::from(u8::from(!in_order)))
}
