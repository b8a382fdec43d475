//! The inbound half: who is answered on 15021 came through the inbound redirect, since nothing listens there.
//!
//! The inbound journey calls [`answer`] for what was going there, and [`Proof::seen`] for all else that was redirected; `run` starts
//! [`Proof::keep_watching`]. A pod cannot dial its own 15021 from inside (what comes by `lo` is not redirected), so the witness is the
//! kubelet, whose probes come from outside. Where nobody asks (a demo, a machine) lost rules cannot be noticed, and `/status` says that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use countersign_admin::health;
use countersign_admin::http::{self, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval};

use super::{Proof, Standing, lock, unix_now};
use crate::drain::Drain;
use crate::health::Shown;
use crate::listen::reset;
use crate::outcome::Direction;

/// Longest life of a connection to 15021.
const DEADLINE: Duration = Duration::from_secs(5);
/// Good answers that make a witness: a startup probe ends with its first.
const WITNESSED: usize = 4;
/// One that asks less often is no witness.
const SELDOM: Duration = Duration::from_secs(60);
/// How often the witness is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Answers `/readyz`, and nothing else, to somebody who came through the redirect.
pub async fn answer(proof: &Proof, shown: &Shown, io: TcpStream, source: std::net::IpAddr) {
    proof.seen();
    let Ok(_place) = proof.0.asking.take(source) else {
        proof.0.metrics.shed("self_proof");
        return reset(io);
    };
    let handle = |request: hyper::Request<hyper::body::Incoming>| {
        let answer = if request.uri().path() == "/readyz" {
            health::answer(shown, &request)
        } else {
            http::text(StatusCode::NOT_FOUND, "here is /readyz\n")
        };
        if answer.status() == StatusCode::OK {
            proof.witnessed(Instant::now());
        }
        std::future::ready(answer)
    };
    http::serve(io, DEADLINE, handle).await;
}

/// Who asks on 15021, and how regularly.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// The last good answers, newest last.
    answers: Vec<Instant>,
    lost: bool,
}

impl Witness {
    /// How long it may be silent; none: nobody asks regularly.
    fn patience(&self) -> Option<Duration> {
        let gaps = self.answers.windows(2).map(|two| two[1].saturating_duration_since(two[0]));
        let longest = gaps.max().filter(|_| self.answers.len() == WITNESSED)?;
        (longest <= SELDOM).then_some(longest * 2 + LOOK)
    }

    /// Standing, and what to say of it.
    pub(super) fn shown(&self) -> (Standing, Option<&'static str>) {
        match self.patience() {
            _ if self.lost => {
                (Standing::Lost, Some("whoever probed port 15021 is not redirected any more, or stopped"))
            }
            Some(_) => (Standing::Proven, None),
            None => {
                (Standing::Unproven, Some("nobody probes port 15021 here: rules lost from now on would not be noticed"))
            }
        }
    }
}

impl Proof {
    /// A connection came through the inbound redirect.
    pub fn seen(&self) {
        let since = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        self.0.seen.store(since, Ordering::Relaxed);
        let now = unix_now();
        // Each connection comes by here: the gauge counts in seconds.
        if self.0.last_inbound.swap(now, Ordering::Relaxed) != now {
            self.0.metrics.interception_proven(Direction::Inbound);
        }
    }

    /// One was told on 15021 that all is well.
    pub(super) fn witnessed(&self, now: Instant) {
        let mut witness = lock(&self.0.witness);
        if witness.answers.len() == WITNESSED {
            witness.answers.remove(0);
        }
        witness.answers.push(now);
    }

    /// Notices the silence of a witness, until draining starts. `places` are those of the inbound listener: while all are taken it
    /// sheds what comes, the witness too.
    pub async fn keep_watching(self, places: Arc<Semaphore>, drain: Drain) {
        let mut ticks = interval(LOOK);
        loop {
            tokio::select! {
                biased;
                () = drain.started() => return,
                _ = ticks.tick() => {}
            }
            if places.available_permits() > 0 {
                self.look(Instant::now());
            }
        }
    }

    /// Whoever asked regularly is silent, and nobody else came through either: the rules are lost, or the witness is.
    pub(super) fn look(&self, now: Instant) {
        let seen = self.0.seen.load(Ordering::Relaxed);
        let silent = now.saturating_duration_since(self.0.began + Duration::from_millis(seen.saturating_sub(1)));
        let mut witness = lock(&self.0.witness);
        let lost = witness.patience().is_some_and(|patience| silent > patience);
        if std::mem::replace(&mut witness.lost, lost) != lost {
            drop(witness);
            self.turned(
                Direction::Inbound,
                lost,
                "nothing comes through the inbound redirect, not even the probes that did",
            );
        }
    }
}
