//! The controller's stream: dialled, kept up, dialled again; what comes is put in force, what is wanted is asked.
//!
//! Started by `discovery`, one a process. It must never let go of what is in force because the controller is gone, and never
//! speak to anybody but the controller's exact id.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::controller as api;
use countersign_credentials::{
    Backoff, ChannelError, ChannelSettings, Credentials, TlsAs, Watch, channel, reason, up_to,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::cache::Say;
use super::{Shared, answer, workload};

/// First and last bound of the delay between rounds through the addresses.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// When a stream that was open is lost, the next is dialled within this time, drawn evenly: a controller that restarts loses
/// all of the mesh's in the same instant. Lookups wait a second at most, so it is not more.
const SPREAD: Duration = Duration::from_secs(2);
/// Longest that dialling, handshake and the stream's opening may take together.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// A stream that lasted this long was a good one: the next delay starts small.
const STEADY: Duration = Duration::from_secs(5);
/// How often idle answers are forgotten.
const SWEEP: Duration = Duration::from_secs(60);
/// A rule set of 10,000 rules is a few MiB.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;
/// Messages to the controller that may wait for the network.
const OUTGOING: usize = 64;
/// More rules than these are compiled on another thread: at some 10 us each they would hold up the data path.
const MANY_RULES: usize = 128;
/// Longest problem sent or shown.
const MAX_PROBLEM: usize = 1000;

/// Why a stream is over.
#[derive(Debug)]
enum End {
    /// Our SVID was renewed; the same controller is dialled with the new one.
    Renewed,
    /// It could not be opened, or broke.
    Lost { label: &'static str, reason: String },
}

/// Keeps the stream up for ever; ends only when the credentials' owner is gone for good.
pub async fn keep(shared: Arc<Shared>, mut credentials: Watch) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut turn = 0_usize;
    while usable(&mut credentials).await.is_some() {
        let addresses = &shared.settings.addresses;
        let Some(address) = addresses.get(turn % addresses.len().max(1)) else {
            return;
        };
        let mut up_since = None;
        let end = one_stream(&shared, &credentials, address, &mut up_since).await;
        shared.down(&end);
        // A controller that lets us in and throws us out at once must not be dialled at once for ever.
        if up_since.is_some_and(|since: Instant| since.elapsed() >= STEADY) {
            backoff.succeeded();
        }
        let End::Lost { label, reason } = end else {
            continue;
        };
        turn = turn.wrapping_add(1);
        tracing::warn!(address, reason = label, "controller: {reason}");
        if up_since.is_some() || turn.is_multiple_of(addresses.len()) {
            let spread = if up_since.is_some() { up_to(SPREAD) } else { Duration::ZERO };
            pause(backoff.failed().max(spread), &mut credentials).await;
        }
    }
}

/// Waits until there is an SVID that has not ended; none when there will never be one.
async fn usable(credentials: &mut Watch) -> Option<Arc<Credentials>> {
    loop {
        let now = credentials.borrow_and_update().clone();
        if let Some(now) = now.filter(|now| !now.expired()) {
            return Some(now);
        }
        credentials.changed().await.ok()?;
    }
}

/// Sleeps, but not past new credentials: the old ones may be why it failed.
async fn pause(delay: Duration, credentials: &mut Watch) {
    let renewed = async {
        if credentials.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let _ = tokio::time::timeout(delay, renewed).await;
}

/// One stream, from dialling to its end. `up_since` is set once it was open.
async fn one_stream(shared: &Arc<Shared>, credentials: &Watch, address: &str, up_since: &mut Option<Instant>) -> End {
    let mut credentials = credentials.clone();
    let Some(ours) = credentials.borrow_and_update().clone() else {
        return lost("no_credentials", "no SVID of our own");
    };
    let (to_say, said) = mpsc::channel(OUTGOING);
    let opened = tokio::time::timeout(OPEN_LIMIT, open(shared, &credentials, address, &to_say, said)).await;
    let mut incoming = match opened {
        Ok(Ok(incoming)) => incoming,
        Ok(Err(status)) => return broken(&status),
        Err(_) => return lost("timeout", "no stream within 10 s"),
    };
    *up_since = Some(Instant::now());
    shared.up(address);
    let mut renew_at = None;
    let mut owner_alive = true;
    let mut ack = None;
    let mut sweep = tokio::time::interval_at(Instant::now() + SWEEP, SWEEP);
    loop {
        let has_to_say = ack.is_some() || shared.cache().has_to_say();
        tokio::select! {
            message = incoming.message() => match message {
                Ok(Some(message)) => {
                    // Only the newest Ack matters: each Workload replaces the last.
                    ack = take_in(shared, message).await.or(ack);
                }
                Ok(None) => return lost("closed", "the controller closed the stream"),
                Err(status) => return broken(&status),
            },
            slot = to_say.reserve(), if has_to_say => match slot {
                Ok(slot) => {
                    let next = ack.take().map(api::from_proxy::Kind::Ack).or_else(|| shared.next_to_say());
                    if let Some(kind) = next {
                        slot.send(api::FromProxy { kind: Some(kind) });
                    }
                }
                Err(_) => return lost("closed", "the stream is closed"),
            },
            () = shared.to_say.notified() => {}
            _ = sweep.tick() => {
                shared.cache().sweep(Instant::now());
            }
            changed = credentials.changed(), if owner_alive => match changed {
                Ok(()) => renew_at = renew_at.or_else(|| renewal(&ours, &mut credentials)),
                Err(_) => owner_alive = false,
            },
            () = tokio::time::sleep_until(renew_at.unwrap_or_else(Instant::now)), if renew_at.is_some() => {
                return End::Renewed;
            }
        }
    }
}

/// Dials, says Hello, and has the stream.
async fn open(
    shared: &Shared,
    credentials: &Watch,
    address: &str,
    to_say: &mpsc::Sender<api::FromProxy>,
    said: mpsc::Receiver<api::FromProxy>,
) -> Result<Streaming<api::ToProxy>, Status> {
    let settings = ChannelSettings {
        address: address.to_owned(),
        expected: shared.settings.controller.clone(),
        tls: TlsAs::Ourselves(credentials.clone()),
        mark: shared.settings.mark,
    };
    let hello = api::Hello {
        pod_uid: shared.settings.pod_uid.clone(),
        proxy_version: env!("CARGO_PKG_VERSION").to_owned(),
        feature_level: countersign_policy::FEATURE_LEVEL,
    };
    let hello = api::FromProxy { kind: Some(api::from_proxy::Kind::Hello(hello)) };
    to_say.try_send(hello).map_err(|_| Status::internal("no room for Hello"))?;
    let client = api::controller_client::ControllerClient::new(channel(settings));
    let mut client = client.max_decoding_message_size(MAX_MESSAGE);
    Ok(client.connect(ReceiverStream::new(said)).await?.into_inner())
}

/// When to dial anew after our SVID was renewed: at a random point of what is left of the old one, so that many proxies
/// whose controller came up at one moment do not all return at one moment.
fn renewal(old: &Credentials, credentials: &mut Watch) -> Option<Instant> {
    let newer = credentials.borrow_and_update().clone()?;
    if Arc::ptr_eq(newer.svid(), old.svid()) {
        return None;
    }
    let left = old.expires_at().as_secs().saturating_sub(old.clock().now().as_secs());
    let part = rand::Rng::random_range(&mut rand::rng(), 0.0..0.8);
    Some(Instant::now() + Duration::from_secs(left).mul_f64(part))
}

/// Puts in force what came; the Ack, if it was rules.
async fn take_in(shared: &Arc<Shared>, message: api::ToProxy) -> Option<api::Ack> {
    match message.kind {
        Some(api::to_proxy::Kind::Workload(workload)) => {
            let revision = workload.revision.clone();
            let read = read_rules(shared, workload).await;
            Some(shared.take_in_rules(revision, read))
        }
        Some(api::to_proxy::Kind::Answer(answer)) => {
            shared.take_in_answer(answer);
            None
        }
        // A newer controller says something that this proxy does not know: nothing changes by it.
        None => None,
    }
}

async fn read_rules(shared: &Arc<Shared>, workload: api::Workload) -> Result<workload::Read, workload::Refused> {
    if workload.rules.len() <= MANY_RULES {
        return workload::read(&shared.settings, workload);
    }
    let shared = Arc::clone(shared);
    let read = tokio::task::spawn_blocking(move || workload::read(&shared.settings, workload)).await;
    read.unwrap_or(Err(workload::Refused::Unreadable))
}

fn broken(status: &Status) -> End {
    let label = ChannelError::behind(status).map_or("stream", ChannelError::label);
    lost(label, &reason(status))
}

fn lost(label: &'static str, reason: &str) -> End {
    End::Lost { label, reason: reason.chars().take(MAX_PROBLEM).collect() }
}

impl Shared {
    fn up(&self, address: &str) {
        self.metrics.controller_connected(true);
        self.metrics.controller_attempt("ok");
        let mut link = self.link();
        link.turn(true);
        link.address = Some(address.to_owned());
        drop(link);
        self.cache().up(Instant::now());
        tracing::info!(address, "controller: stream is up");
    }

    fn down(&self, end: &End) {
        self.cache().down(Instant::now());
        self.metrics.controller_connected(false);
        let mut link = self.link();
        link.turn(false);
        if let End::Lost { label, reason } = end {
            self.metrics.controller_attempt(label);
            link.last_problem = Some(reason.clone());
        }
    }

    fn next_to_say(&self) -> Option<api::from_proxy::Kind> {
        Some(match self.cache().say()? {
            Say::Lookup(addr) => api::from_proxy::Kind::Lookup(answer::write_address(addr)),
            Say::Forget(addr) => api::from_proxy::Kind::Forget(answer::write_address(addr)),
        })
    }

    fn take_in_answer(&self, answer: api::Answer) {
        match answer::read(answer) {
            Ok(read) => {
                for problem in read.problems.iter().take(3) {
                    tracing::warn!(address = %read.address, "controller: answer: {problem}");
                }
                self.cache().answer(read.address, read.who, read.ttl, Instant::now());
            }
            Err(problem) => tracing::warn!("controller: answer: {problem}"),
        }
    }

    fn take_in_rules(&self, revision: String, read: Result<workload::Read, workload::Refused>) -> api::Ack {
        match read {
            Ok(read) => {
                for problem in &read.problems {
                    tracing::warn!(revision, "controller: rule: {problem}");
                }
                self.link().rules_problem = read.problems.first().cloned();
                self.put_in_force(read.in_force);
                api::Ack { revision, problem: String::new(), unknown_rules: read.unknown }
            }
            Err(refused) => {
                let problem: String = refused.to_string().chars().take(MAX_PROBLEM).collect();
                tracing::error!(revision, "controller: rules refused, the last good ones stay: {problem}");
                let in_force = self.in_force.load().as_ref().map_or(0, |now| now.rules.len());
                self.metrics.policy_update("refused", in_force);
                self.link().rules_problem = Some(problem.clone());
                api::Ack { revision, problem, unknown_rules: Vec::new() }
            }
        }
    }

    fn put_in_force(&self, now: workload::InForce) {
        let rules = Arc::clone(&now.rules);
        tracing::info!(revision = rules.revision(), rules = rules.len(), "controller: rules in force");
        self.metrics.policy_update("applied", rules.len());
        // Ranges first: who waits for the rules reads them next.
        self.in_force.store(Some(Arc::new(now)));
        self.rules.send_replace(Some(rules));
    }
}
