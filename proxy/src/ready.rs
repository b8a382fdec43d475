//! Whether this proxy may be sent connections: an SVID that has not ended, rules, bound listeners, an outbound redirect that is
//! proven, and no drain.
//!
//! `health` and `admin` ask it, `run` reports to it. It must never say yes because a question could not be answered.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_admin::health::Check;
use countersign_credentials::Watch;
use countersign_policy::PolicySet;
use tokio::sync::watch;

use crate::drain::{Drain, Phase};
use crate::proof::Standing;

/// All conditions; clones share them.
#[derive(Clone, Debug)]
pub struct Readiness {
    credentials: Watch,
    rules: watch::Receiver<Option<Arc<PolicySet>>>,
    redirect: watch::Receiver<Standing>,
    drain: Drain,
    bound: Arc<watch::Sender<bool>>,
}

impl Readiness {
    /// Not ready yet: the listeners are not bound.
    #[must_use]
    pub fn new(
        credentials: Watch,
        rules: watch::Receiver<Option<Arc<PolicySet>>>,
        redirect: watch::Receiver<Standing>,
        drain: Drain,
    ) -> Self {
        Self { credentials, rules, redirect, drain, bound: Arc::new(watch::Sender::new(false)) }
    }

    /// Every listener of the data path is bound.
    pub fn listeners_bound(&self) {
        self.bound.send_replace(true);
    }

    /// Whether all conditions hold.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.checks().iter().all(|check| check.ok)
    }

    /// Every condition: `credentials`, `rules`, `listeners`, `redirect`, `drain`.
    #[must_use]
    pub fn checks(&self) -> [Check; 5] {
        let credentials = match self.credentials.borrow().as_ref() {
            None => "no SVID yet",
            Some(held) if held.expired() => "the SVID has ended",
            Some(_) => "",
        };
        let rules = if self.rules.borrow().is_none() { "no rules yet" } else { "" };
        let bound = if *self.bound.borrow() { "" } else { "not bound yet" };
        let redirect = match *self.redirect.borrow() {
            Standing::Unproven => "the outbound redirect is not proven yet",
            Standing::Lost => "the outbound redirect is lost",
            Standing::Proven => "",
        };
        let drain = match self.drain.phase() {
            Phase::Serving => "",
            Phase::Withdrawn => "told to withdraw",
            Phase::Draining | Phase::Forced => "draining",
        };
        let all = [
            ("credentials", credentials),
            ("rules", rules),
            ("listeners", bound),
            ("redirect", redirect),
            ("drain", drain),
        ];
        all.map(|(name, detail)| Check::new(name, Some(detail).filter(|detail| !detail.is_empty())))
    }

    /// Keeps `file` exactly while ready; for whoever waits for this proxy on the same machine. Ends with the process; the
    /// file is removed when this is dropped.
    pub async fn keep_file(self, file: PathBuf) {
        let file = ReadyFile(file);
        let (mut credentials, mut rules) = (self.credentials.clone(), self.rules.clone());
        let (mut phase, mut bound, mut redirect) = (self.drain.watch(), self.bound.subscribe(), self.redirect.clone());
        loop {
            if let Err(error) = file.keep(self.ready()) {
                tracing::error!(file = %file.0.display(), "ready file: {error}");
            }
            // A watch whose owner is gone changes no more; the others still may.
            tokio::select! {
                Ok(()) = credentials.changed() => {}
                Ok(()) = rules.changed() => {}
                Ok(()) = phase.changed() => {}
                Ok(()) = bound.changed() => {}
                Ok(()) = redirect.changed() => {}
                () = self.end_of_svid() => {}
            }
        }
    }

    /// Resolves when the SVID in force has ended; never, if there is none or it has ended already.
    async fn end_of_svid(&self) {
        let held = self.credentials.borrow().clone();
        match held.filter(|held| !held.expired()) {
            Some(held) => {
                let left = held.expires_at().as_secs().saturating_sub(held.clock().now().as_secs());
                tokio::time::sleep(Duration::from_secs(left + 1)).await;
            }
            None => std::future::pending().await,
        }
    }
}

/// The file; gone when dropped.
struct ReadyFile(PathBuf);

impl ReadyFile {
    fn keep(&self, ready: bool) -> io::Result<()> {
        if ready { std::fs::write(&self.0, "ready\n") } else { remove(&self.0) }
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        let _ = remove(&self.0);
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "ready_tests.rs"]
mod tests;
