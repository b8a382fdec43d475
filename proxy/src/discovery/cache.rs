//! What is remembered of who is where, and what is still to be asked: a pure state machine, given the time.
//!
//! `discovery` asks it, the stream's task feeds it. It must never grow beyond its bounds, whatever the app dials, and never
//! return an un-meshed answer that has expired.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Identity, Service, Who};

/// Most destinations, and most sources, remembered; the least recently used of its kind gives way.
pub const MAX_REMEMBERED: [usize; 2] = [3072, 1024];
/// Both together.
const MAX_ENTRIES: usize = MAX_REMEMBERED[0] + MAX_REMEMBERED[1];
/// Most sources, and most destinations, asked for that nobody has answered yet.
pub const MAX_UNANSWERED: usize = 256;
/// Most connections held at once for an answer about a source, and about a destination.
pub const MAX_WAITING: usize = 1024;
/// New lookups a second of either kind, in the long run.
pub const LOOKUPS_PER_SECOND: u32 = 100;
/// New lookups at once, after a quiet time.
pub const LOOKUP_BURST: u32 = 200;
/// After this long without an answer the same lookup is sent again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// A lookup that waits for longer says that the stream had died before it was lost.
const PROMPT: Duration = Duration::from_secs(1);
/// Within this time a second proof that an answer is wrong does not have it asked again.
const DISTRUST_AGAIN: Duration = Duration::from_secs(1);
/// An answer that nobody wanted for this long is forgotten, so that the controller need not follow it for us.
const IDLE: Duration = Duration::from_secs(600);

/// What came of looking for an address.
#[derive(Debug)]
pub enum Find {
    /// An answer in force. `refresh`: it expires soon and was queued to be asked again.
    Known { who: Who, refresh: bool },
    /// Wait for `answered`, then ask [`Cache::answer_of`], and say [`Cache::waiter_left`] in any case.
    /// `ask_now`: a lookup was queued.
    Wait { answered: Arc<Notify>, ask_now: bool },
    /// A bound was reached.
    TooMany,
}

/// What is to be said to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    Lookup(SocketAddr),
    Forget(SocketAddr),
}

/// See the module.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<SocketAddr, Entry>,
    queue: VecDeque<Say>,
    up: bool,
    /// When the stream that is up, or was last, came up.
    since: Instant,
    /// Grows with each use, and so orders entries by recency.
    tick: u64,
    /// Bounds of questions about sources, which strangers cause, and about destinations, which the app causes: neither can
    /// starve the other.
    bounds: [Bounds; 2],
}

/// What questions of one kind may still cost.
#[derive(Debug)]
struct Bounds {
    waiting: usize,
    budget: Budget,
}

#[derive(Debug, Default)]
struct Entry {
    answer: Option<Answer>,
    /// When the lookup that is still unanswered was queued.
    asked: Option<Instant>,
    /// When an answer was last dropped because it proved wrong.
    distrusted: Option<Instant>,
    waiters: usize,
    answered: Arc<Notify>,
    used: u64,
    used_at: Option<Instant>,
}

#[derive(Debug)]
struct Answer {
    who: Who,
    since: Instant,
    /// Set where the answer, or a part of it, is un-meshed: how long it holds without being said again, and until when.
    ttl: Option<Duration>,
    expires: Option<Instant>,
}

impl Answer {
    fn fresh(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// More than half of its life is over.
    fn ages(&self, now: Instant) -> bool {
        let left = |expires: Instant| expires.saturating_duration_since(now);
        self.expires.zip(self.ttl).is_some_and(|(expires, ttl)| left(expires) < ttl / 2)
    }

    /// What of it goes on without the controller: all of it before it expires, then what is meshed.
    fn last_known(&self, now: Instant) -> Option<Who> {
        if self.fresh(now) { Some(self.who.clone()) } else { meshed_part(&self.who) }
    }
}

/// One remembered address, for the admin socket.
#[derive(Debug)]
pub struct Remembered<'a> {
    pub address: SocketAddr,
    pub who: Option<&'a Who>,
    pub age: Option<Duration>,
    pub expires_in: Option<Duration>,
    pub waiters: usize,
}

impl Cache {
    pub fn new(now: Instant) -> Self {
        let bounds = || Bounds { waiting: 0, budget: Budget { tokens: f64::from(LOOKUP_BURST), at: now } };
        Self {
            entries: HashMap::new(),
            queue: VecDeque::new(),
            up: false,
            since: now,
            tick: 0,
            bounds: [bounds(), bounds()],
        }
    }

    /// Finds the answer, or makes the caller one who waits for it.
    pub fn find(&mut self, addr: SocketAddr, now: Instant) -> Find {
        self.tick += 1;
        let (tick, up) = (self.tick, self.up);
        if let Some(entry) = self.entries.get_mut(&addr) {
            (entry.used, entry.used_at) = (tick, Some(now));
            if let Some(answer) = &entry.answer {
                let in_force = if up { answer.fresh(now).then(|| answer.who.clone()) } else { answer.last_known(now) };
                if let Some(who) = in_force {
                    let refresh = up && entry.asked.is_none() && answer.ages(now);
                    if refresh {
                        entry.asked = Some(now);
                        self.queue.push_back(Say::Lookup(addr));
                    }
                    return Find::Known { who, refresh };
                }
            }
        }
        self.wait(addr, now)
    }

    fn wait(&mut self, addr: SocketAddr, now: Instant) -> Find {
        if self.bounds[kind(addr)].waiting >= MAX_WAITING {
            return Find::TooMany;
        }
        let asked = self.entries.get(&addr).and_then(|entry| entry.asked);
        let ask_now = asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_AGAIN);
        if ask_now && !(self.bounds[kind(addr)].budget.spend(now) && self.room_for_a_lookup(addr)) {
            return Find::TooMany;
        }
        if !self.entries.contains_key(&addr) && !self.room_to_remember(kind(addr)) {
            return Find::TooMany;
        }
        self.bounds[kind(addr)].waiting += 1;
        let entry = self.entries.entry(addr).or_default();
        (entry.used, entry.used_at) = (self.tick, Some(now));
        entry.waiters += 1;
        if ask_now {
            entry.asked = Some(now);
            if self.up {
                self.queue.push_back(Say::Lookup(addr));
            }
        }
        Find::Wait { answered: Arc::clone(&entry.answered), ask_now }
    }

    /// The answer in force, to one who waits.
    pub fn answer_of(&self, addr: SocketAddr, now: Instant) -> Option<Who> {
        let answer = self.entries.get(&addr)?.answer.as_ref()?;
        if self.up { answer.fresh(now).then(|| answer.who.clone()) } else { answer.last_known(now) }
    }

    /// What goes on without a new answer, to one who waited in vain.
    pub fn last_known(&self, addr: SocketAddr, now: Instant) -> Option<Who> {
        self.entries.get(&addr)?.answer.as_ref()?.last_known(now)
    }

    /// One who waited no longer does.
    pub fn waiter_left(&mut self, addr: SocketAddr) {
        let bounds = &mut self.bounds[kind(addr)];
        bounds.waiting = bounds.waiting.saturating_sub(1);
        let up = self.up;
        if let Some(entry) = self.entries.get_mut(&addr) {
            entry.waiters = entry.waiters.saturating_sub(1);
            // Nobody was asked, nobody waits: nothing to remember.
            if entry.waiters == 0 && entry.answer.is_none() && !up {
                self.entries.remove(&addr);
            }
        }
    }

    /// The controller answered, or pushed a change. What is not remembered is not kept.
    pub fn answer(&mut self, addr: SocketAddr, who: Who, ttl: Option<Duration>, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&addr) else {
            return false;
        };
        entry.asked = None;
        entry.answer = Some(Answer { who, since: now, ttl, expires: ttl.map(|ttl| now + ttl) });
        entry.answered.notify_waiters();
        true
    }

    /// Drops an answer that proved wrong, where another can be asked for: one wrong endpoint of a busy service must neither use up
    /// all lookups, nor take its other endpoints away while the controller is gone.
    pub fn distrust(&mut self, addr: SocketAddr, now: Instant) {
        let Some(entry) = self.entries.get_mut(&addr) else {
            return;
        };
        let just_done = entry.distrusted.is_some_and(|at| now.saturating_duration_since(at) < DISTRUST_AGAIN);
        if self.up && !just_done {
            (entry.answer, entry.asked, entry.distrusted) = (None, None, Some(now));
        }
    }

    /// The stream is up: everything remembered is asked again, those that somebody waits for first, then by recency.
    pub fn up(&mut self, now: Instant) {
        (self.up, self.since) = (true, now);
        self.queue.clear();
        let mut order: Vec<_> =
            self.entries.iter().map(|(addr, e)| (e.waiters == 0, u64::MAX - e.used, *addr)).collect();
        order.sort_unstable();
        for (_, _, addr) in order {
            if let Some(entry) = self.entries.get_mut(&addr) {
                entry.asked = Some(now);
                self.queue.push_back(Say::Lookup(addr));
            }
        }
    }

    /// The stream is down: nothing can be asked, what is known goes on. An un-meshed answer that this stream gave, and that has not expired, was
    /// kept in step by it until now, so its time begins now; not if it was asked for again in vain. One of a stream before was not said again: it keeps the time that it has, so
    /// that a stream that comes and goes does not keep it in force.
    pub fn down(&mut self, now: Instant) {
        let (was_up, since) = (self.up, self.since);
        self.up = false;
        self.queue.clear();
        self.entries.retain(|_, entry| entry.waiters > 0 || entry.answer.is_some());
        for entry in self.entries.values_mut() {
            let in_vain = entry.asked.take().is_some_and(|asked| now.saturating_duration_since(asked) > PROMPT);
            let in_step = |answer: &&mut Answer| was_up && !in_vain && answer.since >= since && answer.fresh(now);
            if let Some(answer) = entry.answer.as_mut().filter(in_step) {
                answer.expires = answer.ttl.map(|ttl| now + ttl);
            }
            // Whoever waits for a fresher answer may now have the last known one.
            entry.answered.notify_waiters();
        }
    }

    /// The next thing to say.
    pub fn say(&mut self) -> Option<Say> {
        while let Some(next) = self.queue.pop_front() {
            let (Say::Lookup(addr) | Say::Forget(addr)) = next;
            let remembered = self.entries.contains_key(&addr);
            if remembered == matches!(next, Say::Lookup(_)) {
                return Some(next);
            }
        }
        None
    }

    /// Whether [`Cache::say`] may have something.
    pub fn has_to_say(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Forgets what nobody wanted for long. Called now and then while the stream is up; returns whether there is
    /// something to say.
    pub fn sweep(&mut self, now: Instant) -> bool {
        let idle = |e: &Entry| e.used_at.is_none_or(|at| now.saturating_duration_since(at) >= IDLE);
        let gone: Vec<_> =
            self.entries.iter().filter(|(_, e)| e.waiters == 0 && idle(e)).map(|(addr, _)| *addr).collect();
        for addr in gone {
            self.forget(addr);
        }
        self.has_to_say()
    }

    /// Everything remembered, at most `most` of it.
    pub fn remembered(&self, now: Instant, most: usize) -> (usize, impl Iterator<Item = Remembered<'_>>) {
        let each = self.entries.iter().take(most).map(move |(address, entry)| {
            let answer = entry.answer.as_ref();
            Remembered {
                address: *address,
                who: answer.map(|answer| &answer.who),
                age: answer.map(|answer| now.saturating_duration_since(answer.since)),
                expires_in: answer.and_then(|a| a.expires).map(|at| at.saturating_duration_since(now)),
                waiters: entry.waiters,
            }
        });
        (self.entries.len(), each)
    }

    /// Makes room among the unanswered: one that nobody waits for any longer gives way.
    fn room_for_a_lookup(&mut self, addr: SocketAddr) -> bool {
        let unanswered = |a: &SocketAddr, e: &Entry| *a != addr && kind(*a) == kind(addr) && e.answer.is_none();
        if self.entries.iter().filter(|(a, e)| unanswered(a, e)).count() < MAX_UNANSWERED {
            return true;
        }
        let idle = self.entries.iter().filter(|(a, e)| unanswered(a, e) && e.waiters == 0);
        let oldest = idle.min_by_key(|(_, e)| e.used).map(|(addr, _)| *addr);
        oldest.map(|addr| self.forget(addr)).is_some()
    }

    /// Makes room among those of a kind: strangers must not have the app's destinations forgotten, nor anybody what cannot be
    /// learned again now.
    fn room_to_remember(&mut self, of: usize) -> bool {
        if self.entries.keys().filter(|addr| kind(**addr) == of).count() < MAX_REMEMBERED[of] {
            return true;
        }
        if !self.up {
            return false;
        }
        let idle = self.entries.iter().filter(|(addr, entry)| kind(**addr) == of && entry.waiters == 0);
        let oldest = idle.min_by_key(|(_, entry)| entry.used).map(|(addr, _)| *addr);
        oldest.map(|addr| self.forget(addr)).is_some()
    }

    fn forget(&mut self, addr: SocketAddr) {
        self.entries.remove(&addr);
        // Beyond this the controller remembers for us what we do not want; its pushes are then not kept.
        if self.up && self.queue.len() < 2 * MAX_ENTRIES {
            self.queue.push_back(Say::Forget(addr));
        }
    }
}

/// Which of [`Cache::bounds`]: questions about a source name no port.
fn kind(addr: SocketAddr) -> usize {
    usize::from(addr.port() == 0)
}

/// What of an answer needs no fresh word of the controller: a service's meshed endpoints, whose identity TLS will prove.
fn meshed_part(who: &Who) -> Option<Who> {
    let Who::Service(service) = who else {
        return None;
    };
    let meshed = |endpoint: &&Arc<super::Endpoint>| matches!(endpoint.identity, Identity::Meshed(_));
    let endpoints: Vec<_> = service.endpoints.iter().filter(meshed).cloned().collect();
    (!endpoints.is_empty()).then(|| Who::Service(Arc::new(Service { endpoints, ..(**service).clone() })))
}

/// A token bucket.
#[derive(Debug)]
struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    fn spend(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(LOOKUPS_PER_SECOND);
        self.tokens = (self.tokens + earned).min(f64::from(LOOKUP_BURST));
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
