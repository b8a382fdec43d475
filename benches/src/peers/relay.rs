//! A plain TCP relay on both sides, no TLS, no rules: the floor. HAProxy where it is installed (as in the peers' first
//! measurement), else our own. Once more with the traffic redirected to it as in a pod: what interception alone costs, as the
//! kernel then tracks every packet of all three connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use countersign_kit::mesh::binary;
use countersign_kit::{Namespace, Net, Pod, PodCommand, Running};

use super::{Pair, Peer, Place, Up, find, first_line, missing};
use crate::stage::{self, APP, Stage};

/// The relay, with buffers of one size.
pub struct Relay {
    name: &'static str,
    about: &'static str,
    buffer: usize,
    threads: usize,
    redirected: bool,
}

/// Two pods of its own, as a redirect concerns a whole pod.
struct Pods {
    _sides: [Running; 2],
    _app: Running,
    _server: Pod,
    _net: Net,
}

/// Where the relay of each pod listens, and where the client's side dials: like a sidecar's, it is redirected at the server's pod.
const CLIENT: u16 = 15001;
const SERVER: u16 = 15006;
const DIALLED: u16 = 8081;

impl Relay {
    /// HAProxy's own default: 16 KiB.
    #[must_use]
    pub fn small() -> Self {
        let about = "plain TCP relay twice, 16 KiB buffers";
        Self { name: "relay", about, buffer: 16 * 1024, threads: 1, redirected: false }
    }

    /// 128 KiB.
    #[must_use]
    pub fn large() -> Self {
        let about = "plain TCP relay twice, 128 KiB buffers";
        Self { name: "relay-128k", about, buffer: 128 * 1024, threads: 1, redirected: false }
    }

    /// The small one, with nftables' redirects in both pods.
    #[must_use]
    pub fn redirected() -> Self {
        let about = "the relay with 16 KiB, interception as in a pod";
        Self { name: "relay-redirected", about, redirected: true, ..Self::small() }
    }

    /// The same with more worker threads, where the relay is HAProxy.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    fn between_redirects<'a>(&self, stage: &'a Stage) -> Result<Up<'a>> {
        let (net, client, server, app) = stage::pods(stage.inside(), "relay")?;
        let redirect = |hook: &str, which: &str, to: u16| {
            format!(
                "table ip relay {{\nchain redirected {{ type nat hook {hook} priority -100; {which} redirect to :{to}; }}\n}}\n"
            )
        };
        client.nft(&redirect("output", &format!("ip daddr {} tcp dport {APP}", server.v4()), CLIENT))?;
        server.nft(&redirect("prerouting", &format!("tcp dport {DIALLED}"), SERVER))?;
        let pair = Pair::new(stage, self.name);
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let dialled = SocketAddr::new(server.v4().into(), DIALLED);
        let sides = [
            self.side(&pair, "client", &client, any(CLIENT), dialled)?.spawn()?,
            self.side(&pair, "server", &server, any(SERVER), pair.app)?.spawn()?,
        ];
        let up = Up {
            target: SocketAddr::new(server.v4().into(), APP),
            client: vec![sides[0].pid()],
            server: vec![sides[1].pid()],
            guarded: None,
            place: Place::Own(Box::new(client)),
            keep: Box::new(Pods { _sides: sides, _app: app, _server: server, _net: net }),
        };
        up.ready()?;
        Ok(up)
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
        self.redirected.then(|| missing("nft")).flatten()
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
        if self.redirected {
            return self.between_redirects(stage);
        }
        let pair = Pair::new(stage, self.name);
        let client = self.side(&pair, "client", &stage.client, pair.client, pair.server)?;
        let server = self.side(&pair, "server", &stage.server, pair.server, pair.app)?;
        pair.up(client, server, false)
    }
}
