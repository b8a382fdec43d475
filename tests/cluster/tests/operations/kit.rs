//! The cluster's own scripts (tests/cluster/kit), where a cluster was ended by something other than themselves.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use countersign_cluster_tests::{Beside, Cluster, Promise};

use super::page;

pub const PROMISES: &[Promise] = &[
    ("a_cluster_that_runs_is_found_running", Beside::Others, |_| {
        let running = script("running").output().context("kit/running")?;
        ensure!(running.status.success(), "{running:?}");
        Ok(())
    }),
    ("what_a_restart_left_of_a_cluster_is_cleared_away_and_nobody_is_killed_for_it", Beside::Others, left_by_a_restart),
];

/// One that calls it by `exec` in a mount namespace of its own, in which nothing lies below /var/lib: `down` removes what the cluster in use needs there.
fn script(name: &str) -> Command {
    let mut command = Command::new("unshare");
    let alone = "mount -t tmpfs tmpfs /var/lib && exec \"$0\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", alone]);
    command.arg(page::root().join("tests/cluster/kit").join(name));
    command
}

/// After a restart of the host there are files where namespaces were, and what had the machines' process ids is somebody else.
fn left_by_a_restart(_: &Cluster) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (state, built) = (folder.path().join("state"), folder.path().join("built"));
    let name = format!("ct{}", std::process::id());
    let namespaces = ["control", "node0"].map(|machine| format!("/run/netns/{name}-{machine}"));
    std::fs::create_dir_all(state.join("run"))?;
    std::fs::write(state.join("admin.conf"), "")?;
    std::fs::write(state.join("run/settings"), format!("CLUSTER_NAME={name} CLUSTER_NODES=1\n"))?;
    // As a machine's outer process has one below it.
    let mut other = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().context("sh")?;
    let call = |name: &str| -> Result<Output> {
        let mut script = script(name);
        script.env("CLUSTER_DIR", &state).env("CLUSTER_BUILT", &built);
        script.output().with_context(|| format!("kit/{name}"))
    };
    let called = || -> Result<(Output, Output)> {
        for (machine, namespace) in ["control", "node0"].iter().zip(&namespaces) {
            std::fs::write(state.join(format!("run/{machine}.pid")), format!("{}\n", other.id()))?;
            std::fs::write(namespace, "")?;
        }
        Ok((call("running")?, call("down")?))
    };

    let called = called();

    let left: Vec<_> = namespaces.iter().filter(|namespace| std::fs::remove_file(namespace).is_ok()).collect();
    let lives = other.try_wait()?.is_none();
    drop(other.kill());
    drop(other.wait());
    let (running, down) = called?;
    ensure!(running.status.code() == Some(1), "it counts as running: {running:?}");
    ensure!(down.status.success(), "{down:?}");
    ensure!(left.is_empty() && !state.exists(), "{left:?} or {} is left", state.display());
    ensure!(lives, "a process was killed that has no more than the id of a machine's");
    Ok(())
}
