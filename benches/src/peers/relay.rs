//! A plain TCP relay on both sides, no TLS, no rules: the floor. HAProxy where it is installed (as in the peers' first
//! measurement), else our own.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use countersign_kit::mesh::binary;
use countersign_kit::{Namespace, PodCommand};

use super::{Pair, Peer, Up, find, first_line};
use crate::stage::Stage;

/// The relay, with buffers of one size.
pub struct Relay {
    name: &'static str,
    about: &'static str,
    buffer: usize,
    threads: usize,
}

impl Relay {
    /// HAProxy's own default: 16 KiB.
    #[must_use]
    pub fn small() -> Self {
        Self { name: "relay", about: "plain TCP relay twice, 16 KiB buffers", buffer: 16 * 1024, threads: 1 }
    }

    /// 128 KiB.
    #[must_use]
    pub fn large() -> Self {
        Self { name: "relay-128k", about: "plain TCP relay twice, 128 KiB buffers", buffer: 128 * 1024, threads: 1 }
    }

    /// The same with more worker threads, where the relay is HAProxy.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    fn side(&self, pair: &Pair, side: &str, at: &Namespace, listen: SocketAddr, to: SocketAddr) -> Result<PodCommand> {
        let Some(haproxy) = find("haproxy") else {
            let words = [
                "relay",
                "--listen",
                &listen.to_string(),
                "--to",
                &to.to_string(),
                "--buffer",
                &self.buffer.to_string(),
            ]
            .map(str::to_owned);
            return Ok(at.command(binary("countersign-bench")?).args(words));
        };
        let text = format!(
            "global\n  nbthread {}\n  maxconn 4000\n  tune.bufsize {}\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             frontend f\n  bind {listen}\n  default_backend b\nbackend b\n  server s {to}\n",
            self.threads, self.buffer
        );
        let (file, _) = pair.configure(side, &text)?;
        Ok(at.command(haproxy).args(["-db", "-f", &file]))
    }
}

impl Peer for Relay {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn claims_mtls(&self) -> bool {
        false
    }

    fn lacks(&self) -> Option<String> {
        None
    }

    fn version(&self) -> String {
        match find("haproxy") {
            None => "our own, of tests/kit (HAProxy is not installed)".to_owned(),
            haproxy => first_line(haproxy, "-v"),
        }
    }

    fn binary(&self) -> Option<PathBuf> {
        find("haproxy")
    }

    fn start<'a>(&self, stage: &'a Stage) -> Result<Up<'a>> {
        let pair = Pair::new(stage, self.name);
        let client = self.side(&pair, "client", &stage.client, pair.client, pair.server)?;
        let server = self.side(&pair, "server", &stage.server, pair.server, pair.app)?;
        pair.up(client, server, false)
    }
}
