//! What one proxy asked for, and what is to be said to it: a pure state machine.
//!
//! `server::session` feeds it. It must never grow beyond its bounds, and never hold an answer: an answer is made when it can
//! be sent, so that a slow reader gets the newest and no queue.

use std::collections::{HashMap, HashSet, VecDeque};

use countersign_api::controller as api;
use prost::Message;
use tokio::time::Instant;

use crate::answer::{Asked, who};
use crate::digest::{Content, Digest};
use crate::index::{Index, Stamp};
use crate::server::budget::Budget;

/// Addresses followed for one proxy: twice what ours remembers, so that its `Forget`s never come too late. What is asked
/// beyond is answered and not followed.
pub const MAX_FOLLOWED: usize = 8192;
/// Lookups waiting for the reader; then no more are taken from the stream until some are sent.
pub const MAX_WAITING: usize = 1024;
/// Messages of one proxy a second, in the long run. More are not refused but taken later: the stream's flow control holds
/// them.
pub const MESSAGES_PER_SECOND: u32 = 500;
/// Messages at once after a quiet time: lookups of all that a proxy remembers, when it comes back.
pub const MESSAGE_BURST: u32 = 4096;

/// See the module.
#[derive(Debug)]
pub struct Wanted {
    followed: HashMap<Asked, Said>,
    /// To be said, oldest first.
    due: VecDeque<Asked>,
    queued: HashSet<Asked>,
    /// Of those queued: asked for, and so to be answered even if nothing changed.
    asked: HashSet<Asked>,
    budget: Budget,
}

/// What was said last about an address.
#[derive(Debug, Clone, Copy)]
struct Said {
    stamp: Stamp,
    answer: Digest,
}

/// An answer that is to be sent now.
#[derive(Debug)]
pub struct Due {
    /// The answer.
    pub answer: api::Answer,
    /// It was asked for; otherwise it changed.
    pub asked: bool,
    /// It will be followed.
    pub followed: bool,
}

impl Wanted {
    /// Nothing is wanted yet.
    pub fn new(now: Instant) -> Self {
        Wanted {
            followed: HashMap::new(),
            due: VecDeque::new(),
            queued: HashSet::new(),
            asked: HashSet::new(),
            budget: Budget::new(MESSAGES_PER_SECOND, MESSAGE_BURST, now),
        }
    }

    /// From when on the next message may be taken; `None` while too much waits for the reader.
    pub fn ready_at(&mut self, now: Instant) -> Option<Instant> {
        let room = self.asked.len() < MAX_WAITING && self.due.len() < MAX_FOLLOWED + MAX_WAITING;
        room.then(|| self.budget.ready_at(now))
    }

    /// A message was taken.
    pub fn spend(&mut self) {
        self.budget.spend();
    }

    /// A lookup: to be answered, and followed.
    pub fn ask(&mut self, asked: Asked) {
        self.asked.insert(asked);
        self.queue(asked);
    }

    /// Not wanted any more.
    pub fn forget(&mut self, asked: Asked) {
        self.followed.remove(&asked);
        self.asked.remove(&asked);
        // Stays in `due`, where it is passed over.
    }

    /// The picture changed: what is said otherwise now is to be said again.
    pub fn recheck(&mut self, index: &Index) {
        let mut changed = Vec::new();
        for (asked, said) in &mut self.followed {
            let stamp = index.stamp(asked.ip.to_canonical());
            if stamp != said.stamp {
                match digest(&who(index, *asked)) == said.answer {
                    true => said.stamp = stamp,
                    false => changed.push(*asked),
                }
            }
        }
        for asked in changed {
            self.queue(asked);
        }
    }

    /// Whether something is to be said.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// What is to be said next, made of the picture as it is now.
    pub fn next(&mut self, index: &Index) -> Option<Due> {
        while let Some(asked) = self.due.pop_front() {
            self.queued.remove(&asked);
            let was_asked = self.asked.remove(&asked);
            let before = self.followed.get(&asked);
            if !was_asked && before.is_none() {
                continue; // forgotten meanwhile
            }
            let answer = who(index, asked);
            let said = Said { stamp: index.stamp(asked.ip.to_canonical()), answer: digest(&answer) };
            let same = before.is_some_and(|before| before.answer == said.answer);
            let followed = before.is_some() || self.followed.len() < MAX_FOLLOWED;
            if followed {
                self.followed.insert(asked, said);
            }
            if was_asked || !same {
                return Some(Due { answer, asked: was_asked, followed });
            }
        }
        None
    }

    /// Addresses followed.
    pub fn followed(&self) -> usize {
        self.followed.len()
    }

    fn queue(&mut self, asked: Asked) {
        if self.queued.insert(asked) {
            self.due.push_back(asked);
        }
    }
}

fn digest(answer: &api::Answer) -> Digest {
    Content::of("answer").bytes(&answer.encode_to_vec()).finish()
}

#[cfg(test)]
mod tests;
