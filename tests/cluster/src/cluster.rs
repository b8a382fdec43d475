//! The cluster that is up: kubectl on it, commands inside its nodes.
//!
//! Called by every test. It must never touch a cluster other than the one that `kit/up` started.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// For one command. None waits longer by itself, for pods that start or are gone.
const LONGEST: Duration = Duration::from_secs(4 * 60);

/// A way to the running cluster.
#[derive(Debug)]
pub struct Cluster {
    built: PathBuf,
    kit: PathBuf,
    kubeconfig: PathBuf,
    namespaces: Mutex<Vec<String>>,
    mesh: OnceLock<Result<(), String>>,
}

impl Cluster {
    /// The one that is up.
    ///
    /// # Errors
    /// None is.
    pub fn running() -> Result<Self> {
        let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let built =
            std::env::var_os("CLUSTER_BUILT").map_or_else(|| package.join("../../target/cluster"), PathBuf::from);
        let state =
            std::env::var_os("CLUSTER_DIR").map_or_else(|| "/var/tmp/countersign-cluster".into(), PathBuf::from);
        let kubeconfig = state.join("admin.conf");
        ensure!(kubeconfig.exists(), "there is no {}", kubeconfig.display());
        let cluster =
            Self { built, kit: package.join("kit"), kubeconfig, namespaces: Mutex::default(), mesh: OnceLock::new() };
        cluster.kubectl(&["get", "--raw", "/readyz"]).context("the API server")?;
        Ok(cluster)
    }

    /// A program that was built with the cluster: `kube`, `countersign`, `targets`.
    #[must_use]
    pub fn tool(&self, name: &str) -> PathBuf {
        self.built.join("bin").join(name)
    }

    /// How it is reached.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// kubectl with these arguments: what it prints.
    ///
    /// # Errors
    /// It failed; what it said of that.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        told(&args.join(" "), &self.kubectl_command(args).stdin(Stdio::null()).output().context("kubectl")?)
    }

    /// The same, with something to read on its standard input.
    ///
    /// # Errors
    /// It failed; what it said of that.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = self.kubectl_command(args);
        fed(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()), &args.join(" "), input)
    }

    /// An object as JSON.
    ///
    /// # Errors
    /// kubectl failed, or printed no JSON.
    pub fn object(&self, args: &[&str]) -> Result<Value> {
        let args: Vec<_> = args.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.kubectl(&args)?).context("what kubectl printed")
    }

    /// kubectl, not yet started; ended after four minutes.
    #[must_use]
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = bounded(&self.tool("kube"), LONGEST);
        command.arg("kubectl").args(args).env("KUBECONFIG", &self.kubeconfig).env_remove("POD_NAMESPACE");
        command
    }

    /// Our own command line program, built with the images, on this cluster; ended after four minutes.
    #[must_use]
    pub fn countersign(&self, args: &[&str]) -> Command {
        self.countersign_for(LONGEST, args)
    }

    /// The same, ended after so long.
    #[must_use]
    pub fn countersign_for(&self, longest: Duration, args: &[&str]) -> Command {
        let mut command = bounded(&self.tool("countersign"), longest);
        command.args(args).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command
    }

    /// Runs our own command line program: what it prints.
    ///
    /// # Errors
    /// It failed; what it said of that.
    pub fn countersign_says(&self, args: &[&str]) -> Result<String> {
        told(&format!("countersign {}", args.join(" ")), &self.countersign(args).output().context("countersign")?)
    }

    /// Runs a command inside a machine: `control`, `node0`, `node1`.
    ///
    /// # Errors
    /// It failed; what it said of that.
    pub fn on(&self, machine: &str, command: &[&str]) -> Result<String> {
        told(&command.join(" "), &self.on_command(machine, command).output().context("kit/on")?)
    }

    /// The same, not yet started.
    #[must_use]
    pub fn on_command(&self, machine: &str, command: &[&str]) -> Command {
        let mut on = Command::new(self.kit.join("on"));
        on.arg(machine).args(command).env("CLUSTER_BUILT", &self.built).stdin(Stdio::null());
        on
    }

    /// Kills a machine's daemon for good (`kill`), or starts it again as it was (`start`).
    ///
    /// # Errors
    /// kit/daemon's.
    pub fn daemon(&self, machine: &str, name: &str, verb: &str) -> Result<()> {
        let mut daemon = Command::new(self.kit.join("daemon"));
        daemon.args([machine, name, verb]).env("CLUSTER_BUILT", &self.built).stdin(Stdio::null());
        told(&format!("kit/daemon {machine} {name} {verb}"), &daemon.output().context("kit/daemon")?).map(drop)
    }

    /// Does something once for all tests.
    ///
    /// # Errors
    /// It failed, now or the first time.
    pub fn once(&self, make: fn(&Self) -> Result<()>) -> Result<()> {
        let made = self.mesh.get_or_init(|| make(self).map_err(|error| format!("{error:#}")));
        made.clone().map_err(anyhow::Error::msg)
    }

    pub(crate) fn remember(&self, namespace: &str) {
        if let Ok(mut namespaces) = self.namespaces.lock() {
            namespaces.push(namespace.to_owned());
        }
    }

    /// Removes the namespaces of all tests, without waiting for it.
    pub(crate) fn clean(&self) {
        if std::env::var_os("CLUSTER_KEEP").is_some() {
            return;
        }
        let Ok(namespaces) = self.namespaces.lock() else { return };
        for namespace in namespaces.iter() {
            let _ = self.kubectl(&["delete", "namespace", namespace, "--wait=false", "--ignore-not-found"]);
        }
    }
}

/// A program that is ended after so long: what waits without an end is a failure with a name, and keeps no other test from its turn.
fn bounded(program: &Path, longest: Duration) -> Command {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg(longest.as_secs().to_string()).arg(program);
    command
}

/// What `timeout` says where it ended the program.
const ENDED: i32 = 124;

/// Runs a command that reads `input`.
pub(crate) fn fed(command: &mut Command, what: &str, input: &str) -> Result<String> {
    let mut child: Child = command.spawn().with_context(|| format!("starting {what}"))?;
    let written = child.stdin.take().context("its input")?.write_all(input.as_bytes());
    let output = child.wait_with_output().with_context(|| format!("waiting for {what}"))?;
    let said = told(what, &output)?;
    written.with_context(|| format!("writing to {what}"))?;
    Ok(said)
}

/// What a command printed, if it ended well.
pub(crate) fn told(what: &str, output: &Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let how = match output.status.code() {
        Some(0) => return Ok(text(&output.stdout)),
        Some(ENDED) => "no end, and killed".to_owned(),
        _ => output.status.to_string(),
    };
    bail!("{what}: {how}: {}{}", text(&output.stderr), text(&output.stdout))
}
