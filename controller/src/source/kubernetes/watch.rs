//! The watches: lists and follows each kind for ever, whatever breaks. `kube` brings a broken watch back where it was, or lists anew
//! where the API server does not know that place any more (410); here are the pauses, and the words for what went wrong.
//!
//! Started by the parent's `run`; says all it hears to `world`. It must never end by itself.

use std::error::Error as _;
use std::fmt::{Debug, Write as _};
use std::pin::pin;
use std::time::Duration;

use countersign_credentials::Backoff;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt as _;

use crate::source::kubernetes::held::Event;
use crate::source::kubernetes::objects::{self, Metadata};
use crate::source::kubernetes::world::{CIDRS, Change, NAMESPACES, NODES, PODS, POLICIES, Ranges, SERVICES, SLICES};

/// After an error, drawn evenly from zero to a bound that doubles from the first to the second: an API server that comes back is
/// not met by everybody at once, and is noticed soon.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A watch that broke and did not break again for so long is well. Longer than the longest pause and attempt together.
const WELL: Duration = Duration::from_secs(20);
/// A watch is opened anew after so many seconds, and one whose connection died silently five seconds later.
const WATCH_SECONDS: u32 = 55;
/// Objects of a page of a list: bounds what is held of an answer while it is read.
const PAGE: u32 = 500;
/// Characters of an error.
const MAX_WHY: usize = 300;

/// Starts all watches. They end when the set is dropped, or when nobody listens.
pub fn start(client: &Client, ranges: &Ranges, out: &mpsc::Sender<Change>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    // Whoever has ended owns no address; the API server says "deleted" when a pod ends.
    let running = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    let all = watcher::Config::default();
    tasks.spawn(follow(client.clone(), running, PODS, Change::Pod, out.clone()));
    tasks.spawn(follow(client.clone(), all.clone(), SERVICES, Change::Service, out.clone()));
    tasks.spawn(follow(client.clone(), all.clone(), SLICES, Change::Slice, out.clone()));
    tasks.spawn(follow(client.clone(), all.clone(), NAMESPACES, Change::Namespace, out.clone()));
    tasks.spawn(follow(client.clone(), all.clone(), POLICIES, Change::Policy, out.clone()));
    tasks.spawn(follow(client.clone(), all.clone(), NODES, Change::Node, out.clone()));
    // Not there before Kubernetes 1.33; what the operator says is not asked for.
    if ranges.services.is_empty() {
        tasks.spawn(follow(client.clone(), all, CIDRS, Change::Cidr, out.clone()));
    }
    tasks
}

async fn follow<K>(
    client: Client,
    config: watcher::Config,
    what: &'static str,
    change: fn(Event<K>) -> Change,
    out: mpsc::Sender<Change>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(watcher(Api::<K>::all(client), config.timeout(WATCH_SECONDS).page_size(PAGE)));
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut broke: Option<Instant> = None;
    loop {
        let next = match broke {
            Some(at) => timeout_at(at + WELL, events.next()).await,
            None => Ok(events.next().await),
        };
        let said = match next {
            Err(_) => {
                broke = None;
                backoff.succeeded();
                Change::Mended(what)
            }
            Ok(None) => return,
            Ok(Some(Ok(event))) => {
                let event = ours(event);
                if !matches!(event, Event::Listing | Event::Listed(_)) {
                    broke = None;
                    backoff.succeeded();
                }
                change(event)
            }
            Ok(Some(Err(error))) => {
                broke = Some(Instant::now());
                Change::Broke { what, why: words(&error) }
            }
        };
        let failed = matches!(said, Change::Broke { .. });
        if out.send(said).await.is_err() {
            return;
        }
        if failed {
            tokio::time::sleep(backoff.failed()).await;
        }
    }
}

fn ours<K: Resource<DynamicType = ()>>(event: watcher::Event<K>) -> Event<K> {
    match event {
        watcher::Event::Init => Event::Listing,
        watcher::Event::InitApply(object) => Event::Listed(object),
        watcher::Event::InitDone => Event::Complete,
        watcher::Event::Apply(object) => Event::Set(object),
        watcher::Event::Delete(object) => {
            let metadata: &Metadata = object.meta();
            Event::Gone(objects::key(metadata))
        }
    }
}

/// One line: what the API server said, or why it was not reached.
fn words(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    let why = match error {
        WatchError(status) => format!("{} {}", status.code, status.message),
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => client_words(error),
        NoResourceVersion => error.to_string(),
    };
    why.chars().take(MAX_WHY).collect()
}

/// The same of one request.
pub fn client_words(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} {}", status.code, status.message);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let words = deeper.to_string();
        if !text.contains(&words) {
            let _ = write!(text, ": {words}");
        }
        cause = deeper.source();
    }
    text.chars().take(MAX_WHY).collect()
}
