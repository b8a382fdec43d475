//! `countersign-bench`: the harness as a program, and the two small processes that it starts in its pods.
//!
//! Called by `cargo xtask bench`, which builds what is measured and installs the peers. Exit codes: 0 measured, 1 something that should
//! have been measured was not, 2 nothing could be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use countersign_benches::{app, relay, run, signing};

#[derive(Parser)]
#[command(name = "countersign-bench")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures the peers side by side
    Mesh(MeshArgs),
    /// Measures only how many SVIDs the CA signs for each second of its processor time
    Signing(SigningArgs),
    /// The application behind every peer
    #[command(hide = true)]
    App {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// A plain TCP relay
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        buffer: usize,
    },
}

#[derive(clap::Args)]
struct MeshArgs {
    /// Interleaved rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds instead of minutes: shows that all works, and no figure that means anything
    #[arg(long)]
    short: bool,
    /// Growth along one axis at a time instead: connections, rules, payload, threads
    #[arg(long)]
    growth: bool,
    /// Only these peers
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these workloads (rate, full, single, fresh, down1, up1, down4, up4), each run once a round however noisy it is
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    work: Vec<String>,
    /// Another build of countersign-proxy, measured beside the present one as `countersign-before`
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Where docs/performance.md and docs/performance/ are written; nothing is written if not given
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
}

#[derive(clap::Args)]
struct SigningArgs {
    /// Measurements with each kind of token; each starts a CA of its own
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

fn main() -> ExitCode {
    match command(Args::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            eprintln!("countersign-bench: {problem:#}");
            ExitCode::from(2)
        }
    }
}

fn command(args: Args) -> Result<u8> {
    match args.command {
        Command::Mesh(mesh) => {
            let inside = countersign_kit::enter().context("the bench runs in private namespaces")?;
            countersign_kit::load::raise_open_files()?;
            let options = run::Options {
                rounds: mesh.rounds.max(1),
                short: mesh.short,
                growth: mesh.growth,
                only: mesh.only,
                work: mesh.work,
                before: mesh.before,
                docs: mesh.docs,
            };
            run::run(inside, &options)
        }
        Command::Signing(signing) => {
            let inside = countersign_kit::enter().context("the bench runs in private namespaces")?;
            countersign_kit::load::raise_open_files()?;
            for _ in 0..signing.rounds.max(1) {
                for tokens in signing::TOKENS {
                    let measured = signing::measure(inside, Duration::from_secs(signing.seconds.max(1)), tokens)?;
                    println!("{:.0} SVIDs a second and core. {measured}", measured.per_core_second());
                }
            }
            Ok(0)
        }
        Command::App { listen } => {
            runtime()?.block_on(app::serve(listen))?;
            Ok(0)
        }
        Command::Relay { listen, to, buffer } => {
            runtime()?.block_on(relay::serve(listen, to, buffer))?;
            Ok(0)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
