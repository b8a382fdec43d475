//! `cargo xtask demo`: from a fresh checkout to the running demo in one command.
//!
//! Called by people; `test` runs the same demo with its own build. It must never ask a question.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::programs::{self, For};

/// What the demo starts; all lie beside `countersign`, which finds them there.
pub const BINARIES: &[&str] = &["countersign", "countersign-proxy", "countersign-ca", "countersign-controller"];

/// Installs, builds, runs; the exit code is the demo's own.
pub fn run(args: &[String]) -> Result<u8> {
    programs::ensure(For::Demo);
    cargo::say_features();
    println!("Building the release binaries (about 10 minutes of two cores the first time) ...");
    let mut build = cargo::cargo();
    build.args(["build", "--release", "--bins"]).args(cargo::features());
    for package in ["countersign-proxy", "countersign-ca", "countersign-controller", "countersign-cli"] {
        build.args(["--package", package]);
    }
    if !build.status().context("running cargo build")?.success() {
        bail!("cargo build failed; the errors are above");
    }
    let mut demo = std::process::Command::new(cargo::target_dir()?.join("release").join("countersign"));
    // Becomes the demo, so that Ctrl-C reaches it alone and its cleaning up is waited for.
    Err(demo.arg("demo").args(args).exec()).context("starting the demo")
}
