//! The sub-command `ask`: one question to the admin socket of the CA that runs beside, in an image that holds nothing else. Called by `main`;
//! `countersign ca --kubectl` comes in by it (`kubectl exec`).

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use countersign_api::env;

/// Longest wait for an answer: state and log are written before a step is answered.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer.
const ANSWER: u64 = 64 * 1024 * 1024;

/// Asks the running CA by its admin socket, and prints the answer. Exit codes: 0 answered, 1 refused (and why), 2 not answered.
#[derive(Debug, Parser)]
#[command(name = "countersign-ca ask", version)]
pub struct Ask {
    /// /status, /rotation, /rotation/report; with --post /rotation/prepare, /rotation/activate, /rotation/retire, /rotation/abort
    path: String,
    /// Do it, rather than look
    #[arg(long)]
    post: bool,
    /// The CA's admin socket
    #[arg(long, env = env::ADMIN_SOCKET, default_value = "/run/countersign/ca.sock")]
    admin_socket: PathBuf,
}

impl Ask {
    /// Asks, prints.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let method = if self.post { "POST" } else { "GET" };
        match ask(&self.admin_socket, method, &self.path) {
            Ok((code, body)) => {
                // Whoever reads no further has what it wanted.
                let _ = io::stdout().write_all(body.as_bytes());
                ExitCode::from(match code.as_str() {
                    "200" => 0,
                    "409" => 1,
                    _ => {
                        eprintln!("countersign-ca: {} was answered with {code}", self.path);
                        2
                    }
                })
            }
            Err(error) => {
                eprintln!("countersign-ca: {}: {error}", self.admin_socket.display());
                ExitCode::from(2)
            }
        }
    }
}

fn ask(socket: &Path, method: &str, path: &str) -> io::Result<(String, String)> {
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-.".contains(&b)) {
        return Err(io::Error::other("that is no path"));
    }
    let answered = countersign_admin::ask(socket, method, path, PATIENCE, ANSWER)?;
    let body = answered.body.ok_or_else(|| io::Error::other("no HTTP answer"))?;
    let code = answered.head.split(' ').nth(1).unwrap_or_default().to_owned();
    Ok((code, body))
}
