//! What became of one application connection: the last step of both journeys, recorded exactly once.
//!
//! The journeys make it; `metrics` and `access_log` read it. It must never hold a byte of payload.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use countersign_identity::SpiffeId;

/// Which of the two journeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Somebody outside the pod came in.
    Inbound,
    /// The pod's own app went out.
    Outbound,
}

impl Direction {
    /// Metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How the bytes were protected on the network side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Our mutual TLS.
    MutualTls,
    /// Plaintext, or an application's own TLS relayed untouched.
    None,
    /// Inside the pod: own address, no network was crossed.
    Local,
}

impl Security {
    /// Metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::Local => "local",
        }
    }
}

/// Whose doing an end was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Nobody's: a good end.
    Nobody,
    /// The program in our own pod.
    App,
    /// Whoever is on the network.
    Peer,
    /// A rule, working as written.
    Policy,
    /// This proxy.
    Us,
    /// CA, controller, or what they should have told us.
    ControlPlane,
}

impl Blame {
    /// Metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::App => "app",
            Self::Peer => "peer",
            Self::Policy => "policy",
            Self::Us => "proxy",
            Self::ControlPlane => "control_plane",
        }
    }
}

/// The record of one application connection.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Number of the connection, counted from the start of the process: the same in each line of the log about it.
    pub connection: u64,
    /// Which journey.
    pub direction: Direction,
    /// When it was accepted.
    pub started: SystemTime,
    /// From accept (inbound over a kept connection: from its `OPEN`) to the end.
    pub duration: Duration,
    /// Who dialled: the peer proxy inbound, the app outbound.
    pub source: SocketAddr,
    /// The original destination; `None` where it could not be told.
    pub destination: Option<SocketAddr>,
    /// The address that was dialled in the end: the chosen endpoint outbound, the app inbound.
    pub upstream: Option<SocketAddr>,
    /// Identity of the client side, where it is known.
    pub source_id: Option<SpiffeId>,
    /// Identity of the server side, where it is known.
    pub destination_id: Option<SpiffeId>,
    /// How the network side was protected.
    pub security: Security,
    /// Key exchange group of the TLS connection, e.g. `X25519MLKEM768`.
    pub tls_group: Option<&'static str>,
    /// Whether a kept TLS connection was used again.
    pub reused: bool,
    /// The rule that decided: `namespace/name[i]`.
    pub rule: Option<Arc<str>>,
    /// The policy revision in force when it was decided.
    pub revision: Option<Arc<str>>,
    /// Bytes from client to server.
    pub sent: u64,
    /// Bytes from server to client.
    pub received: u64,
    /// How it ended: a word from a bounded list, `ok` for a good end (docs/errors.md lists all).
    pub result: &'static str,
    /// Whose doing.
    pub blame: Blame,
    /// One sentence for people; empty on a good end.
    pub detail: String,
    /// The id that both sides log, on a denial.
    pub denial_id: Option<u64>,
    /// What an Audit-mode rule, or the Audit posture, would have denied.
    pub would_deny: Option<Arc<str>>,
}
