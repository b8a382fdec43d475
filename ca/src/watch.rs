//! The bundle, at once and after each change, to those who show an SVID. Called by `server` for each WatchBundle. A stream
//! ends with the leaf that opened it, and with the process.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::ca::{HoldingReport, TrustBundle};
use countersign_credentials::SharedClock;
use countersign_identity::{TrustDomain, VerifiedId};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::holders::{Connections, Holders, Report};
use crate::issue::bundle;
use crate::limits::{Place, Places};
use crate::state::{Authority, State};

/// Why there is no stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchRefusal {
    /// No client certificate.
    #[error("WatchBundle needs a client SVID")]
    NoSvid,
    /// An SVID of another trust domain.
    #[error("WatchBundle is for SVIDs of {0} only")]
    Stranger(TrustDomain),
    /// This leaf, or all together, hold too many streams.
    #[error("too many WatchBundle streams are open")]
    TooMany,
}

impl WatchRefusal {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoSvid => "no_svid",
            Self::Stranger(_) => "stranger",
            Self::TooMany => "too_many",
        }
    }
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// The leaf that opened it has expired.
    #[error("the SVID that opened this stream has expired")]
    Expired,
    /// The process ends.
    #[error("the CA is shutting down")]
    Shutdown,
}

/// Streams that one leaf may hold: one in use, one that replaces it, and some whose end we have not noticed yet.
const EACH: usize = 4;
/// The clock is asked at least so often: it may be set while we wait.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Opens streams; one for the process.
pub struct Bundles {
    state: Arc<State>,
    holders: Arc<Holders>,
    clock: SharedClock,
    places: Arc<Places<[u8; 32]>>,
    shutdown: CancellationToken,
}

/// A stream of bundles, its end last.
pub type BundleStream = ReceiverStream<Result<TrustBundle, WatchEnd>>;

impl Bundles {
    /// At most `max` streams at once.
    pub fn new(
        state: Arc<State>,
        holders: Arc<Holders>,
        clock: SharedClock,
        max: usize,
        shutdown: CancellationToken,
    ) -> Self {
        Self { state, holders, clock, places: Places::new(max, EACH), shutdown }
    }

    /// Streams that are open.
    pub fn open(&self) -> usize {
        self.places.held()
    }

    /// A stream for `peer`, the first bundle already in it. `known`: the generation that it has in force.
    pub fn watch(&self, peer: Option<&VerifiedId>, known: u64) -> Result<BundleStream, WatchRefusal> {
        let peer = self.member(peer)?;
        let place = self.places.take(*peer.spki_sha256()).ok_or(WatchRefusal::TooMany)?;
        self.note(peer, known, None);
        // One bundle may wait: a reader that does not read costs no more than that.
        let (send, receive) = mpsc::channel(1);
        let follower = Follower {
            authority: self.state.subscribe(),
            clock: self.clock.clone(),
            until: peer.not_after().as_secs(),
            shutdown: self.shutdown.clone(),
            send,
            _place: place,
        };
        tokio::spawn(follower.run());
        Ok(ReceiverStream::new(receive))
    }
}

impl Bundles {
    /// What the holder of a leaf has in force.
    pub fn reported(&self, peer: Option<&VerifiedId>, report: &HoldingReport) -> Result<(), WatchRefusal> {
        let connections = report.connections.as_ref();
        let connections = connections.map(|count| Connections {
            open: count.open,
            good: count.good,
            failed: count.failed,
            behind: count.behind,
        });
        self.note(self.member(peer)?, report.bundle_generation, connections);
        Ok(())
    }

    fn member<'a>(&self, peer: Option<&'a VerifiedId>) -> Result<&'a VerifiedId, WatchRefusal> {
        let peer = peer.ok_or(WatchRefusal::NoSvid)?;
        let ours = self.state.authority().trust_domain().clone();
        if peer.id().trust_domain() != ours {
            return Err(WatchRefusal::Stranger(ours));
        }
        Ok(peer)
    }

    /// More than is in force nobody can hold.
    fn note(&self, peer: &VerifiedId, generation: u64, connections: Option<Connections>) {
        let generation = generation.min(self.state.authority().generation());
        self.holders.reported(peer, Report { generation, at: self.clock.now().as_secs(), connections });
    }
}

struct Follower {
    authority: watch::Receiver<Arc<Authority>>,
    clock: SharedClock,
    until: u64,
    shutdown: CancellationToken,
    send: mpsc::Sender<Result<TrustBundle, WatchEnd>>,
    _place: Place<[u8; 32]>,
}

impl Follower {
    async fn run(mut self) {
        let send = self.send.clone();
        tokio::select! {
            () = send.closed() => {}
            end = self.follow() => { let _ = send.send(Err(end)).await; }
        }
    }

    async fn follow(&mut self) -> WatchEnd {
        let mut sent = None;
        loop {
            let now = bundle(&self.authority.borrow_and_update());
            let news = Some((now.generation, now.signing_root_sha256.clone()));
            if sent != news {
                sent = news;
                tokio::select! {
                    _ = self.send.send(Ok(now)) => {}
                    end = ended(&self.clock, self.until, &self.shutdown) => return end,
                }
            }
            tokio::select! {
                changed = self.authority.changed() => if changed.is_err() { return WatchEnd::Shutdown },
                end = ended(&self.clock, self.until, &self.shutdown) => return end,
            }
        }
    }
}

async fn ended(clock: &SharedClock, until: u64, shutdown: &CancellationToken) -> WatchEnd {
    loop {
        let now = clock.now().as_secs();
        if now > until {
            return WatchEnd::Expired;
        }
        let left = Duration::from_secs(until - now + 1);
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
            () = shutdown.cancelled() => return WatchEnd::Shutdown,
        }
    }
}

#[cfg(test)]
mod tests;
