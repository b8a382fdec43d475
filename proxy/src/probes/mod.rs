//! The app's own probes, asked by the sidecar in the kubelet's place: under Strict the kubelet cannot reach the app itself, and what
//! a probe reports must be the app's health, not ours.
//!
//! `run` makes it of settings that were checked and serves it on the health port; whoever calls chooses among the pod's own probes
//! and nothing else. Nothing of the caller's request is read but its path, nothing of the app's answer told but whether it is good.
//! A probe is asked once at a time, and an answer serves all who ask within [`FRESH`]: whoever floods the health port learns an old
//! answer, and neither reaches the app more often nor makes the kubelet's probe fail.
//!
//! A lifecycle hook does something, so it is asked for by its token alone (the last part of its path), and anew each time. The kubelet
//! takes any HTTP answer for success, whatever its status, and only a connection without one for failure: so does the app's answer count
//! here, and a hook that failed is told by ending the connection unanswered.

mod ask;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use countersign_admin::http::{self, Answer, StatusCode};
use hyper::Method;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::config::probes::AppProbe;
use ask::App;

/// Paths that are ours begin so.
const PREFIX: &str = "/app/";
/// How long an answer serves.
pub const FRESH: Duration = Duration::from_millis(500);
/// What a connection to the health port may take beyond the longest probe.
const SPARE: Duration = Duration::from_secs(5);

/// What the app said, or that it did not: healthy, or not, and why.
type Outcome = Result<String, String>;

/// All probes of the pod.
#[derive(Debug)]
pub struct Probes {
    app: App,
    by_path: HashMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    probe: AppProbe,
    /// Held while the app is asked.
    last: Mutex<Option<(Instant, Outcome)>>,
}

impl Probes {
    /// Asked at `address`, the pod's own, by connections that are exempt from the redirect.
    #[must_use]
    pub fn new(probes: &[AppProbe], address: IpAddr, mark: Option<u32>) -> Self {
        let slot = |probe: &AppProbe| (probe.path(), Slot { probe: probe.clone(), last: Mutex::default() });
        Self { app: App::new(address, mark), by_path: probes.iter().map(slot).collect() }
    }

    /// Longest life of a connection to the health port: the longest probe must fit.
    #[must_use]
    pub fn life(&self) -> Duration {
        let longest = self.by_path.values().map(|slot| slot.probe.timeout).max().unwrap_or_default();
        (longest + SPARE).max(http::LIFE)
    }

    /// Whether a path is a probe's, known or not.
    #[must_use]
    pub fn concerns(path: &str) -> bool {
        path.starts_with(PREFIX)
    }

    /// Answers with the app's health.
    pub async fn answer(&self, method: &Method, path: &str) -> Answer {
        let Some(slot) = self.by_path.get(path) else {
            return http::text(StatusCode::NOT_FOUND, "no such probe in this pod's spec\n");
        };
        if *method != Method::GET {
            return http::only("GET");
        }
        if slot.probe.kind.is_hook() {
            return slot.hook(&self.app).await;
        }
        match slot.outcome(&self.app).await {
            Ok(said) => http::text(StatusCode::OK, format!("{said}\n")),
            Err(why) => http::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        }
    }
}

impl Slot {
    /// Each time anew: nobody but the kubelet asks, and it means it.
    async fn hook(&self, app: &App) -> Answer {
        let (container, hook) = (self.probe.container.as_str(), self.probe.kind.as_str());
        match app.ask(&self.probe).await {
            Ok(said) => {
                tracing::info!(container, hook, said, "the app's hook was called");
                http::last(http::text(StatusCode::OK, format!("{said}\n")))
            }
            Err(why) => {
                tracing::warn!(container, hook, why, "the app's hook fails");
                http::unanswered()
            }
        }
    }

    async fn outcome(&self, app: &App) -> Outcome {
        let mut last = self.last.lock().await;
        if let Some((at, outcome)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return outcome.clone();
        }
        let outcome = app.ask(&self.probe).await;
        let before = last.as_ref().map(|(_, outcome)| outcome.is_ok());
        if before != Some(outcome.is_ok()) {
            self.tell(&outcome);
        }
        *last = Some((Instant::now(), outcome.clone()));
        outcome
    }

    /// Once for each change, not for each probe.
    fn tell(&self, outcome: &Outcome) {
        let (container, probe) = (self.probe.container.as_str(), self.probe.kind.as_str());
        match outcome {
            Ok(said) => tracing::info!(container, probe, said, "the app's probe is good"),
            Err(why) => tracing::warn!(container, probe, why, "the app's probe fails"),
        }
    }
}

#[cfg(test)]
mod tests;
