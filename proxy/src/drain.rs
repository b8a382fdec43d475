//! How the proxy ends: told to withdraw, told to drain, forced.
//!
//! `run` listens for signals with it, the listeners and every journey watch it, `admin` withdraws through it.
//! It must never end a connection by itself: it says when, the owners of connections do it.

pub mod command;

use std::future::Future;
use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How far the end has come. It only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// All is well.
    Serving,
    /// Told to withdraw (the sidecar's preStop): not ready, but both ways are served as before.
    Withdrawn,
    /// First signal: listeners stop, open connections go on until the deadline.
    Draining,
    /// Deadline or second signal: whatever is still open ends now.
    Forced,
}

impl Phase {
    /// The word in `/status`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Withdrawn => "withdrawn",
            Self::Draining => "draining",
            Self::Forced => "forced",
        }
    }
}

/// How the drain went; the process's exit code tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every connection had ended by itself.
    Clean,
    /// Connections were cut.
    Forced,
}

/// Exit code of a drain that had to cut connections. (1: failed while running, 2: bad configuration.)
pub const EXIT_FORCED: u8 = 3;

/// How long connections that are cut may take to end.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Ended {
    /// 0 for a clean end, [`EXIT_FORCED`] for a forced one.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Clean => ExitCode::SUCCESS,
            Self::Forced => ExitCode::from(EXIT_FORCED),
        }
    }
}

/// A handle on the process's end; clones share it.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: Arc<watch::Sender<Phase>>,
    deadline: Duration,
}

impl Drain {
    /// A process that serves. `deadline` is how long open connections may go on once draining started.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Serving)), deadline }
    }

    /// How far the end has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether new connections are to be refused.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Follows the phase.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// `POST /drain`: not ready from now on, serving as before.
    pub fn withdraw(&self) {
        self.advance(Phase::Withdrawn);
    }

    /// One SIGTERM or SIGINT: the first starts draining, a second forces.
    pub fn signal(&self) {
        let next = if self.draining() { Phase::Forced } else { Phase::Draining };
        self.advance(next);
    }

    /// Resolves once draining has started.
    pub async fn started(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves once whatever is open must end at once.
    pub async fn forced(&self) {
        self.reached(Phase::Forced).await;
    }

    /// Waits for draining to start, then until `idle` resolves (no connection is left), or the deadline, or a second
    /// signal; the latter two force. `run` calls it once, last.
    pub async fn finish(&self, idle: impl Future<Output = ()>) -> Ended {
        self.started().await;
        let mut idle = pin!(idle);
        tokio::select! {
            biased;
            // First: what is cut is soon idle too, and that is no clean end.
            () = self.forced() => {}
            () = &mut idle => return Ended::Clean,
            () = tokio::time::sleep(self.deadline) => {}
        }
        self.advance(Phase::Forced);
        // Whoever is cut now still tells its peer and closes its account.
        let _ = tokio::time::timeout(LAST_WORDS, idle).await;
        Ended::Forced
    }

    /// Registers for SIGTERM and SIGINT at once; the future turns each into [`Drain::signal`].
    ///
    /// # Errors
    /// When the handlers cannot be registered.
    pub fn listen(&self) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let drain = self.clone();
        Ok(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                drain.signal();
                tracing::info!(phase = drain.phase().label(), "signal received");
            }
        })
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let grows = to > *phase;
            if grows {
                *phase = to;
            }
            grows
        });
    }

    async fn reached(&self, at_least: Phase) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.watch().wait_for(|phase| *phase >= at_least).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn a_drain_with_nothing_open_is_clean() {
        let drain = Drain::new(DEADLINE);
        drain.signal();
        assert_eq!(drain.finish(async {}).await, Ended::Clean);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_forces_and_not_earlier() {
        let drain = Drain::new(DEADLINE);
        drain.signal();
        let began = tokio::time::Instant::now();
        let idle = async {
            drain.forced().await;
            assert_eq!(began.elapsed().as_secs(), DEADLINE.as_secs());
        };
        assert_eq!(drain.finish(idle).await, Ended::Forced);
        assert_eq!(drain.phase(), Phase::Forced);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_are_cut_have_their_last_words_and_no_more() {
        let drain = Drain::new(DEADLINE);
        drain.signal();
        drain.signal();
        let mut told = false;
        let last_words = async {
            drain.forced().await;
            tokio::time::sleep(LAST_WORDS / 2).await;
            told = true;
        };
        assert_eq!(drain.finish(last_words).await, Ended::Forced);
        assert!(told);
        let began = tokio::time::Instant::now();
        assert_eq!(drain.finish(std::future::pending()).await, Ended::Forced);
        assert_eq!(began.elapsed().as_secs(), LAST_WORDS.as_secs());
    }

    #[tokio::test]
    async fn what_was_cut_by_a_second_signal_is_no_clean_end_though_nothing_is_left() {
        let drain = Drain::new(DEADLINE);
        drain.signal();
        drain.signal();
        assert_eq!(drain.finish(async {}).await, Ended::Forced);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_forces_before_the_deadline() {
        let drain = Drain::new(DEADLINE);
        drain.signal();
        let waiting = tokio::spawn({
            let drain = drain.clone();
            async move { drain.finish(std::future::pending()).await }
        });
        let began = tokio::time::Instant::now();
        drain.signal();
        assert_eq!(waiting.await.ok(), Some(Ended::Forced));
        assert!(began.elapsed() < DEADLINE);
    }

    #[test]
    fn withdrawing_is_not_draining_and_never_goes_back() {
        let drain = Drain::new(DEADLINE);
        drain.withdraw();
        assert_eq!(drain.phase(), Phase::Withdrawn);
        assert!(!drain.draining());
        drain.signal();
        drain.withdraw();
        assert_eq!(drain.phase(), Phase::Draining);
    }
}
