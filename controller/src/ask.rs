//! The sub-command `ask`: one question to the admin socket of the controller that runs beside, in an image that holds nothing else. Called by
//! `main`; `countersign status --kubectl` comes in by it (`kubectl exec`). It must never change anything.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use countersign_api::env;

/// What may be asked.
const PATHS: [&str; 1] = ["/status"];
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the running controller by its admin socket, and prints the answer. Exit codes: 0 answered, 2 not answered, 3 nothing there.
#[derive(Debug, Parser)]
#[command(name = "countersign-controller ask", version)]
pub struct Ask {
    /// What to ask
    #[arg(value_parser = PATHS)]
    path: String,
    /// The controller's admin socket
    #[arg(long, env = env::ADMIN_SOCKET, default_value = "/run/countersign/controller.sock")]
    admin_socket: PathBuf,
}

impl Ask {
    /// Asks, prints.
    #[must_use]
    pub fn run(self) -> ExitCode {
        countersign_admin::tell("countersign-controller", &self.admin_socket, "GET", &self.path, PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_may_be_asked_and_nothing_that_changes_or_dumps() {
        let parsed = |path| Ask::try_parse_from(["countersign-controller ask", path]);
        assert_eq!(parsed("/status").unwrap().path, "/status");
        assert!(parsed("/log").is_err() && parsed("/config_dump").is_err());
    }
}
