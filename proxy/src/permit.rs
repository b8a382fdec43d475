//! Rules meet connections. Every application connection holds a [`Permit`], made here and nowhere else; a change of
//! rules decides every open one again, and ends those that are no longer allowed.
//!
//! Called by both journeys. Order matters: a connection is registered first and decided then, so that no change of
//! rules can fall between the two.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_policy::{Attempt, Decision, Egress, PolicySet, Principal, Source, decide};
use tokio::sync::{SetOnce, watch};

use crate::denials::{Denials, Explained};
use crate::intercept::guard::InboundDestination;
use crate::tls::Peer;

/// The rules in force for this workload; `None` until the first came.
pub type Rules = watch::Receiver<Option<Arc<PolicySet>>>;

/// What asks to be let through.
#[derive(Clone, Debug)]
pub enum Asking {
    /// Somebody comes in to one of the app's ports.
    In {
        /// Verified identity; `None` for plaintext and an application's own TLS.
        who: Option<Arc<Principal>>,
        /// Address it comes from.
        source_ip: IpAddr,
        /// Port of the original destination.
        port: u16,
    },
    /// The app goes out.
    Out {
        /// Whether the other end proves its identity to us.
        meshed: bool,
        /// Where to.
        address: SocketAddr,
    },
}

impl Asking {
    /// Where an inbound one comes from.
    #[must_use]
    pub fn source_ip(&self) -> Option<IpAddr> {
        match self {
            Self::In { source_ip, .. } => Some(*source_ip),
            Self::Out { .. } => None,
        }
    }

    /// What an application connection over a link asks.
    #[must_use]
    pub fn of(peer: &Peer, source: SocketAddr, destination: InboundDestination) -> Self {
        Self::In { who: Some(Arc::clone(&peer.principal)), source_ip: source.ip(), port: destination.port() }
    }
}

/// Why not.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Random; logged on both sides, so that the two records find each other. The same again for the same source, port and rule, as
    /// long as it is remembered.
    pub id: u64,
    /// Bounded word, for metrics.
    pub reason: &'static str,
    /// The rule that said no, if one did.
    pub rule: Option<Arc<str>>,
    /// The policy revision that was in force.
    pub revision: Option<Arc<str>>,
}

/// Denial ids are written as 16 hex digits everywhere.
#[derive(Clone, Copy, Debug)]
pub struct DenialId(pub u64);

impl DenialId {
    /// Reads what [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| hex).map(Self)
    }
}

impl fmt::Display for DenialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// All open permits of this proxy, and the rules that bind them.
#[derive(Debug)]
pub struct Permits {
    rules: Rules,
    denials: Denials,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    entries: HashMap<u64, (Asking, Arc<Revocation>)>,
}

/// Set once, with the reason.
type Revocation = SetOnce<Denial>;

/// The right of one application connection to be relayed, for as long as rules allow it.
#[derive(Debug)]
pub struct Permit {
    key: u64,
    permits: Arc<Permits>,
    revocation: Arc<Revocation>,
    /// The rule that allowed it.
    pub rule: Option<Arc<str>>,
    /// The policy revision by which it was decided.
    pub revision: Arc<str>,
    /// What would have denied it, where posture or an Audit-mode rule only watches.
    pub would_deny: Option<Arc<str>>,
}

impl Permits {
    /// Decides by the rules that the watch holds, now and after each change (see [`Permits::follow`]).
    #[must_use]
    pub fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self { rules, denials: Denials::default(), open: Mutex::default() })
    }

    /// Decides one connection.
    ///
    /// # Errors
    /// A [`Denial`] that explains itself; no rules known is one.
    pub fn admit(self: &Arc<Self>, asking: Asking) -> Result<Permit, Denial> {
        self.admit_by(asking, || self.rules.borrow().clone())
    }

    /// By the rules that `in_force` reads: once, and only after the connection is registered.
    fn admit_by(
        self: &Arc<Self>,
        asking: Asking,
        in_force: impl FnOnce() -> Option<Arc<PolicySet>>,
    ) -> Result<Permit, Denial> {
        let revocation = Arc::new(Revocation::new());
        let key = {
            let mut open = self.lock();
            open.next += 1;
            let key = open.next;
            open.entries.insert(key, (asking.clone(), Arc::clone(&revocation)));
            key
        };
        // From here on a change of rules finds the entry; the rules read now are at least as new as any that it missed.
        let rules = in_force();
        let mut permit = Permit {
            key,
            permits: Arc::clone(self),
            revocation,
            rule: None,
            revision: Arc::from(""),
            would_deny: None,
        };
        // On an error the permit is dropped, and with it the entry.
        let allowed = judge(rules.as_deref(), &asking).map_err(|denial| self.denials.note(&asking, denial, &rules))?;
        permit.rule = allowed.rule;
        permit.revision = allowed.revision;
        permit.would_deny = allowed.would_deny;
        match permit.revocation.get() {
            Some(denial) => Err(denial.clone()),
            None => Ok(permit),
        }
    }

    /// Whether the rules in force would admit it now; nothing is registered.
    ///
    /// # Errors
    /// Why not.
    pub fn would_admit(&self, asking: &Asking) -> Result<(), Denial> {
        let rules = self.rules.borrow().clone();
        judge(rules.as_deref(), asking).map(drop)
    }

    /// Decides every open permit again after each change of rules; ends when the rules' source does.
    pub async fn follow(self: Arc<Self>) {
        let mut rules = self.rules.clone();
        while rules.changed().await.is_ok() {
            let current = rules.borrow_and_update().clone();
            self.decide_again(&current);
        }
    }

    /// Ends every open permit that these rules no longer allow.
    fn decide_again(&self, current: &Option<Arc<PolicySet>>) {
        let open = self.lock();
        for (asking, revocation) in open.entries.values() {
            if let Err(denial) = judge(current.as_deref(), asking) {
                // Revoked once, for the first reason.
                let _ = revocation.set(self.denials.note(asking, denial, current));
            }
        }
    }

    /// Why one was denied, as far as that is remembered.
    #[must_use]
    pub fn explain(&self, id: DenialId) -> Option<Explained> {
        let rules = self.rules.borrow().clone();
        self.denials.explain(id, rules.as_ref())
    }

    /// What was denied lately.
    #[must_use]
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    /// Number of open permits.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Waits until rules no longer allow the connection, and says why.
    pub async fn revoked(&self) -> Denial {
        self.revocation.wait().await.clone()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.lock().entries.remove(&self.key);
    }
}

struct Allowed {
    rule: Option<Arc<str>>,
    revision: Arc<str>,
    would_deny: Option<Arc<str>>,
}

fn judge(rules: Option<&PolicySet>, asking: &Asking) -> Result<Allowed, Denial> {
    let Some(rules) = rules else {
        return Err(denial("no_rules_known", None, None));
    };
    let revision: Arc<str> = rules.revision().into();
    match asking {
        Asking::Out { meshed, .. } => {
            if !meshed && rules.modes().egress == Egress::MeshOnly {
                return Err(denial("egress_mesh_only", None, Some(revision)));
            }
            Ok(Allowed { rule: None, revision, would_deny: None })
        }
        Asking::In { who, source_ip, port } => {
            let source = match who {
                Some(principal) => Source::Authenticated(principal),
                None => Source::Unauthenticated,
            };
            let decision = decide(rules, &Attempt { source, source_ip: *source_ip, port: *port });
            let rule = decision.rule().map(|r| Arc::from(r.to_string()));
            if !decision.allowed() {
                return Err(denial(decision.reason().label(), rule, Some(revision)));
            }
            let would_deny = would_deny(&decision);
            Ok(Allowed { rule, revision, would_deny })
        }
    }
}

fn would_deny(decision: &Decision) -> Option<Arc<str>> {
    if !decision.would_deny() {
        return None;
    }
    let audited = decision.audit().iter().find(|a| a.action == countersign_policy::Action::Deny);
    Some(match audited {
        Some(audited) => audited.rule.to_string().into(),
        None => decision.reason().label().into(),
    })
}

fn denial(reason: &'static str, rule: Option<Arc<str>>, revision: Option<Arc<str>>) -> Denial {
    Denial { id: rand::random(), reason, rule, revision }
}

#[cfg(test)]
mod tests;
