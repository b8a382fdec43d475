//! The sub-command `ask`: one question to the admin socket of the sidecar that runs beside, in an image that holds nothing else.
//!
//! Called by `main`; `countersign status`, `explain` and `policy why` come in by it with `--kubectl` (`kubectl exec`). It must never change
//! anything.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use countersign_api::env;

use crate::permit::DenialId;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Settings of `ask`.
#[derive(Debug, Args)]
pub struct Ask {
    /// /status, /config_dump, /denials or /denials/ID.
    #[arg(value_parser = readable)]
    pub path: String,
    /// Path of the proxy's admin socket.
    #[arg(long, env = env::ADMIN_SOCKET, default_value = "/run/countersign/proxy.sock", value_name = "FILE")]
    pub admin_socket: PathBuf,
}

impl Ask {
    /// Asks, prints. Exit codes: 0 answered, 2 not answered, 3 nothing is there (no such denial is remembered).
    #[must_use]
    pub fn run(self) -> ExitCode {
        countersign_admin::tell("countersign-proxy", &self.admin_socket, "GET", &self.path, PATIENCE)
    }
}

fn readable(path: &str) -> Result<String, String> {
    let denial = || path.strip_prefix("/denials/").and_then(DenialId::parse);
    match matches!(path, "/status" | "/config_dump" | "/denials") || denial().is_some() {
        true => Ok(path.to_owned()),
        false => Err("only /status, /config_dump, /denials and /denials/ID are asked here".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_may_be_asked_and_what_changes_may_not() {
        for path in ["/status", "/config_dump", "/denials", "/denials/00000000000000aa"] {
            assert_eq!(readable(path).as_deref(), Ok(path));
        }
        for path in ["/drain", "/log", "/", "", "/status/", "/denials/", "/denials/x", "/denials/../log"] {
            assert!(readable(path).is_err(), "{path}");
        }
    }
}
