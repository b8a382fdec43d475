//! The bundle as it changes: one stream from the CA, opened with our SVID, opened anew after each renewal and each loss.
//!
//! Runs as half of the task of `ca::start`. A bundle that is refused ends nothing: the last good one stays in force.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::ca as wire;
use countersign_api::ca::certificate_authority_client::CertificateAuthorityClient;
use tokio::time::{Instant, timeout};
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::error::CaError;
use super::issue::{MAX_ANSWER, failed};
use super::store::Store;
use super::{CaClient, Tally};
use crate::Watch;
use crate::backoff::{Backoff, up_to};
use crate::channel::{ChannelSettings, TlsAs, channel};

const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// When a stream that was open is lost, the next is opened within this time, drawn evenly: a CA that restarts loses all of the
/// mesh's in the same instant, and whoever follows the bundle is in no hurry.
const SPREAD: Duration = Duration::from_secs(5);
/// A stream that lasted so long was a good one: the next delay starts small. One that breaks sooner does not count as a
/// success, or a CA that lets us in and throws us out would be dialled several times a second for ever.
const STEADY: Duration = Duration::from_secs(30);
/// The CA sends the bundle at once.
const FIRST_MESSAGE: Duration = Duration::from_secs(15);
/// While a root is being replaced we say so often what we hold; and once, so long after a bundle came, what has become of our connections. A half
/// more or less: `countersign ca rotate` waits for that report.
const REPORT_EACH: Duration = Duration::from_secs(5);
/// For one report.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn run(config: Arc<CaClient>, store: Arc<Store>, mut watch: Watch) {
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    loop {
        // The sender lives in `store`, which we hold: this cannot fail.
        if watch.wait_for(|held| held.as_ref().is_some_and(|held| !held.expired())).await.is_err() {
            return;
        }
        let began = Instant::now();
        let mut open = false;
        let end = follow(&config, &store, &mut watch, &mut open).await;
        if began.elapsed() >= STEADY {
            backoff.succeeded();
        }
        match end {
            Ok(()) => store.following(false, None),
            Err(error) => {
                let delay = if open { backoff.failed().max(up_to(SPREAD)) } else { backoff.failed() };
                store.following(false, Some(&error));
                warn!(%error, label = error.label(), retry_ms = delay.as_millis() as u64, "bundle stream ended");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

/// One stream. Ends well when our SVID was renewed: the connection would end with the old one. `opened` is set once it was open.
async fn follow(config: &CaClient, store: &Store, watch: &mut Watch, opened: &mut bool) -> Result<(), CaError> {
    let ours = leaf(watch);
    let (mut stream, mut reporter) = open(config, store, watch).await?;
    let mut next = first(&mut stream).await?;
    store.following(true, None);
    *opened = true;
    loop {
        take(store, next);
        next = tokio::select! {
            came = stream.message() => came.map_err(|status| failed(&status))?.ok_or_else(closed)?,
            () = renewed(watch, ours) => return Ok(()),
            never = reporter.report(store) => match never {},
        };
    }
}

/// Tells the CA what we hold, on the connection that shows our leaf: `rotation` of the CA waits for that.
struct Reporter {
    client: CertificateAuthorityClient<Channel>,
    tally: Tally,
}

impl Reporter {
    /// At once, again after a pause, and then every few seconds while a root is being replaced. Never ends. It is begun anew with each bundle, and
    /// what that ends is being ended while the first report goes out: the second tells of it, even where the bundle ends the rotation.
    async fn report(&mut self, store: &Store) -> std::convert::Infallible {
        let mut once_more = true;
        loop {
            match self.once(store).await {
                Ok(()) => {}
                // A CA of before: it counts us by what our requests for SVIDs say.
                Err(Some(tonic::Code::Unimplemented)) => std::future::pending().await,
                Err(code) => debug!(?code, "the CA did not take our report; it is told again"),
            }
            let again = REPORT_EACH.mul_f64(0.75) + up_to(REPORT_EACH / 2);
            tokio::time::sleep(again).await;
            while !std::mem::take(&mut once_more) && !store.replacing() {
                tokio::time::sleep(again).await;
            }
        }
    }

    async fn once(&mut self, store: &Store) -> Result<(), Option<tonic::Code>> {
        let connections = self.tally.count();
        let report = wire::HoldingReport { bundle_generation: store.generation(), connections };
        match timeout(REPORT_LIMIT, self.client.report_holding(report)).await {
            Ok(answer) => answer.map(drop).map_err(|status| Some(status.code())),
            Err(_) => Err(None),
        }
    }
}

async fn open(
    config: &CaClient,
    store: &Store,
    watch: &Watch,
) -> Result<(Streaming<wire::TrustBundle>, Reporter), CaError> {
    let channel = channel(ChannelSettings {
        address: config.ca_address.clone(),
        expected: config.ca_id.clone(),
        tls: TlsAs::Ourselves(watch.clone()),
        mark: config.mark,
    });
    let mut client = CertificateAuthorityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let request = wire::WatchBundleRequest { known_generation: store.generation() };
    match timeout(FIRST_MESSAGE, client.watch_bundle(request)).await {
        Ok(answer) => {
            let stream = answer.map_err(|status| failed(&status))?.into_inner();
            Ok((stream, Reporter { client, tally: config.tally.clone() }))
        }
        Err(_) => Err(CaError::Timeout(FIRST_MESSAGE.as_secs())),
    }
}

async fn first(stream: &mut Streaming<wire::TrustBundle>) -> Result<wire::TrustBundle, CaError> {
    match timeout(FIRST_MESSAGE, stream.message()).await {
        Ok(came) => came.map_err(|status| failed(&status))?.ok_or_else(closed),
        Err(_) => Err(CaError::Timeout(FIRST_MESSAGE.as_secs())),
    }
}

fn take(store: &Store, came: wire::TrustBundle) {
    let generation = came.generation;
    let signing_root = came.signing_root_sha256.clone();
    match store.take_bundle(came) {
        Ok(new) => {
            if new {
                info!(generation, "new trust bundle in force");
            }
            store.signs_under(&signing_root);
        }
        Err(error) => warn!(%error, label = error.label(), "trust bundle refused; the last good one stays in force"),
    }
}

fn closed() -> CaError {
    CaError::Call { label: "stream_closed", reason: "the CA closed the bundle stream".into() }
}

/// Names the leaf in force: each has its own key.
fn leaf(watch: &Watch) -> Option<[u8; 32]> {
    watch.borrow().as_ref().map(|held| held.svid().spki_sha256())
}

async fn renewed(watch: &mut Watch, ours: Option<[u8; 32]>) {
    let other =
        |held: &Option<Arc<_>>| held.as_ref().map(|held: &Arc<crate::Credentials>| held.svid().spki_sha256()) != ours;
    if watch.wait_for(other).await.is_err() {
        std::future::pending().await
    }
}
