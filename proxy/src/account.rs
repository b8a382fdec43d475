//! The account of one application connection: opened when it is accepted, filled in along the journey, closed exactly once,
//! however the journey ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::metrics::OpenGuard;
use crate::outcome::{Blame, Direction, Outcome, Security};
use crate::permit::{Denial, Permit};
use crate::proxy::Proxy;
use crate::tls::Peer;

/// An account. Dropped without [`Account::close`], it records that the connection was cut by us.
#[derive(Debug)]
pub struct Account {
    proxy: Arc<Proxy>,
    began: Instant,
    /// What is known so far.
    pub outcome: Outcome,
    closed: bool,
    _open: OpenGuard,
}

impl Account {
    /// Opens the account of a connection that was just accepted (or whose `OPEN` just came).
    #[must_use]
    pub fn open(proxy: &Arc<Proxy>, direction: Direction, source: SocketAddr) -> Self {
        Self {
            proxy: Arc::clone(proxy),
            began: Instant::now(),
            _open: proxy.metrics.connection_opened(direction),
            closed: false,
            outcome: Outcome {
                direction,
                started: SystemTime::now(),
                duration: Duration::ZERO,
                source,
                destination: None,
                upstream: None,
                source_id: None,
                destination_id: None,
                security: Security::None,
                tls_group: None,
                reused: false,
                rule: None,
                revision: None,
                sent: 0,
                received: 0,
                result: "cut",
                blame: Blame::Us,
                detail: String::new(),
                denial_id: None,
                would_deny: None,
            },
        }
    }

    /// Notes the proven other end.
    pub fn peer(&mut self, peer: &Peer, reused: bool) {
        let theirs = Some(peer.id.id().clone());
        let ours = self.proxy.own_id();
        let (source, destination) = match self.outcome.direction {
            Direction::Inbound => (theirs, ours),
            Direction::Outbound => (ours, theirs),
        };
        self.outcome.source_id = source;
        self.outcome.destination_id = destination;
        self.outcome.security = Security::MutualTls;
        self.outcome.tls_group = Some(peer.group);
        self.outcome.reused = reused;
    }

    /// Notes what allowed it.
    pub fn permit(&mut self, permit: &Permit) {
        self.outcome.rule.clone_from(&permit.rule);
        self.outcome.revision = Some(Arc::clone(&permit.revision));
        self.outcome.would_deny.clone_from(&permit.would_deny);
    }

    /// Closes the account with a denial of ours.
    pub fn denied(mut self, denial: &Denial) {
        self.outcome.rule.clone_from(&denial.rule);
        self.outcome.revision.clone_from(&denial.revision);
        self.outcome.denial_id = Some(denial.id);
        self.close(denial.reason, Blame::Policy, String::new());
    }

    /// Closes the account. `result` is a word of docs/errors.md.
    pub fn close(mut self, result: &'static str, blame: Blame, detail: impl Into<String>) {
        self.outcome.result = result;
        self.outcome.blame = blame;
        self.outcome.detail = detail.into();
        self.record();
    }

    fn record(&mut self) {
        self.closed = true;
        self.outcome.duration = self.began.elapsed();
        self.proxy.metrics.record(&self.outcome);
        self.proxy.access_log.record(&self.outcome);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.closed {
            self.record();
        }
    }
}
