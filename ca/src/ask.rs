//! The sub-command `ask`: one question to the admin socket of the CA that runs beside, in an image that holds nothing else. Called by `main`;
//! `countersign ca --kubectl` and `countersign status --kubectl` come in by it (`kubectl exec`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use countersign_api::env;

/// Longest wait for an answer: state and log are written before a step is answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the running CA by its admin socket, and prints the answer. Exit codes: 0 answered, 1 refused (and why), 2 not answered, 3 nothing there.
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
        countersign_admin::tell("countersign-ca", &self.admin_socket, method, &self.path, PATIENCE)
    }
}
