//! Running `kubectl`: which pods there are, and the sub-command `ask` of a program of ours in its container.
//!
//! Called by `pods` and by `ca`. It must never wait for ever, nor read without bound, nor leave a kubectl behind.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{SignalKind, signal};

use crate::output;

/// Longest wait for one answer: the API server, the node and the process itself, each with a few seconds.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for the list of pods.
const LIST: Duration = Duration::from_secs(60);
const PROGRAM: &str = "kubectl";
/// Largest answer of one process, as on its socket.
const ANSWER: u64 = 64 * 1024 * 1024;
/// Largest list: tens of thousands of pods.
const PODS: u64 = 1024 * 1024 * 1024;
/// Of what it says on standard error.
const QUOTED: u64 = 2 * 1024;

/// What a kubectl that has ended said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code, which `exec` takes over from the program; none if a signal ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Said {
    /// Standard output, which should be JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.stdout).context("what it said is not JSON")
    }

    /// Why it failed.
    pub fn failure(&self) -> String {
        let lines: Vec<_> = self.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        format!("kubectl: {}", if lines.is_empty() { "it says nothing".to_owned() } else { lines.join("; ") })
    }
}

/// The pods of a namespace, or of all.
pub async fn pods(namespace: Option<&str>) -> Result<Vec<Value>> {
    let mut args = vec!["get", "pods", "--output", "json"];
    match namespace {
        Some(namespace) => args.extend(["--namespace", namespace]),
        None => args.push("--all-namespaces"),
    }
    let said = run(PROGRAM, &args, LIST, PODS).await?;
    ensure!(said.code == Some(0), "{}", said.failure());
    match said.json()?["items"].take() {
        Value::Array(pods) => Ok(pods),
        _ => bail!("kubectl get pods: no list"),
    }
}

/// `ask` of a program in its container, which is called as it is. `target`: a pod, or `deployment/NAME` for any of its pods.
pub async fn ask(namespace: &str, target: &str, program: &str, words: &[&str], limit: Duration) -> Result<Said> {
    let path = format!("/{program}");
    let mut args = vec!["--namespace", namespace, "exec", target, "--container", program, "--", &path, "ask"];
    args.extend(words);
    run(PROGRAM, &args, limit, ANSWER).await
}

async fn run(program: &str, args: &[&str], limit: Duration, most: u64) -> Result<Said> {
    let ended = tokio::time::timeout(limit, talk(program, args, most)).await;
    ended.map_err(|_| anyhow::anyhow!("kubectl: no answer within {} s", limit.as_secs()))?
}

async fn talk(program: &str, args: &[&str], most: u64) -> Result<Said> {
    // Before it starts, so that its end is not missed.
    let mut ends = signal(SignalKind::child()).context("signals")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().context("kubectl")?);
    let (stdout, stderr) = (running.0.stdout.take().context("no pipe")?, running.0.stderr.take().context("no pipe")?);
    let (stdout, stderr) = tokio::try_join!(read(stdout.into(), most + 1), read(stderr.into(), QUOTED))?;
    ensure!(stdout.len() as u64 <= most, "kubectl: more than {most} bytes");
    let status = loop {
        match running.0.try_wait()? {
            Some(status) => break status,
            None => ends.recv().await,
        };
    };
    Ok(Said { code: ExitStatus::code(&status), stdout, stderr: output::harmless(&String::from_utf8_lossy(&stderr)) })
}

async fn read(pipe: OwnedFd, most: u64) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    Receiver::from_owned_fd(pipe)?.take(most).read_to_end(&mut all).await?;
    Ok(all)
}

/// Ends with whoever waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is none to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, limit: Duration, most: u64) -> Result<Said> {
        run("sh", &["-c", script], limit, most).await
    }

    #[tokio::test]
    async fn code_and_both_outputs_are_told_and_nothing_that_a_terminal_acts_on() {
        let said = shell("printf '{\"a\": 1}'; printf 'x\\033[2J\\ny\\n' >&2; exit 3", LIMIT, 100).await.unwrap();
        assert_eq!((said.code, said.json().unwrap()["a"].as_u64()), (Some(3), Some(1)));
        assert_eq!(said.failure(), "kubectl: x [2J; y");
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 600", pid.display());
        let hung = shell(&script, Duration::from_secs(1), 100).await;
        assert!(hung.unwrap_err().to_string().contains("no answer within 1 s"));
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "it still runs");
    }

    #[tokio::test]
    async fn one_that_says_too_much_and_one_that_is_not_there_are_errors() {
        assert!(shell("head -c 200 /dev/zero", LIMIT, 100).await.unwrap_err().to_string().contains("more than 100"));
        let endless = shell("while :; do echo loud >&2; done", LIMIT, 100).await;
        assert!(endless.unwrap().stderr.len() as u64 <= QUOTED);
        assert!(run("/no/such/kubectl", &[], LIMIT, 100).await.is_err());
    }
}
