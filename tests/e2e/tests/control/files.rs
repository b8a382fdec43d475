//! No file descriptors left at the CA or the controller: new connections wait in the kernel, nothing spins, and what was let go is used
//! again. Of a sidecar `refusals` shows the same.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::MeshPodSpec;
use countersign_kit::{Inside, wait_until};

use crate::stage::{RULES, SOON, Stage, policy};
use crate::talk::exchange;

/// Files that a process may open beyond those that it has.
const SPARE: usize = 6;
/// Connections that want one.
const MANY: usize = 100;
/// Watched for so long. Whoever spins takes all of it, and a third even beside two others on one core.
const WATCHED: Duration = Duration::from_secs(3);
const MOST_CPU: Duration = Duration::from_millis(500);

pub fn ca(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let pid = stage.mesh.ca_pid().context("it does not run")?;
    run_out(&stage, pid, stage.mesh.ca_address().parse()?)
}

pub fn controller(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let pid = stage.mesh.controller_pid().context("it does not run")?;
    run_out(&stage, pid, stage.mesh.controller_address().parse()?)?;
    // Who is at an address that is new is answered, and rules that are new come.
    let late = stage.pod("later", 52)?;
    stage.mesh.object(RULES, &policy("client-to-server", "Allow", "from: [{namespaces: [shop]}]"))?;
    stage.mesh.settle(&[&stage.server, &late])?;
    exchange(&late, stage.address())?;
    Ok(())
}

/// More connections than it has files; and once they are gone, a pod that needs CA and controller starts.
fn run_out(stage: &Stage, pid: u32, to: SocketAddr) -> Result<()> {
    let stranger = stage.stranger(50)?;
    exhaust(pid)?;
    let dial = || stranger.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)));
    let waiting = (0..MANY).map(|_| dial()).collect::<Result<Vec<_>, _>>()?;
    does_not_spin(pid)?;
    drop(waiting);
    let late = stage.mesh.pod(MeshPodSpec::new("late", "late", 51))?;
    late.stop_sidecar();
    Ok(())
}

/// From now on it may open a few files more, and no further.
fn exhaust(pid: u32) -> Result<()> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let limit = format!("--nofile={0}:{0}", open + SPARE);
    let set = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().context("prlimit")?;
    ensure!(set.success(), "prlimit {limit}");
    Ok(())
}

fn does_not_spin(pid: u32) -> Result<()> {
    // Not before it is at its limit.
    let limit = open_limit(pid)?;
    wait_until(SOON, || match std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count) {
        Ok(open) if open + 1 >= limit => Ok(()),
        other => Err(format!("{other:?} of {limit} files are open")),
    })?;
    let (began, before) = (Instant::now(), cpu(pid)?);
    std::thread::sleep(WATCHED);
    let (took, used) = (began.elapsed(), cpu(pid)? - before);
    ensure!(used <= MOST_CPU, "{used:?} of CPU time in {took:?} with no files left");
    Ok(())
}

fn open_limit(pid: u32) -> Result<usize> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit")?;
    Ok(line.split_whitespace().nth(3).context("no number")?.parse()?)
}

/// User and system time so far. A tick is 10 ms on Linux, whatever the kernel counts in (proc(5)).
fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).context("too short")?.parse()?) };
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}
