//! One proxy's stream, from `Hello` to its end: the journey of rules and answers.
//!
//! Started by `server` for each `Connect`. It must never queue for a slow reader (what is sent is made when it can be sent,
//! of the newest picture), and never send a rule while rules are withheld.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::controller::{FromProxy, Hello, ToProxy, from_proxy, to_proxy};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use crate::answer::{self, AddressError, Asked};
use crate::index::{Index, Member};
use crate::metrics::Metrics;
use crate::model::MAX_UID_BYTES;
use crate::rules;
use crate::server::budget::Budget;
use crate::server::guard::Caller;
use crate::server::hello::{Claim, Refusal, admit};
use crate::server::registry::{Record, Registry, Seat};
use crate::server::wanted::Wanted;
use crate::source::Snapshot;

/// A caller that does not introduce itself by then is cut off.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// A reader that does not take the reason of its stream's end by then does not get it.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// Lines about what callers do wrong, a second and at once.
const WRONGS_PER_SECOND: u32 = 5;
const WRONG_BURST: u32 = 50;
/// Lines about streams that begin and end: the burst is for proxies that come back all together.
const STREAMS_PER_SECOND: u32 = 20;
const STREAM_BURST: u32 = 8192;
/// Names of rules in one line.
const NAMES_SHOWN: usize = 8;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The proxy closed it, or its connection is gone.
    #[error("the proxy is gone")]
    Gone,
    /// No `Hello` in time, or something else came first.
    #[error("the first message must be Hello, within {} s", HELLO_LIMIT.as_secs())]
    NoHello,
    /// Nothing is known of the mesh yet.
    #[error("the mesh is not known here yet; try again")]
    NoPicture,
    /// The caller is not the pod that it says it is, or is not any more.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// An address that is none.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// A second `Hello`.
    #[error("Hello may be said once")]
    HelloTwice,
    /// A newer stream of the same pod.
    #[error("a newer stream of this pod took over")]
    Replaced,
    /// The pod opens stream after stream.
    #[error("too many streams of this pod; try again later")]
    TooOften,
    /// This process ends.
    #[error("the controller is shutting down")]
    ShuttingDown,
}

impl End {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            End::Gone => "gone",
            End::NoHello => "no_hello",
            End::NoPicture => "no_picture",
            End::Refused(refusal) => refusal.label(),
            End::Address(_) => "bad_address",
            End::HelloTwice => "hello_twice",
            End::Replaced => "replaced",
            End::TooOften => "too_often",
            End::ShuttingDown => "shutting_down",
        }
    }

    fn status(&self) -> Status {
        let code = match self {
            End::Gone => Code::Cancelled,
            End::NoHello | End::HelloTwice | End::Address(_) => Code::InvalidArgument,
            End::NoPicture | End::ShuttingDown => Code::Unavailable,
            End::Refused(_) => Code::PermissionDenied,
            End::Replaced => Code::Aborted,
            End::TooOften => Code::ResourceExhausted,
        };
        Status::new(code, self.to_string())
    }
}

/// What every stream needs.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The picture of the mesh.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Bounds what callers bring into the log.
    pub lines: Arc<CallerLines>,
    /// Cancelled when this process ends.
    pub shutdown: CancellationToken,
}

/// A caller decides how often it comes, and what it complains of: all is counted, not all is logged.
#[derive(Debug)]
pub struct CallerLines {
    wrongs: Mutex<Budget>,
    streams: Mutex<Budget>,
}

impl CallerLines {
    /// Whether one may be said about a caller that was refused, or that complains.
    pub(super) fn wrong(&self) -> bool {
        may(&self.wrongs)
    }

    /// Whether one may be said about a stream that began or ended.
    pub(super) fn stream(&self) -> bool {
        may(&self.streams)
    }
}

fn may(budget: &Mutex<Budget>) -> bool {
    budget.lock().unwrap_or_else(PoisonError::into_inner).try_spend(Instant::now())
}

impl Default for CallerLines {
    fn default() -> Self {
        let now = Instant::now();
        CallerLines {
            wrongs: Mutex::new(Budget::new(WRONGS_PER_SECOND, WRONG_BURST, now)),
            streams: Mutex::new(Budget::new(STREAMS_PER_SECOND, STREAM_BURST, now)),
        }
    }
}

/// To the proxy; one message at a time.
pub type Out = mpsc::Sender<Result<ToProxy, Status>>;

/// Lives one stream.
pub async fn run(shared: Shared, caller: Caller, mut from: Streaming<FromProxy>, out: Out) {
    let _busy = caller.busy();
    let (metrics, lines) = (Arc::clone(&shared.metrics), Arc::clone(&shared.lines));
    let (end, began) = match Session::begin(shared, &caller, &mut from).await {
        Ok(session) => (session.serve(from, &out).await, true),
        Err(end) => (end, false),
    };
    let (address, id) = (caller.peer.address, caller.peer.id.as_ref().map(|id| id.id().as_str()));
    if began && lines.stream() {
        info!(%address, id, reason = end.label(), "stream ended: {end}");
    } else if !began && lines.wrong() {
        warn!(%address, id, reason = end.label(), "stream refused: {end}");
    }
    metrics.stream_ended(end.label());
    let _ = timeout(FAREWELL_LIMIT, out.send(Err(end.status()))).await;
}

struct Session {
    shared: Shared,
    seat: Seat,
    /// The picture in which the caller was let in last.
    snapshot: Arc<Snapshot>,
    index: Arc<Index>,
    /// Revision of the rules sent last.
    sent: Option<String>,
    /// Rules that are to be sent.
    rules_due: bool,
    wanted: Wanted,
}

impl Session {
    /// Waits for `Hello`, lets the caller in, and takes its pod's seat.
    async fn begin(mut shared: Shared, caller: &Caller, from: &mut Streaming<FromProxy>) -> Result<Self, End> {
        let hello = match timeout(HELLO_LIMIT, from.message()).await {
            Ok(Ok(Some(FromProxy { kind: Some(from_proxy::Kind::Hello(hello)) }))) => hello,
            Ok(Ok(None) | Err(_)) => return Err(End::Gone),
            Ok(Ok(Some(_))) | Err(_) => return Err(End::NoHello),
        };
        let snapshot = Arc::clone(&shared.snapshots.borrow_and_update());
        let index = snapshot.index.clone().ok_or(End::NoPicture)?;
        let claim = claim(&hello, caller)?;
        let member = admit(&index, &claim)?;
        if !shared.registry.may_sit(&claim.pod_uid) {
            return Err(End::TooOften);
        }
        let record = Record::new(claim, member.name.clone(), caller.peer.address, &hello);
        if shared.lines.stream() {
            info!(
                workload = %record.name, id = record.claim.id.as_str(), address = %record.address,
                version = record.proxy_version, feature_level = record.feature_level, "stream began"
            );
        }
        let seat = shared.registry.sit(record);
        let rules_due = snapshot.serves_rules_to(&seat.record.name.namespace);
        Ok(Session { seat, snapshot, index, sent: None, rules_due, wanted: Wanted::new(Instant::now()), shared })
    }

    /// Sends what is due, takes what comes, follows the picture; until something ends it.
    async fn serve(mut self, mut from: Streaming<FromProxy>, out: &Out) -> End {
        loop {
            let due = self.rules_due || self.wanted.is_due();
            let ready_at = self.wanted.ready_at(Instant::now());
            let step = tokio::select! {
                biased;
                () = self.shared.shutdown.cancelled() => Err(End::ShuttingDown),
                () = self.seat.replaced.cancelled() => Err(End::Replaced),
                changed = self.shared.snapshots.changed() => match changed {
                    Ok(()) => self.changed(),
                    Err(_) => Err(End::ShuttingDown),
                },
                permit = out.reserve(), if due => match permit {
                    Ok(permit) => {
                        if let Some(message) = self.next() {
                            permit.send(Ok(message));
                        }
                        Ok(())
                    }
                    Err(_) => Err(End::Gone),
                },
                () = out.closed(), if !due => Err(End::Gone),
                taken = take(&mut from, ready_at) => match taken {
                    Ok(Some(message)) => self.take(message),
                    Ok(None) | Err(_) => Err(End::Gone),
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// The picture changed: is the caller still who it was, and what does it not know yet?
    fn changed(&mut self) -> Result<(), End> {
        let snapshot = Arc::clone(&self.shared.snapshots.borrow_and_update());
        let Some(index) = snapshot.index.clone() else { return Ok(()) };
        let namespace = &self.seat.record.name.namespace;
        let served = snapshot.serves_rules_to(namespace);
        if Arc::ptr_eq(&index, &self.index) && served == self.snapshot.serves_rules_to(namespace) {
            return Ok(());
        }
        let member = admit(&index, &self.seat.record.claim)?;
        self.rules_due = served && self.sent.as_deref() != Some(&rules::revision(&index, member));
        if index.topology() != self.index.topology() {
            self.wanted.recheck(&index);
        }
        (self.snapshot, self.index) = (snapshot, index);
        Ok(())
    }

    /// What is to be said next: rules before answers.
    fn next(&mut self) -> Option<ToProxy> {
        if std::mem::take(&mut self.rules_due) {
            let index = Arc::clone(&self.index);
            // Whoever left the picture is sent away by `changed`.
            let member = admit(&index, &self.seat.record.claim).ok()?;
            return Some(self.workload(&index, member));
        }
        let due = self.wanted.next(&self.index)?;
        self.seat.record.follows(self.wanted.followed());
        self.shared.metrics.answer_sent(answer::label(&due.answer), due.asked, due.followed);
        Some(ToProxy { kind: Some(to_proxy::Kind::Answer(due.answer)) })
    }

    fn workload(&mut self, index: &Index, member: &Member) -> ToProxy {
        let workload = rules::message(index, member);
        let level = self.seat.record.feature_level;
        let beyond = workload.rules.iter().filter(|rule| rule.feature > level);
        let beyond: Vec<String> = beyond.map(|rule| format!("{}/{}", rule.namespace, rule.name)).collect();
        if !beyond.is_empty() && self.shared.lines.wrong() {
            let (count, some) = (beyond.len(), &beyond[..beyond.len().min(NAMES_SHOWN)]);
            warn!(workload = %member.name, level, count, rules = ?some, "the proxy is too old for these rules: it denies by them");
        }
        let published = self.sent.is_some().then_some(self.snapshot.since);
        self.seat.record.sent(&workload.revision, published, beyond);
        self.shared.metrics.rules_sent();
        self.sent = Some(workload.revision.clone());
        ToProxy { kind: Some(to_proxy::Kind::Workload(workload)) }
    }

    fn take(&mut self, message: FromProxy) -> Result<(), End> {
        self.wanted.spend();
        match message.kind {
            Some(from_proxy::Kind::Lookup(address)) => self.wanted.ask(Asked::from_wire(&address)?),
            Some(from_proxy::Kind::Forget(address)) => {
                self.wanted.forget(Asked::from_wire(&address)?);
                self.seat.record.follows(self.wanted.followed());
            }
            Some(from_proxy::Kind::Ack(ack)) => {
                let record = &self.seat.record;
                let propagated = record.acked(&ack);
                self.shared.metrics.acked(ack.problem.is_empty(), propagated);
                if !ack.problem.is_empty() && self.shared.lines.wrong() {
                    warn!(workload = %record.name, problem = record.told().problem, "the proxy refused its rules");
                }
            }
            Some(from_proxy::Kind::Hello(_)) => return Err(End::HelloTwice),
            // Of a newer proxy: what it says is not for us.
            None => debug!(workload = %self.seat.record.name, "a message of an unknown kind"),
        }
        Ok(())
    }
}

/// The next message, not before `ready_at`; never while there is no room.
async fn take(from: &mut Streaming<FromProxy>, ready_at: Option<Instant>) -> Result<Option<FromProxy>, Status> {
    match ready_at {
        Some(at) if at <= Instant::now() => {}
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
    from.message().await
}

fn claim(hello: &Hello, caller: &Caller) -> Result<Claim, End> {
    // Without an SVID no handshake succeeds here; were it otherwise, the caller would be nobody.
    let id = caller.peer.id.as_ref().ok_or(Refusal::OtherAccount)?.id().clone();
    if hello.pod_uid.len() > MAX_UID_BYTES {
        return Err(Refusal::UnknownPod.into());
    }
    Ok(Claim { pod_uid: hello.pod_uid.clone(), id, from: caller.peer.address.ip().to_canonical() })
}
