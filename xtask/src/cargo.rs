//! Calls of cargo: which flags, which feature set, what it built and where.
//!
//! Called by `test`, `demo` and `lint`. It must never build with one set of features in one step and another in the
//! next: that would build everything twice.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{programs, statics};

/// The workspace's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// Cargo itself, as it was called, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    if std::env::var("CI").is_ok_and(|value| value == "true") {
        command.env("CARGO_TERM_PROGRESS_WHEN", "never");
        // Nobody edits and builds again there.
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// jemalloc is built by `make`; without it sidecar and CA use the system's allocator.
pub fn features() -> &'static [&'static str] {
    if programs::find("make").is_some() { &[] } else { &["--no-default-features"] }
}

/// Says, once, when sidecar and CA are built without jemalloc.
pub fn say_features() {
    if !features().is_empty() {
        println!(
            "No `make`: sidecar and CA are built with the system's allocator instead of jemalloc (more memory when idle, slower signing)."
        );
    }
}

/// Whether a cargo sub-command is installed; `component` is what rustup calls it. Tries to install it where rustup is.
pub fn has_component(subcommand: &str, component: &str) -> bool {
    let there = || {
        let mut probe = cargo();
        probe.args([subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    if there() {
        return true;
    }
    println!("   adding the toolchain's component: rustup component add {component}");
    let added = Command::new("rustup").args(["component", "add", component]).current_dir(root()).status();
    added.is_ok_and(|status| status.success()) && there()
}

/// `cargo metadata` with all dependencies for this kind of machine.
pub fn metadata() -> Result<Value> {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    read_metadata(&["--locked", "--filter-platform", &host])
}

/// Where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = read_metadata(&["--no-deps"])?;
    let dir = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(dir.into())
}

fn read_metadata(args: &[&str]) -> Result<Value> {
    let mut command = cargo();
    command.args(["metadata", "--format-version=1"]).args(args);
    let output = command.stderr(Stdio::inherit()).output().context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed; what it said is above");
    }
    serde_json::from_slice(&output.stdout).context("reading what cargo metadata printed")
}

/// One program that holds tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestProgram {
    /// The package it tests.
    pub package: String,
    /// `lib`, `bin` or `test`.
    pub kind: String,
    /// The target's name.
    pub target: String,
    /// The file to run.
    pub executable: PathBuf,
    /// The package's folder: tests run there.
    pub folder: PathBuf,
    /// Where a cluster's programs are, for tests that run on one.
    pub built: Option<PathBuf>,
}

/// Builds everything once: libraries, binaries and every test program; and our programs for images, statically linked (`statics`).
/// Cargo's own messages go to the terminal.
pub fn build_all() -> Result<Vec<TestProgram>> {
    let mut command = cargo();
    command.args(["build", "--workspace", "--all-targets", "--message-format=json-render-diagnostics"]);
    command.args(features()).stdout(Stdio::piped());
    statics::wrap(&mut command)?;
    let output = command.stderr(Stdio::inherit()).output().context("running cargo build")?;
    if !output.status.success() {
        bail!("cargo build failed; the errors are above");
    }
    Ok(test_programs(&String::from_utf8_lossy(&output.stdout)))
}

fn test_programs(messages: &str) -> Vec<TestProgram> {
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter_map(|message| test_program(&message)).collect()
}

fn test_program(message: &Value) -> Option<TestProgram> {
    let kind = message["target"]["kind"][0].as_str()?;
    if message["profile"]["test"] != true || kind == "bench" || kind == "example" {
        return None;
    }
    let folder = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
    Some(TestProgram {
        package: package_name(message["package_id"].as_str()?),
        kind: kind.to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        executable: message["executable"].as_str()?.into(),
        folder,
        built: None,
    })
}

/// `path+file:///work/policy#countersign-policy@0.1.0` or `path+file:///work/xtask#0.1.0`.
fn package_name(id: &str) -> String {
    let (path, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.rsplit_once('@') {
        Some((name, _version)) => name.to_owned(),
        None => path.rsplit('/').next().unwrap_or(path).to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_read_from_cargos_messages_and_other_artifacts_are_not() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/policy#countersign-policy@0.1.0","manifest_path":"/w/policy/Cargo.toml","target":{"kind":["lib"],"name":"countersign_policy"},"profile":{"test":true},"executable":"/t/policy-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/policy#countersign-policy@0.1.0","manifest_path":"/w/policy/Cargo.toml","target":{"kind":["lib"],"name":"countersign_policy"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/b#0.1.0","manifest_path":"/w/b/Cargo.toml","target":{"kind":["bench"],"name":"b"},"profile":{"test":true},"executable":"/t/b"}"#,
            "\n{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        let found = test_programs(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].package, "countersign-policy");
        assert_eq!(found[0].folder, PathBuf::from("/w/policy"));
    }

    #[test]
    fn both_forms_of_a_package_id_give_its_name() {
        assert_eq!(package_name("path+file:///w/xtask#0.1.0"), "xtask");
        assert_eq!(package_name("path+file:///w/tests/kit#countersign-kit@0.1.0"), "countersign-kit");
    }
}
