//! What must survive a restart: root, issuer, bundle generation. Sealed by us, in one file of a locked directory or in one
//! Secret of a cluster, which replicas share; opened by `run`, renewed by `upkeep`, read by every signature, followed by
//! `follow`. It must never write when it could not read what is there, and never make a new root where signs of an older one
//! remain.
//!
//! What the lock is for the directory, the resource version is for the Secret: a draft is written over the very version that
//! it was made from, or not at all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_identity::TrustDomain;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;

use place::{Store, Stored};

use crate::kubernetes::{CallError, KeySecret, KeySecretError, Version};

mod authority;
mod directory;
mod follow;
mod key;
mod place;
mod record;
mod replicas;
mod rotation;
mod seal;
#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, BACKDATE, Beside, Lifetimes, Pair, pem};
pub(crate) use authority::{date, hex, random_name, random_serial, sha256};
pub use directory::{Directory, DirectoryError, write_whole};
pub use follow::follow;
pub use key::{KeyError, StateKey};
pub use place::Place;
pub use replicas::{MAX_REPLICAS, Replica, Replicas};
pub use rotation::{Passed, RootName, Rotation, Stage, StepError};
pub use seal::SealError;

/// Why the state cannot be used. Whatever it is: nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or a file in it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The Secret.
    #[error("{place}: {source}")]
    Secret {
        /// Which.
        place: String,
        /// What came of the call.
        source: CallError,
    },
    /// The Secret that holds the state key.
    #[error(transparent)]
    Key(#[from] KeySecretError),
    /// The state that is stored is not one that may follow the one in force.
    #[error("{place} holds {problem}; what is in force stays")]
    NotNext {
        /// File or Secret.
        place: String,
        /// What it holds.
        problem: String,
    },
    /// The state was there, and is gone while it is in force.
    #[error("{0} is gone; what is in force stays")]
    Gone(String),
    /// The seal does not open.
    #[error("{place}: {source}")]
    Sealed {
        /// File or Secret.
        place: String,
        /// Why.
        source: SealError,
    },
    /// The seal opened, but the content is not a state.
    #[error("the state's content does not parse ({0})")]
    Record(String),
    /// The state belongs to another trust domain.
    #[error("the state is of trust domain {stored}, but {configured} is configured")]
    TrustDomain {
        /// What the state says.
        stored: String,
        /// What the configuration says.
        configured: String,
    },
    /// Root or issuer cannot be used or made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The state is gone, but the bundle made from it is there.
    #[error(
        "{state} is missing, but {sign} is there: the state was lost. Restore it, or remove {sign} to make a new root \
         that nobody trusts yet"
    )]
    Lost {
        /// The state.
        state: String,
        /// What gives the loss away.
        sign: String,
    },
}

impl StateError {
    /// True if it may be otherwise in a while, with nothing done here.
    pub fn may_pass(&self) -> bool {
        match self {
            // Others write as well: as at the start of many replicas at once.
            Self::Secret { source, .. } => source.may_pass() || *source == CallError::Conflict,
            Self::Key(error) => error.may_pass(),
            _ => false,
        }
    }
}

/// Name of the public bundle (PEM) in the state directory.
pub const BUNDLE: &str = "bundle.pem";
/// Name of the audit log in the state directory.
pub const AUDIT: &str = "audit.jsonl";
/// So often the record of replicas is written anew when others have written.
pub(crate) const TRIES: usize = 5;

/// Where the state key comes from.
#[derive(Clone)]
pub enum KeySource {
    /// It was given.
    Given(StateKey),
    /// It lies in a Secret, and is made there if there is no state yet.
    Secret(KeySecret),
}

/// What the place held.
pub enum Opened {
    /// A state, checked.
    Found(State),
    /// Nothing yet.
    Vacant(Vacant),
}

/// A place without a state.
pub struct Vacant {
    store: Store,
    over: Version,
}

/// The state in force.
pub struct State {
    store: Store,
    current: watch::Sender<Arc<Authority>>,
    /// What is stored; changed together with `current`, and never held over a call.
    held: Mutex<Held>,
    /// One reads or writes the place at a time, so that an older answer never comes after a newer one. Nobody who signs waits.
    turn: tokio::sync::Mutex<()>,
    problem: Mutex<Option<String>>,
}

/// What is in force, as it was stored.
#[derive(Default)]
struct Held {
    version: Version,
    replicas: Arc<Replicas>,
}

/// All that was in force at one moment, of one version.
#[derive(Clone)]
pub struct Seen {
    /// What signs.
    pub authority: Arc<Authority>,
    /// Who signs.
    pub replicas: Arc<Replicas>,
    version: Version,
}

/// A state that is not in force yet, and the version that it may be written over.
pub struct Draft {
    authority: Arc<Authority>,
    /// What it was made of. In a directory the version tells nothing: there one process writes, and this tells its writes apart.
    of: Option<Arc<Authority>>,
    over: Version,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Race {
    /// The draft is stored and in force.
    Won,
    /// Somebody else's state was stored first, and is in force; the draft is nothing.
    Lost,
}

/// Reads what is there; writes nothing, but for a state key that is to be made where no state is.
pub async fn open(
    place: Place,
    key: &KeySource,
    trust_domain: &TrustDomain,
    lifetimes: Lifetimes,
    now: UnixTime,
) -> Result<Opened, StateError> {
    let Stored { sealed, replicas, version } = place.read().await?;
    if sealed.is_none() {
        place.check_not_lost().await?;
    }
    let key = match key {
        KeySource::Given(key) => key.clone(),
        KeySource::Secret(secret) => secret.obtain(sealed.is_none()).await?,
    };
    let store = Store { place, key, trust_domain: trust_domain.clone(), lifetimes };
    match sealed {
        Some(sealed) => {
            let authority = store.unseal(&sealed, now)?;
            let replicas = store.unseal_replicas(replicas.as_deref());
            Ok(Opened::Found(State::new(store, Arc::new(authority), Held { version, replicas })))
        }
        None => Ok(Opened::Vacant(Vacant { store, over: version })),
    }
}

impl Vacant {
    /// Makes a root and an issuer; nothing is written yet, so that the audit record can come first.
    pub fn draft(&self, now: UnixTime) -> Result<Draft, StateError> {
        let authority = Authority::create(&self.store.trust_domain, self.store.lifetimes, now)?;
        Ok(Draft { authority: Arc::new(authority), of: None, over: self.over.clone() })
    }

    /// Writes the draft and puts it in force; or what somebody else has put there meanwhile.
    pub async fn commit(self, draft: Draft, now: UnixTime) -> Result<(State, Race), StateError> {
        let replicas = Arc::new(Replicas::first());
        match self.store.save(&draft.authority, Some(&replicas), &draft.over).await {
            Ok(version) => Ok((State::new(self.store, draft.authority, Held { version, replicas }), Race::Won)),
            Err(StateError::Secret { source: CallError::Conflict, place }) => {
                let Stored { sealed, replicas, version } = self.store.place.read().await?;
                let Some(sealed) = sealed else {
                    return Err(StateError::Secret { place, source: CallError::Conflict });
                };
                let authority = Arc::new(self.store.unseal(&sealed, now)?);
                let replicas = self.store.unseal_replicas(replicas.as_deref());
                Ok((State::new(self.store, authority, Held { version, replicas }), Race::Lost))
            }
            Err(error) => Err(error),
        }
    }
}

impl State {
    fn new(store: Store, authority: Arc<Authority>, held: Held) -> Self {
        Self {
            store,
            current: watch::Sender::new(authority),
            held: Mutex::new(held),
            turn: tokio::sync::Mutex::new(()),
            problem: Mutex::new(None),
        }
    }

    /// What signs now.
    pub fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.current.borrow())
    }

    /// Follows what signs and what is trusted.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Authority>> {
        self.current.subscribe()
    }

    /// Where the state lies, in words.
    pub fn place(&self) -> String {
        self.store.place.to_string()
    }

    /// Why it is not known that what is in force is what is stored.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A new issuer when one is due; nothing is written yet.
    pub fn draft_issuer(&self, now: UnixTime) -> Result<Option<Draft>, StateError> {
        let (current, over) = self.snapshot();
        if !current.issuer_due(self.store.lifetimes, now) {
            return Ok(None);
        }
        let authority = current.with_new_issuer(self.store.lifetimes, now)?;
        Ok(Some(Draft { authority: Arc::new(authority), of: Some(current), over }))
    }

    /// Whatever `change` makes of what is in force, as a draft over exactly that; nothing is written yet.
    pub fn draft<E>(&self, change: impl FnOnce(&Authority) -> Result<Authority, E>) -> Result<Draft, E> {
        let (current, over) = self.snapshot();
        Ok(Draft { authority: Arc::new(change(&current)?), of: Some(current), over })
    }

    /// True if other processes may sign from the same state.
    pub fn is_shared(&self) -> bool {
        matches!(self.store.place, Place::Secret(_))
    }

    /// How long root, issuer and leaves live.
    pub fn lifetimes(&self) -> Lifetimes {
        self.store.lifetimes
    }

    /// Writes the draft, then puts it in force. On an error the old one stays in both places. If somebody else has written
    /// since the draft was begun, theirs is in force afterwards, and the draft is nothing.
    pub async fn commit(&self, draft: Draft, now: UnixTime) -> Result<Race, StateError> {
        let _turn = self.turn.lock().await;
        let (current, over) = self.snapshot();
        if draft.over != over || draft.of.as_ref().is_some_and(|of| !Arc::ptr_eq(of, &current)) {
            return Ok(Race::Lost);
        }
        match self.store.save(&draft.authority, None, &draft.over).await {
            Ok(version) => {
                let replicas = self.seen().replicas;
                self.put_in_force(draft.authority, Held { version, replicas });
                Ok(Race::Won)
            }
            Err(StateError::Secret { source: CallError::Conflict, .. }) => {
                self.adopt(now).await?;
                Ok(Race::Lost)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads what is stored, and puts it in force if it is newer. True: something else is in force now.
    pub async fn refresh(&self, now: UnixTime) -> Result<bool, StateError> {
        let _turn = self.turn.lock().await;
        self.adopt(now).await
    }

    /// Stores what is in force once more, where nothing is stored any longer.
    async fn put_back(&self) -> Result<(), StateError> {
        let _turn = self.turn.lock().await;
        let Stored { sealed, version: over, .. } = self.store.place.read().await?;
        if sealed.is_some() {
            return Ok(());
        }
        let Seen { authority, replicas, .. } = self.seen();
        let version = self.store.save(&authority, Some(&replicas), &over).await?;
        self.held().version = version;
        Ok(())
    }

    async fn adopt(&self, now: UnixTime) -> Result<bool, StateError> {
        let Stored { sealed, replicas, version } = self.store.place.read().await?;
        let (current, held) = self.snapshot();
        if version == held {
            return Ok(false);
        }
        let sealed = sealed.ok_or_else(|| StateError::Gone(self.place()))?;
        let stored = self.store.unseal(&sealed, now)?;
        if let Some(problem) = current.why_not_next(&stored) {
            return Err(StateError::NotNext { place: self.place(), problem });
        }
        let replicas = self.store.unseal_replicas(replicas.as_deref());
        if current.is_same(&stored) {
            // Somebody wrote a label, or another replica came.
            let mut held = self.held();
            (held.version, held.replicas) = (version, replicas);
            return Ok(false);
        }
        self.put_in_force(Arc::new(stored), Held { version, replicas });
        Ok(true)
    }

    /// All that is in force, of one version.
    pub fn seen(&self) -> Seen {
        let held = self.held();
        let (version, replicas) = (held.version.clone(), Arc::clone(&held.replicas));
        Seen { authority: self.authority(), replicas, version }
    }

    /// Writes what `change` makes of the record of replicas over the very version that it was made from, and reads anew where somebody else has
    /// written meanwhile. `None`: there is nothing to write. A state of our own has no such record.
    pub async fn change_replicas(
        &self,
        now: UnixTime,
        change: impl Fn(&Replicas) -> Option<Replicas>,
    ) -> Result<(), StateError> {
        let Place::Secret(secret) = &self.store.place else { return Ok(()) };
        let _turn = self.turn.lock().await;
        for _ in 0..TRIES {
            let seen = self.seen();
            let Some(next) = change(&seen.replicas) else { return Ok(()) };
            let sealed = self.store.seal_replicas(&next)?;
            match secret.write_replicas(&sealed, &seen.version).await {
                Ok(version) => {
                    let mut held = self.held();
                    (held.version, held.replicas) = (version, Arc::new(next));
                    return Ok(());
                }
                Err(CallError::Conflict) => drop(self.adopt(now).await?),
                Err(source) => return Err(self.store.place.failed(source)),
            }
        }
        Err(self.store.place.failed(CallError::Conflict))
    }

    fn put_in_force(&self, authority: Arc<Authority>, now: Held) {
        let mut held = self.held();
        *held = now;
        self.current.send_replace(authority);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> (Arc<Authority>, Version) {
        let Seen { authority, version, .. } = self.seen();
        (authority, version)
    }
}

#[cfg(test)]
impl State {
    /// Any authority as a draft over what is in force.
    pub(crate) fn draft_for_test(&self, authority: Authority) -> Draft {
        Draft { authority: Arc::new(authority), of: None, over: self.snapshot().1 }
    }
}

impl Draft {
    /// Root and issuer that were made, for the record of what became of them.
    pub fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority)
    }

    /// True if it was made of exactly that.
    pub fn is_of(&self, seen: &Seen) -> bool {
        self.over == seen.version && self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &seen.authority))
    }
}

impl std::ops::Deref for Draft {
    type Target = Authority;

    fn deref(&self) -> &Authority {
        &self.authority
    }
}
