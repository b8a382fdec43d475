//! HAProxy as a pair of sidecars: mutual TLS between them, TCP or HTTP. It cannot match a SPIFFE id: any certificate of the CA passes.

use std::path::PathBuf;

use anyhow::Result;

use super::{Pair, Peer, Up, find, first_line, missing};
use crate::stage::Stage;

/// `mode tcp` or `mode http`.
pub struct Haproxy {
    /// Which.
    pub http: bool,
}

impl Peer for Haproxy {
    fn name(&self) -> &'static str {
        if self.http { "haproxy-http" } else { "haproxy-tcp" }
    }

    fn about(&self) -> &'static str {
        if self.http {
            "HAProxy, HTTP, upstream connections reused; both ends: any certificate of the CA"
        } else {
            "HAProxy, TCP; both ends: any certificate of the CA"
        }
    }

    fn claims_mtls(&self) -> bool {
        true
    }

    fn lacks(&self) -> Option<String> {
        missing("haproxy")
    }

    fn version(&self) -> String {
        first_line(find("haproxy"), "-v")
    }

    fn binary(&self) -> Option<PathBuf> {
        find("haproxy")
    }

    fn start<'a>(&self, stage: &'a Stage) -> Result<Up<'a>> {
        let pair = Pair::new(stage, self.name());
        let [_, _, both, ca] = pair.certificates("client");
        let tls = format!("ssl crt {both} ca-file {ca} verify required ssl-min-ver TLSv1.3");
        let client =
            self.config(&format!("{}", pair.client), &format!("{} {tls} no-ssl-reuse no-tls-tickets", pair.server));
        let [_, _, both, ca] = pair.certificates("server");
        let tls = format!("ssl crt {both} ca-file {ca} verify required ssl-min-ver TLSv1.3");
        let server = self.config(&format!("{} {tls} no-tls-tickets", pair.server), &pair.app.to_string());
        let (client, _) = pair.configure("client", &client)?;
        let (server, _) = pair.configure("server", &server)?;
        let client = stage.client.command("haproxy").args(["-db", "-f", &client]);
        let server = stage.server.command("haproxy").args(["-db", "-f", &server]);
        pair.up(client, server, true)
    }
}

impl Haproxy {
    fn config(&self, bind: &str, to: &str) -> String {
        let (mode, reuse) = if self.http { ("http", "  http-reuse always\n") } else { ("tcp", "") };
        format!(
            "global\n  nbthread 1\n  maxconn 4000\n  ssl-default-bind-options no-tls-tickets\n\
             defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             frontend f\n  bind {bind}\n  default_backend b\nbackend b\n{reuse}  server s {to}\n"
        )
    }
}
