//! The life of our own SVID: obtain, wait half its life, obtain the next; back off when that fails and go on serving the old
//! one until it ends.
//!
//! Runs as half of the task of `ca::start`.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::BundleSet;
use rustls_pki_types::UnixTime;
use tracing::{info, warn};

use super::error::CaError;
use super::store::{Store, set};
use super::{CaClient, bootstrap, issue, token};
use crate::backoff::{Backoff, jittered, up_to};
use crate::clock::SharedClock;
use crate::credentials::Credentials;

const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Renewal comes at half of what is left, give or take this part of it.
const JITTER: f64 = 0.1;
/// A CA that grants next to no life must not be asked without a pause.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// When a bundle drops our root, all who lost it renew within this time, not in the same instant.
const SPREAD: Duration = Duration::from_secs(1);
/// When the CA signs under another root all renew within this time, or an eighth of what is left.
const REPLACED_SPREAD: Duration = Duration::from_secs(60);
/// The wall clock is asked at least so often: it may be set, or the machine may have slept.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

pub(super) async fn run(config: Arc<CaClient>, store: Arc<Store>) {
    let mut pace = Pace::new();
    loop {
        match obtain(&config, &store, pace.failures()).await {
            Ok(credentials) => {
                let life = left(&credentials, &store.clock);
                let due = after(store.clock.now(), pace.obtained(life));
                store.renewal_succeeded(due);
                info!(id = %credentials.id(), life_s = life.as_secs(), "new SVID in force");
                wait(&store, due).await;
            }
            Err(error) => {
                let delay = pace.failed();
                store.renewal_failed(&error, delay);
                let expired = store.credentials().is_none_or(|credentials| credentials.expired());
                warn!(%error, label = error.label(), expired, retry_ms = delay.as_millis() as u64, "no new SVID");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

/// When to ask next. Drawn, so that a whole mesh whose SVIDs began in one moment, or that waited for one CA, does not ask in one moment.
struct Pace(Backoff);

impl Pace {
    fn new() -> Self {
        Self(Backoff::new(FIRST_DELAY, LONGEST_DELAY))
    }

    fn failures(&self) -> u32 {
        self.0.failures()
    }

    /// The time until the renewal of an SVID with so much of its life left.
    fn obtained(&mut self, life: Duration) -> Duration {
        self.0.succeeded();
        self.0.set_cap(LONGEST_DELAY.min(life / 10));
        jittered(life / 2, JITTER).max(SHORTEST_WAIT)
    }

    /// The time until the next attempt.
    fn failed(&mut self) -> Duration {
        self.0.failed()
    }
}

async fn obtain(config: &CaClient, store: &Store, failures: u32) -> Result<Arc<Credentials>, CaError> {
    let (bundles, anew) = who_vouches_for_the_ca(config, store, failures).await?;
    let token = token::read(&config.token_file).await?;
    let issued = issue::ask(config, bundles, token, store.asking_generation(), &store.clock).await?;
    store.take_svid(issued.svid, issued.bundle, anew)
}

/// The bundle in force; before the first one, the bootstrap file. Once our SVID has ended there is nothing left that a stale
/// file could spoil, and we may have missed a whole rotation, or the root was lost and replaced: then, as a restart would, every
/// second attempt reads the file. True: it did, and what the CA says replaces whatever we held.
async fn who_vouches_for_the_ca(config: &CaClient, store: &Store, failures: u32) -> Result<(BundleSet, bool), CaError> {
    let lost = store.credentials().is_none_or(|credentials| credentials.expired());
    match store.bundle() {
        Some(bundle) if !lost || failures.is_multiple_of(2) => Ok((set(bundle)?, false)),
        _ => {
            let now = store.clock.now();
            Ok((set(bootstrap::read(&config.bootstrap, store.trust_domain().clone(), now).await?)?, true))
        }
    }
}

/// Until the renewal is due, or until a bundle came under which our SVID is worth nothing, or until the CA signs under another root.
async fn wait(store: &Store, due: UnixTime) {
    let planned = async {
        tokio::select! {
            () = until(&store.clock, due) => {}
            () = store.superseded() => {
                let left = store.credentials().map_or(Duration::ZERO, |held| left(&held, &store.clock));
                let spread = REPLACED_SPREAD.min(left / 8);
                info!(within_s = spread.as_secs(), "the CA signs under another root now: renewing soon");
                // At least a second: replicas of the CA that do not agree yet must not make us ask without a pause.
                tokio::time::sleep(SHORTEST_WAIT + up_to(spread)).await;
            }
        }
    };
    tokio::select! {
        () = planned => {}
        // Also while a later time is waited for: in an emergency the old root goes right after another one signs.
        () = store.distrusted() => {
            warn!("the new trust bundle does not vouch for our own SVID: renewing at once");
            tokio::time::sleep(up_to(SPREAD)).await;
        }
    }
}

async fn until(clock: &SharedClock, due: UnixTime) {
    loop {
        let left = due.as_secs().saturating_sub(clock.now().as_secs());
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left).min(LOOK_AGAIN)).await;
    }
}

fn left(credentials: &Credentials, clock: &SharedClock) -> Duration {
    Duration::from_secs(credentials.expires_at().as_secs().saturating_sub(clock.now().as_secs()))
}

fn after(now: UnixTime, span: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + span)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXIES: usize = 1000;
    const LIFE: Duration = Duration::from_secs(3600);

    /// Most that fall into one window.
    fn peak(mut times: Vec<Duration>, window: Duration) -> usize {
        times.sort_unstable();
        let within = |at: usize| times[at..].iter().take_while(|time| **time - times[at] < window).count();
        (0..times.len()).map(within).max().unwrap_or(0)
    }

    /// What is measured is their own choice of times; no clock runs, and no machine is too slow for it. That the connections of a thousand
    /// come back as spread is shown with real ones, by the CA's and the controller's own tests.
    #[test]
    fn a_thousand_whose_svids_were_due_while_the_ca_was_away_renew_spread_out() {
        // All got their SVID in the same moment, and the CA is away from then on, until all of them are past half of its life.
        let mut all: Vec<_> = (0..PROXIES).map(|_| Pace::new()).collect();
        let due: Vec<_> = all.iter_mut().map(|pace| pace.obtained(LIFE)).collect();
        let back = LIFE * 3 / 4;
        assert!(due.iter().all(|due| *due < back), "each was due");
        // Without an outage they would have renewed over six minutes.
        let usual = peak(due.clone(), Duration::from_secs(1));
        assert!(usual <= PROXIES / 50, "{usual} of {PROXIES} were due within 1 s");
        let mut asked = Vec::new();
        let came: Vec<_> = all
            .iter_mut()
            .zip(due)
            .map(|(pace, mut at)| {
                while at < back {
                    asked.push(at);
                    at += pace.failed();
                }
                at
            })
            .collect();
        // Within half a minute of its return all have asked, far from the end of their lives; in no quarter of a second more than one
        // in twenty. All of them would, if they came as the CA does.
        let latest = came.iter().max().copied().unwrap_or_default();
        assert!(latest <= back + LONGEST_DELAY && latest < LIFE, "{latest:?}");
        let storm = peak(came, Duration::from_millis(250));
        assert!(storm <= PROXIES / 20, "{storm} of {PROXIES} came within 250 ms");
        // Nor does a CA that is away get more: each asks every 15 s in the mean.
        assert!(asked.len() < PROXIES * 80, "{} attempts", asked.len());
    }
}
