//! The sub-command `drain`: the sidecar's preStop in an image that holds nothing else.
//!
//! Called by `main`. It tells the running proxy over the admin socket that its pod is going away: not ready from now on, serving both
//! ways as before. A native sidecar's preStop runs as soon as the pod is to end, beside those of the apps, and SIGTERM follows only after
//! the apps have ended: so there is nothing to wait for. `--wait` is for where nobody keeps that order. It must never end the proxy.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use countersign_api::env;
use serde_json::Value;

use crate::config::duration;

/// Exit code: the proxy was not told.
const FAILED: u8 = 1;
/// Exit code: told, but connections were still open when the wait ended.
const STILL_OPEN: u8 = 3;
/// Exit code of bad settings.
const BAD_SETTINGS: u8 = 2;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at what is open.
const LOOK: Duration = Duration::from_millis(100);
/// Largest answer.
const ANSWER: u64 = 4 * 1024 * 1024;

/// Settings of `drain`.
#[derive(Debug, Args)]
pub struct Drain {
    /// Path of the proxy's admin socket.
    #[arg(long, env = env::ADMIN_SOCKET, default_value = "/run/countersign/proxy.sock", value_name = "FILE")]
    pub admin_socket: std::path::PathBuf,
    /// Come back only when no connection is open any more, or when this time is over.
    #[arg(long, default_value = "0s", value_name = "TIME")]
    pub wait: String,
}

/// Why the proxy was not told.
#[derive(Debug)]
struct Untold(String);

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Drain {
    /// Does it, and says on stderr what was wrong. Exit codes: 0 told (and with `--wait`: nothing is open), 1 not told, 2 bad
    /// settings, 3 told but connections were open to the end of the wait.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let wait = match duration(&self.wait) {
            Ok(wait) => wait,
            Err(problem) => {
                eprintln!("error: --wait: {problem}");
                return ExitCode::from(BAD_SETTINGS);
            }
        };
        match told(&self.admin_socket, wait) {
            Ok(0) => ExitCode::SUCCESS,
            Ok(open) => {
                eprintln!("{open} connections are still open");
                ExitCode::from(STILL_OPEN)
            }
            Err(untold) => {
                eprintln!("error: {untold}");
                ExitCode::from(FAILED)
            }
        }
    }
}

/// Tells the proxy, and gives how many connections are open after the wait; without a wait nobody counts.
fn told(socket: &Path, wait: Duration) -> Result<u64, Untold> {
    let began = Instant::now();
    let phase = ask(socket, "POST", "/drain")?;
    if phase["phase"] == "serving" || phase["phase"].is_null() {
        return Err(Untold(format!("the proxy did not take it: {phase}")));
    }
    if wait.is_zero() {
        return Ok(0);
    }
    loop {
        let status = match ask(socket, "GET", "/status") {
            Ok(status) => status,
            Err(_) => return Ok(0), // it has ended: nothing is open any more
        };
        let count = |way: &str| status["open_connections"][way].as_u64().unwrap_or(0);
        let open = count("inbound") + count("outbound");
        if open == 0 || began.elapsed() >= wait {
            return Ok(open);
        }
        std::thread::sleep(LOOK.min(wait.saturating_sub(began.elapsed())));
    }
}

fn ask(socket: &Path, method: &str, path: &str) -> Result<Value, Untold> {
    let untold = |error: io::Error| Untold(format!("{}: {error}", socket.display()));
    let answered = countersign_admin::ask(socket, method, path, PATIENCE, ANSWER).map_err(untold)?;
    let (head, body) = (answered.head, answered.body.unwrap_or_default());
    if !head.starts_with("HTTP/1.1 200") {
        let line: String = head.lines().next().unwrap_or_default().chars().take(100).collect();
        return Err(Untold(format!("{}: answers {line:?}", socket.display())));
    }
    serde_json::from_str(&body).map_err(|error| Untold(format!("{}: {error}", socket.display())))
}
