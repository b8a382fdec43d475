//! Watches that never end: begun again after each end, from the beginning where the API server no longer knows where we were.
//! Called by `secret` and `bundles`. An error is said and waited after; it never ends a watch.

use std::fmt::Debug;
use std::time::Duration;

use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio_stream::{Stream, StreamExt as _};

use super::{CallError, sort};

/// Each watch is asked for anew after so many seconds, so that a connection that died without a word is noticed.
const SECONDS: u32 = 30;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A pod may wait for what we watch: seconds, not minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// After so long without an error the pauses begin with the first again.
const CALM: Duration = Duration::from_secs(30);

/// Doubled each time.
#[derive(Default)]
struct Pauses(u32);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.0.min(8)).min(LONGEST_PAUSE);
        self.0 += 1;
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// All events of the objects that the selectors leave.
pub fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, CallError>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher(api, config.timeout(SECONDS)).backoff(ResetTimerBackoff::new(Pauses::default(), CALM));
    events.map(|event| event.map_err(of_watch))
}

/// Says each time that the one object may have changed.
pub fn pings<K>(api: Api<K>, name: &str) -> impl Stream<Item = Result<(), CallError>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // RBAC by name works on a watch only where it asks for that name.
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    follow(api, config).filter_map(|event| match event {
        // Nothing is known yet.
        Ok(Event::Init | Event::InitApply(_)) => None,
        Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => Some(Ok(())),
        Err(error) => Some(Err(error)),
    })
}

fn of_watch(error: watcher::Error) -> CallError {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => sort(error),
        watcher::Error::WatchError(status) => sort(kube::Error::Api(status)),
        watcher::Error::NoResourceVersion => CallError::Unavailable("an object without a resource version".to_owned()),
    }
}
