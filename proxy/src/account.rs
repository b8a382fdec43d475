//! The account of one application connection: opened when it is accepted, filled in along the journey, closed exactly once,
//! however the journey ends. At level `debug` each entry is a line of the process's log as well, under the connection's number.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use countersign_identity::SpiffeId;
use countersign_policy::PolicySet;
use tokio::time::Instant;
use tracing::debug;

use crate::denials::{Ground, Refused};
use crate::metrics::OpenGuard;
use crate::outcome::{Blame, Direction, Outcome, Security};
use crate::permit::{Asking, Denial, Permit};
use crate::proxy::{Proxy, Refusal};
use crate::tls::Peer;

/// Connections so far.
static COUNTED: AtomicU64 = AtomicU64::new(0);

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
    /// Opens the account of a connection that was just accepted (or whose `OPEN` just came). Boxed: it is handed from step to step, and
    /// each would keep a place for it in the connection's future.
    #[must_use]
    pub fn open(proxy: &Arc<Proxy>, direction: Direction, source: SocketAddr) -> Box<Self> {
        let connection = COUNTED.fetch_add(1, Ordering::Relaxed) + 1;
        debug!(connection, direction = direction.label(), %source, "connection: accepted");
        Box::new(Self {
            proxy: Arc::clone(proxy),
            began: Instant::now(),
            _open: proxy.metrics.connection_opened(direction),
            closed: false,
            outcome: Outcome {
                connection,
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
        })
    }

    /// Notes where it was going.
    pub fn destination(&mut self, destination: SocketAddr) {
        debug!(connection = self.outcome.connection, %destination, "connection: destination");
        self.outcome.destination = Some(destination);
    }

    /// Notes the endpoint that is tried, and who is expected there.
    pub fn endpoint(&self, endpoint: SocketAddr, expected: Option<&SpiffeId>) {
        let expected = expected.map(SpiffeId::as_str);
        debug!(connection = self.outcome.connection, %endpoint, expected, "connection: endpoint chosen");
    }

    /// Notes the proven other end.
    pub fn peer(&mut self, peer: &Peer, reused: bool) {
        let (id, group) = (peer.id.id().as_str(), peer.group);
        debug!(connection = self.outcome.connection, peer = id, group, reused, "connection: mutual TLS is up");
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
        let rule = permit.rule.as_deref();
        debug!(connection = self.outcome.connection, rule, revision = &*permit.revision, "connection: allowed");
    }

    /// Closes the account with a denial of ours.
    pub fn denied(mut self, denial: &Denial) {
        self.outcome.rule.clone_from(&denial.rule);
        self.outcome.revision.clone_from(&denial.revision);
        self.outcome.denial_id = Some(denial.id);
        self.close(denial.reason, Blame::Policy, String::new());
    }

    /// Closes the account with a refusal that came before a rule could be asked. It is remembered as a denial is, under an id, beside the rules that
    /// led to it.
    pub fn refused(mut self, asking: &Asking, ground: Ground, refusal: Refusal, rules: &Option<Arc<PolicySet>>) {
        let refused = Refused::new(refusal.result, ground, &refusal.detail);
        let denial = self.proxy.permits.denials().refused(asking, refused, rules);
        self.outcome.revision.clone_from(&denial.revision);
        self.outcome.denial_id = Some(denial.id);
        self.close(refusal.result, refusal.blame, refusal.detail);
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
        debug!(
            connection = self.outcome.connection,
            result = self.outcome.result,
            blame = self.outcome.blame.label(),
            sent = self.outcome.sent,
            received = self.outcome.received,
            detail = self.outcome.detail,
            "connection: over"
        );
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
