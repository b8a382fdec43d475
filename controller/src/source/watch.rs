//! When to look again: inotify, with a slow look in any case.
//!
//! Called by `source::dir::run`. It says only "something may have changed", never what: events can be lost, merged or
//! misnamed, a scan cannot.

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

/// Looked at in any case: what a link points to may change where nobody watches, and some file systems make no events.
const RESCAN: Duration = Duration::from_secs(10);
/// The same where watching fails.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(1);
/// After a finished change: a writer of several files, or of a link and its target, gets this long for the next.
const QUIET: Duration = Duration::from_millis(20);
/// After a change that may not be finished (written, not closed).
const QUIET_WRITING: Duration = Duration::from_millis(250);
/// A writer that never pauses is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the last events said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// A file was closed, renamed or deleted.
    Finished,
    /// A file was created or written, and is perhaps still open.
    Writing,
}

/// Watches directories.
#[derive(Debug)]
pub struct Watcher {
    inotify: Option<AsyncFd<OwnedFd>>,
    watched: HashSet<i32>,
    /// Some directory could not be watched.
    partial: bool,
}

impl Watcher {
    /// Without inotify (its instances are limited for each user) only the slow looks remain, and are less slow.
    pub fn new() -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .and_then(registered)
            .inspect_err(
                |error| warn!(%error, "inotify is not to be had: changes are noticed within {RESCAN_UNWATCHED:?}"),
            )
            .ok();
        Watcher { inotify, watched: HashSet::new(), partial: false }
    }

    /// Watches exactly these directories; whether some of them were not watched before.
    pub fn watch(&mut self, directories: &[PathBuf]) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let mut now = HashSet::with_capacity(directories.len());
        let mut partial = false;
        for directory in directories {
            match inotify::add_watch(inotify.get_ref(), directory, flags) {
                Ok(watch) => {
                    now.insert(watch);
                }
                // Gone meanwhile: the next scan sees that.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => {
                    if !self.partial {
                        warn!(directory = %directory.display(), %error, "cannot be watched: looked at more often instead");
                    }
                    partial = true;
                }
            }
        }
        for &old in self.watched.difference(&now) {
            // The kernel drops the watch of a deleted directory by itself.
            let _ = inotify::remove_watch(inotify.get_ref(), old);
        }
        let fresh = now.difference(&self.watched).next().is_some();
        self.watched = now;
        self.partial = partial;
        fresh
    }

    /// Waits until something may have changed and its writer paused.
    pub async fn changed(&mut self) {
        let unwatched = self.inotify.is_none() || self.partial || self.watched.is_empty();
        let rescan = if unwatched { RESCAN_UNWATCHED } else { RESCAN };
        let Ok(mut seen) = timeout(rescan, self.events()).await else { return };
        let patience = Instant::now() + PATIENCE;
        loop {
            let quiet = match seen {
                Seen::Finished => QUIET,
                Seen::Writing => QUIET_WRITING,
            };
            let until = patience.min(Instant::now() + quiet);
            tokio::select! {
                more = self.events() => seen = more,
                () = sleep_until(until) => return,
            }
            if Instant::now() >= patience {
                return;
            }
        }
    }

    /// Waits for events and takes all there are.
    async fn events(&self) -> Seen {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
            let seen = drain(inotify.get_ref());
            ready.clear_ready();
            if let Some(seen) = seen {
                return seen;
            }
        }
    }
}

/// Deprecated because it takes types that may close their descriptor under it; its successor is `unsafe` and asks for what
/// `OwnedFd` keeps: it owns the descriptor until it is dropped.
#[allow(deprecated)]
fn registered(inotify: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(inotify, Interest::READABLE)
}

fn drain(inotify: &OwnedFd) -> Option<Seen> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut seen = None;
    while let Ok(event) = reader.next() {
        let kind = event.events();
        let open = kind.intersects(ReadFlags::CREATE | ReadFlags::MODIFY) && !kind.contains(ReadFlags::ISDIR);
        seen = Some(if open { Seen::Writing } else { Seen::Finished });
    }
    seen
}
