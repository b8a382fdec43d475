//! System calls a request, in a run of its own: tracing slows what is traced.
//!
//! Called once for each peer. It must never run while something else is measured.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_kit::Running;
use countersign_kit::load::Plan;
use serde::Serialize;

use crate::peers::Up;
use crate::proc::tree;
use crate::stage::Stage;

/// Calls for each request, one connection back to back.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Calls {
    /// On the client's side.
    pub client: f64,
    /// On the server's side.
    pub server: f64,
}

/// Counts with `strace -c -f` on all threads of both sides.
///
/// # Errors
/// If strace is not there or may not trace; in words for the report.
pub fn count(up: &Up<'_>, stage: &Stage, payload: usize) -> Result<Calls> {
    ensure!(countersign_kit::programs::find("strace").is_some(), "strace is not installed (apt-get install strace)");
    let folder = stage.folder("strace")?;
    let files = [folder.join("client"), folder.join("server")];
    let plan = Plan { length: Duration::from_millis(700), ..Plan::new(up.target, &format!("/{payload}")) };
    // The connection is open before anybody is traced, and the tracers are gone before it ends.
    let (answered, tracers) = up.place.inside(|| -> Result<_> {
        let opened = plan.open()?;
        let tracers = [trace(stage, &up.client, &files[0])?, trace(stage, &up.server, &files[1])?];
        let measured = opened.run(&mut |_| true)?;
        ensure!(measured.failed == 0, "requests failed while traced");
        tracers.iter().for_each(Running::interrupt);
        Ok((measured.answered, tracers))
    })?;
    let mut sums = Vec::new();
    for (mut tracer, file) in tracers.into_iter().zip(&files) {
        tracer.wait(Duration::from_secs(5)).context("strace does not end")?;
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        sums.push(total(&text).with_context(|| format!("strace said: {text}"))? as f64 / answered.max(1) as f64);
    }
    Ok(Calls { client: sums[0], server: sums[1] })
}

fn trace(stage: &Stage, roots: &[u32], file: &Path) -> Result<Running> {
    let mut command = stage.client.command("strace").args(["-c", "-f", "-o"]).arg(file);
    for process in tree(roots)? {
        command = command.args(["-p", &process.to_string()]);
    }
    let tracer = command.spawn()?;
    tracer
        .wait_for_line(Duration::from_secs(5), |line| line.contains(" attached"))
        .context("strace may not trace here")?;
    Ok(tracer)
}

/// The table's last line: `100.00    0.123456           3      1234        56 total`.
fn total(table: &str) -> Option<u64> {
    let line = table.lines().rev().find(|line| line.trim_end().ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_with_and_without_errors() {
        let head = "% time     seconds  usecs/call     calls    errors syscall\n------ ----------- ----------- --------- --------- ----------------\n";
        assert_eq!(total(&format!("{head}100.00    0.000042           4        10           total\n")), Some(10));
        assert_eq!(total(&format!("{head}100.00    0.000042           4      1234        56 total\n")), Some(1234));
        assert_eq!(total("strace: exited\n"), None);
    }
}
