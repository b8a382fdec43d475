//! Replicas that sign from one state, and what they know together. Before a replica signs its first leaf it puts itself in the record beside the
//! state ([`Siblings::register`]); whoever is asked how far a rotation is asks all who are in it ([`Siblings::gather`]), since each knows only whom
//! it has signed for or heard. Called by `rotation`; `run` starts it.
//!
//! Nobody with a living leaf may be missed when a gate opens by reports (decision 0017 says why nobody is): where a sibling does not answer, is
//! of another stage, or may be in no record, that is said in [`Known::waits`]. Every question is bounded in time and size, and none is asked
//! under a lock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use countersign_api::ca::siblings_client::SiblingsClient;
use countersign_api::ca::{HoldersRequest, ReplicaFacts};
use countersign_credentials::{ChannelSettings, SharedClock, TlsAs, channel, reason};
use tokio::task::JoinSet;
use tonic::transport::Channel;

mod merge;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

pub use merge::merge;
pub use serve::Answers;

use crate::holders::{Holder, Holders, MAX_PODS};
use crate::own::Own;
use crate::state::{Authority, AuthorityError, Replica, Replicas, Seen, State, StateError, random_name};

/// A sibling that has not told its whole table after this does not answer.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// How often it is looked whether this replica is in the record.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// So often all siblings are asked whether they are there, in seconds.
const PROBE: u64 = 30;
/// A sibling that was not heard for so long is asked in the record whether it lives. Seconds.
const UNHEARD: u64 = 3 * PROBE;
/// Whoever was taken out of the record and lives has put itself in again after this, in seconds: it follows the Secret.
const BACK: u64 = 60;
/// Between that question and the last leaf of one that never answered it: it would have followed the Secret, by a clock that may be another. Seconds.
const ANSWERS: u64 = 2 * BACK;
/// Clocks of two replicas that differ by more make times of the record worth nothing. A question may be under way for 3 s of it.
const CLOCKS: u64 = 6;

/// What all replicas know together.
pub struct Known {
    /// When it was asked for, seconds since 1970: nothing of it is older.
    pub at: u64,
    /// Everybody with a living leaf, as far as told.
    pub holders: Vec<Holder>,
    /// Whoever got a leaf after that is among them, if nothing is waited for, seconds since 1970; `None`: never known.
    pub complete_since: Option<u64>,
    /// Since when the last of them signs by what is in force, seconds since 1970; 0: since their starts.
    pub in_force_since: u64,
    /// What else there is to wait for before all is known.
    pub waits: Vec<String>,
    /// Who was asked; empty where a CA is alone.
    pub replicas: Vec<Told>,
}

/// A replica, and what came of asking it.
pub struct Told {
    /// As it is in the record.
    pub replica: Replica,
    /// Why it told nothing, if so.
    pub silent: Option<String>,
}

/// What a sibling said.
struct Table {
    facts: ReplicaFacts,
    /// How far our clock is ahead of its, in seconds.
    ahead: i64,
    holders: Vec<Holder>,
}

/// Why a sibling said nothing.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("it gave no address")]
    NoAddress,
    #[error("no answer within {} s", ASK_LIMIT.as_secs())]
    Late,
    #[error("{0}")]
    Call(String),
    #[error("another replica is at its address")]
    Other,
    #[error("what it says is no table")]
    Malformed,
}

/// What is remembered of a sibling.
struct Memory {
    channel: Channel,
    /// When it was last heard, or first looked for, seconds since 1970.
    heard: u64,
}

/// One for the process.
pub struct Siblings {
    state: Arc<State>,
    holders: Arc<Holders>,
    own: Arc<Own>,
    clock: SharedClock,
    /// The longest life of a leaf in seconds, where the state does not say what was given.
    max_leaf: u64,
    me: OnceLock<Replica>,
    memory: Mutex<HashMap<String, Memory>>,
    /// What is in force here, and since when at the latest, seconds since 1970; 0: since the start.
    in_force: Mutex<(Arc<Authority>, u64)>,
}

impl Siblings {
    /// In no record yet.
    pub fn new(
        state: Arc<State>,
        holders: Arc<Holders>,
        own: Arc<Own>,
        clock: SharedClock,
        max_leaf: Duration,
    ) -> Self {
        let (max_leaf, memory) = (max_leaf.as_secs(), Mutex::default());
        let in_force = Mutex::new((state.authority(), 0));
        Self { state, holders, own, clock, max_leaf, me: OnceLock::new(), memory, in_force }
    }

    /// Puts this replica in the record, where there is one. `address`: where siblings can ask it.
    ///
    /// # Errors
    /// Why it is not there; nothing may be signed then.
    pub async fn register(&self, address: Option<SocketAddr>) -> Result<(), StateError> {
        let now = self.clock.now().as_secs();
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        let failed = |reason: &str| AuthorityError::Make { what: "name of this replica", reason: reason.to_owned() };
        let id = random_name::<8>().map_err(failed)?;
        self.me.get_or_init(|| Replica { id, address, since: now, doubted_at: 0 });
        self.keep_registered().await
    }

    /// Whoever was taken out, since nobody could reach it, puts itself in again; and who is asked there whether it lives answers.
    async fn keep_registered(&self) -> Result<(), StateError> {
        let Some(me) = self.me.get() else { return Ok(()) };
        let now = self.clock.now();
        let missing = self.state.change_replicas(now, |all| (!all.has(me)).then(|| all.with(me, now.as_secs())));
        missing.await
    }

    /// Stays in the record, and takes out of it who did not say for as long as a leaf lives that it does, too. Never ends.
    pub async fn run(self: Arc<Self>) {
        if !self.state.is_shared() {
            return std::future::pending().await;
        }
        let (mut probed, mut told) = (0, String::new());
        loop {
            self.in_force_since(&self.state.authority());
            let kept = self.keep_registered().await;
            let now = self.clock.now().as_secs();
            let looked = match now >= probed + PROBE || now < probed {
                true => {
                    probed = now;
                    self.probe().await
                }
                false => Ok(()),
            };
            let text = kept.and(looked).err().map(|error| error.to_string()).unwrap_or_default();
            if text != told && !text.is_empty() {
                tracing::error!(error = text, "the record of replicas could not be written; trying again");
            }
            let pause = if text.is_empty() { LOOK } else { AFTER_FAILURE };
            told = text;
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks who is there. That we cannot reach one does not say that it is dead: it may sign until it dies. So it is asked in the record, which it
    /// follows if it lives, and from then on a leaf's life must pass.
    async fn probe(self: &Arc<Self>) -> Result<(), StateError> {
        let seen = self.state.seen();
        let answers = self.ask_all(&seen, true).await;
        let now = self.clock.now();
        for (replica, answer) in answers {
            if answer.is_ok() {
                continue;
            }
            if replica.doubted_at == 0 && self.unheard(&replica, now.as_secs()) {
                let doubted = |all: &Replicas| all.has(&replica).then(|| all.doubting(&replica.id, now.as_secs()));
                self.state.change_replicas(now, doubted).await?;
                // One that lives and is out of reach is not asked at every turn.
                self.lock().entry(replica.id.clone()).and_modify(|memory| memory.heard = now.as_secs());
            } else if replica.doubted_at > 0 && self.forgotten_in(&replica, &seen.authority, now.as_secs()) == 0 {
                tracing::info!(
                    replica = replica.id,
                    address = replica.address,
                    "a replica that is gone leaves the record"
                );
                let gone = |all: &Replicas| all.has(&replica).then(|| all.without(&replica.id, now.as_secs()));
                self.state.change_replicas(now, gone).await?;
            }
        }
        Ok(())
    }

    /// What is known together: this replica's table, and those of all who are in the record and answer in time.
    pub async fn gather(self: &Arc<Self>, seen: &Seen) -> Known {
        // What is in force comes before the table, as in what a sibling is answered.
        let mut known = self.alone(seen);
        if !self.state.is_shared() {
            return known;
        }
        let now = known.at;
        let mark = mark(&seen.authority);
        match self.me.get().filter(|me| seen.replicas.has(me)) {
            Some(me) => known.replicas.push(Told { replica: me.clone(), silent: None }),
            None => known.waits.push("this replica is not in the record of replicas yet".to_owned()),
        }
        let back = seen.replicas.removed_at().saturating_add(BACK);
        if seen.replicas.removed_at() > 0 && now < back {
            known.waits.push(format!("a replica left the record: if it lives it is there again in {} s", back - now));
        }
        let mut tables = vec![std::mem::take(&mut known.holders)];
        for (replica, answer) in self.ask_all(seen, false).await {
            let silent = match answer {
                Ok(Table { facts, ahead, holders }) => {
                    tables.push(holders);
                    if ahead.unsigned_abs() > CLOCKS {
                        let name = name(&replica);
                        known.waits.push(format!(
                            "the clock of replica {name} differs from this one's by {} s",
                            ahead.unsigned_abs()
                        ));
                    }
                    known.complete_since = known.complete_since.map(|since| since.max(facts.complete_since));
                    known.in_force_since = known.in_force_since.max(facts.in_force_since);
                    let same = mark == (facts.bundle_generation, facts.rotation_id.as_str(), facts.stages);
                    if !same {
                        let name = name(&replica);
                        known.waits.push(format!("replica {name} has another stage in force than this one"));
                    }
                    None
                }
                Err(error) => {
                    let left = self.forgotten_in(&replica, &seen.authority, now);
                    known.waits.push(format!(
                        "replica {} does not answer ({error}): whom it signed for is unknown until it has not said that it \
                         lives for as long as a leaf does, {left} s more",
                        name(&replica)
                    ));
                    Some(error.to_string())
                }
            };
            known.replicas.push(Told { replica, silent });
        }
        known.holders = merge(tables);
        known
    }

    /// What this replica knows by itself.
    pub fn alone(&self, seen: &Seen) -> Known {
        let at = self.clock.now().as_secs();
        let in_force_since = if self.state.is_shared() { self.in_force_since(&seen.authority) } else { 0 };
        let own = self.holders.complete_since();
        let complete_since = match self.state.is_shared() {
            true => seen.replicas.known_from().map(|since| since.max(own)),
            false => Some(own),
        };
        let holders = self.holders.living(at);
        Known { at, holders, complete_since, in_force_since, waits: Vec::new(), replicas: Vec::new() }
    }

    /// Since when this replica signs by that: as it was noticed, so a little later than it was. Calls that were under way then may bring leaves of
    /// before that into the table for as long as a call may last.
    fn in_force_since(&self, authority: &Arc<Authority>) -> u64 {
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&in_force.0, authority) {
            // The second that has begun.
            *in_force = (Arc::clone(authority), self.clock.now().as_secs() + 1);
        }
        in_force.1
    }

    /// What this replica says of itself.
    fn facts(&self) -> Option<ReplicaFacts> {
        let (me, seen) = (self.me.get()?, self.state.seen());
        let (bundle_generation, rotation_id, stages) = mark(&seen.authority);
        Some(ReplicaFacts {
            id: me.id.clone(),
            now: self.clock.now().as_secs(),
            complete_since: self.holders.complete_since(),
            bundle_generation,
            rotation_id: rotation_id.to_owned(),
            stages,
            in_force_since: self.in_force_since(&seen.authority),
        })
    }

    /// All siblings at once, each for [`ASK_LIMIT`], in the record's order.
    async fn ask_all(self: &Arc<Self>, seen: &Seen, presence_only: bool) -> Vec<(Replica, Result<Table, AskError>)> {
        let mine = self.me.get().map(|me| me.id.as_str());
        let others: Vec<_> = seen.replicas.all().iter().filter(|one| Some(one.id.as_str()) != mine).cloned().collect();
        self.lock().retain(|id, _| others.iter().any(|other| other.id == *id));
        let mut asked = JoinSet::new();
        for (at, replica) in others.iter().cloned().enumerate() {
            let us = Arc::clone(self);
            asked.spawn(async move {
                let answer = tokio::time::timeout(ASK_LIMIT, us.ask(&replica, presence_only)).await;
                (at, answer.unwrap_or(Err(AskError::Late)))
            });
        }
        let mut answers: Vec<_> = others.into_iter().map(|replica| (replica, Err(AskError::Late))).collect();
        while let Some(ended) = asked.join_next().await {
            if let Ok((at, answer)) = ended {
                answers[at].1 = answer;
            }
        }
        answers
    }

    async fn ask(&self, replica: &Replica, presence_only: bool) -> Result<Table, AskError> {
        let channel = self.channel(replica);
        if replica.address.is_empty() {
            return Err(AskError::NoAddress);
        }
        let table = match self.call(channel.clone(), presence_only).await {
            // A kept connection ends with each new SVID of ours or theirs, and tells so to whoever comes next.
            Err(AskError::Call(_)) => self.call(channel, presence_only).await?,
            table => table?,
        };
        if table.facts.id != replica.id {
            return Err(AskError::Other);
        }
        let now = self.clock.now().as_secs();
        self.lock().entry(replica.id.clone()).and_modify(|memory| memory.heard = now);
        Ok(table)
    }

    async fn call(&self, channel: Channel, presence_only: bool) -> Result<Table, AskError> {
        let failed = |status: tonic::Status| AskError::Call(reason(&status));
        let mut client = SiblingsClient::new(channel);
        let mut pages = client.holders(HoldersRequest { presence_only }).await.map_err(failed)?.into_inner();
        let first = pages.message().await.map_err(failed)?.and_then(|page| page.replica);
        let mut facts = first.ok_or(AskError::Malformed)?;
        let now = i64::try_from(self.clock.now().as_secs()).unwrap_or(i64::MAX);
        let ahead = now.saturating_sub_unsigned(facts.now);
        facts.in_force_since = wire::ours(facts.in_force_since, ahead);
        facts.complete_since = wire::ours(facts.complete_since, ahead);
        let mut holders = Vec::new();
        while let Some(page) = pages.message().await.map_err(failed)? {
            if holders.len() + page.holders.len() > MAX_PODS {
                return Err(AskError::Malformed);
            }
            for holder in page.holders {
                holders.push(wire::heard(holder, ahead).ok_or(AskError::Malformed)?);
            }
        }
        Ok(Table { facts, ahead, holders })
    }

    /// A connection that is kept, and made when it is first used: as the CA, to the CA.
    fn channel(&self, replica: &Replica) -> Channel {
        let now = self.clock.now().as_secs();
        let mut memory = self.lock();
        let entry = memory.entry(replica.id.clone()).or_insert_with(|| Memory {
            channel: channel(ChannelSettings {
                address: replica.address.clone(),
                expected: self.own.id().clone(),
                tls: TlsAs::Ourselves(self.own.subscribe()),
                mark: None,
            }),
            heard: now,
        });
        entry.channel.clone()
    }

    /// Seconds until no leaf of a silent sibling can live any more.
    fn forgotten_in(&self, replica: &Replica, authority: &Authority, now: u64) -> u64 {
        let life = authority.longest_leaf().unwrap_or(self.max_leaf);
        let asked = match replica.doubted_at {
            0 => self.heard(replica, now).saturating_add(UNHEARD),
            at => at,
        };
        asked.saturating_add(ANSWERS).saturating_add(life).saturating_sub(now)
    }

    fn unheard(&self, replica: &Replica, now: u64) -> bool {
        now >= self.heard(replica, now).saturating_add(UNHEARD)
    }

    /// When it was last heard, asked, or first looked for.
    fn heard(&self, replica: &Replica, now: u64) -> u64 {
        self.lock().get(&replica.id).map_or(now, |memory| memory.heard)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells one stage of one rotation from all others.
fn mark(authority: &Authority) -> (u64, &str, u32) {
    let rotation = authority.rotation();
    let stages = rotation.map_or(0, |rotation| rotation.passed.len());
    (
        authority.generation(),
        rotation.map_or("", |rotation| rotation.id.as_str()),
        u32::try_from(stages).unwrap_or(u32::MAX),
    )
}

fn name(replica: &Replica) -> String {
    match replica.address.as_str() {
        "" => replica.id.clone(),
        address => format!("{} ({address})", replica.id),
    }
}
