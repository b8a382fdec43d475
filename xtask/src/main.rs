//! `cargo xtask`: the only way CI and people run things.
//!
//! Called by people and by `.ci/run`. Each command sets up what it needs by itself, names what it could not do, and
//! never reports as passed what did not run.

mod bench;
mod cargo;
mod cluster;
mod demo;
mod digest;
mod fuzz;
mod image;
mod lint;
mod programs;
mod report;
mod statics;
mod suite;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask demo [ARGS]          build the release binaries and run the demo (--keep leaves it running)
cargo xtask test [FILTER]        everything CI runs; FILTER names a step, a package or part of a test's name
cargo xtask test --list [FILTER] the steps and every test: builds them, and runs none
cargo xtask bench mesh           measure side by side with the peers, write docs/performance.md (--rounds N, --short,
                                 --growth, --only PEER,.., --work WORKLOAD,..; --before FILE: beside another build of
                                 the sidecar)
cargo xtask bench signing        how many SVIDs the CA signs a second and core, and nothing else (--rounds N, --seconds N)
cargo xtask bench micro [FILTER] micro-benchmarks, compared with the last run on this machine
cargo xtask fuzz [TARGET]        what strangers send, made up by libFuzzer: every target, or one, for 60 s each (--seconds N)
cargo xtask cluster up|test|down a real Kubernetes cluster on this machine: start it, test on it, stop it (`build` only
                                 builds what it needs)
cargo xtask image                container images of our programs, as files (--registry NAME, --tag TAG, --out FOLDER;
                                 --quick: as the cluster's tests build them)
cargo xtask lint                 the checks of the house alone: who imports whom, file heads, crates, licences
cargo xtask setup                install the system programs that tests and demo use, no more
";

fn main() -> ExitCode {
    if let Some(code) = statics::in_place_of_rustc() {
        return code;
    }
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    if rest.iter().any(|arg| matches!(arg.as_str(), "-h" | "--help")) && command != "demo" {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let done = match command.as_str() {
        "bench" => bench::run(&rest),
        "cluster" => cluster::run(&rest),
        "demo" => demo::run(&rest),
        "fuzz" => fuzz::run(&rest),
        "image" => image::run(&rest),
        "test" => test::run(&rest),
        "lint" | "setup" if !rest.is_empty() => {
            eprintln!("xtask: {command} takes no argument: {}", rest.join(" "));
            Ok(2)
        }
        "lint" => lint::run(),
        "setup" => Ok(programs::setup()),
        "" | "help" | "-h" | "--help" => {
            print!("{HELP}");
            Ok(if command.is_empty() { 2 } else { 0 })
        }
        other => {
            eprint!("xtask: no such command: {other}\n\n{HELP}");
            Ok(2)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            eprintln!("xtask: {problem:#}");
            ExitCode::from(2)
        }
    }
}
