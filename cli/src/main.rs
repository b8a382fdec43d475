//! `countersign`: the command for people.
//!
//! Exit codes are the same everywhere: 0 it is so, 1 it is not, 2 it could not be found out (usage, files, sockets). What
//! a command found goes to standard output, why it could not goes to standard error.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod audit;
mod bench;
mod ca;
mod cluster;
mod demo;
mod explain;
mod identity;
mod inject;
mod input;
mod install;
mod output;
mod places;
mod policy;
mod status;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use serde_json::json;

use crate::args::{Args, Command};
use crate::output::{Format, Verdict};

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(2),
        Err(problem) => {
            eprintln!("countersign: {problem:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<Verdict> {
    match &args.command {
        Command::Demo(demo) => demo::run(demo, args.output),
        Command::Bench(bench) => bench::run(bench, args.output),
        Command::Status(status) => status::run(status, args.output),
        Command::Explain(explain) => explain::run(explain, args.output),
        Command::Identity(identity) => identity::run(identity, args.output),
        Command::Install(install) => install::run(install, args.output),
        Command::Inject(inject) => inject::inject(inject, args.output),
        Command::Uninject(uninject) => inject::uninject(uninject, args.output),
        Command::Check(check) => cluster::check::run(check, args.output),
        Command::Uninstall(uninstall) => cluster::uninstall::run(uninstall, args.output),
        Command::Ca(command) => ca::run(command, args.output),
        Command::Policy(policy) => policy::run(policy, args.output),
        Command::Completion { shell } => completion(*shell, args.output),
        Command::Version => version(args.output),
    }
}

fn completion(shell: clap_complete::Shell, format: Format) -> Result<Verdict> {
    format.is_of_no_use("a completion script is what the shell reads")?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "countersign", &mut script);
    output::emit(&String::from_utf8_lossy(&script))?;
    Ok(Verdict::Yes)
}

fn version(format: Format) -> Result<Verdict> {
    let version = env!("CARGO_PKG_VERSION");
    let wire = String::from_utf8_lossy(countersign_api::names::ALPN);
    let feature = countersign_policy::FEATURE_LEVEL;
    output::either(format, &json!({ "version": version, "wire": wire, "policy_feature_level": feature }), || {
        format!("countersign {version}, wire {wire}, rules up to feature level {feature}\n")
    })?;
    Ok(Verdict::Yes)
}
