//! What must survive a restart: root, issuer, bundle generation. Sealed by us, in one file of a locked directory or in one
//! Secret of a cluster, which replicas share; opened by `run`, renewed by `upkeep`, read by every signature, followed by
//! `follow`. It must never write when it could not read what is there, and never make a new root where signs of an older one
//! remain.
//!
//! What the lock is for the directory, the resource version is for the Secret: a draft is written over the very version that
//! it was made from, or not at all.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::TrustDomain;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;

use crate::kubernetes::{CallError, KeySecret, KeySecretError, StateSecret, Version};

mod authority;
mod directory;
mod follow;
mod key;
mod record;
mod rotation;
mod seal;
#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, BACKDATE, Beside, Lifetimes, Pair, pem};
pub(crate) use authority::{date, hex, random_serial, sha256};
pub use directory::{Directory, DirectoryError, write_whole};
pub use follow::follow;
pub use key::{KeyError, StateKey};
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
            Self::Secret { source, .. } => source.may_pass(),
            Self::Key(error) => error.may_pass(),
            _ => false,
        }
    }
}

const STATE: &str = "ca.state";
/// Name of the public bundle (PEM) in the state directory.
pub const BUNDLE: &str = "bundle.pem";
/// Name of the audit log in the state directory.
pub const AUDIT: &str = "audit.jsonl";
const MAX_STATE: u64 = 1024 * 1024;

/// Where the sealed state lies.
pub enum Place {
    /// In a directory of this machine, which one process holds.
    Directory(Directory),
    /// In a Secret of the cluster, which replicas share.
    Secret(StateSecret),
}

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
    /// What is stored is this version; changed together with `current`, and never held over a call.
    version: Mutex<Version>,
    /// One reads or writes the place at a time, so that an older answer never comes after a newer one. Nobody who signs waits.
    turn: tokio::sync::Mutex<()>,
    problem: Mutex<Option<String>>,
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

struct Store {
    place: Place,
    key: StateKey,
    trust_domain: TrustDomain,
    lifetimes: Lifetimes,
}

/// Reads what is there; writes nothing, but for a state key that is to be made where no state is.
pub async fn open(
    place: Place,
    key: &KeySource,
    trust_domain: &TrustDomain,
    lifetimes: Lifetimes,
    now: UnixTime,
) -> Result<Opened, StateError> {
    let (sealed, version) = place.read().await?;
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
            Ok(Opened::Found(State::new(store, Arc::new(authority), version)))
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
        match self.store.save(&draft.authority, &draft.over).await {
            Ok(version) => Ok((State::new(self.store, draft.authority, version), Race::Won)),
            Err(StateError::Secret { source: CallError::Conflict, place }) => {
                let (sealed, version) = self.store.place.read().await?;
                let Some(sealed) = sealed else {
                    return Err(StateError::Secret { place, source: CallError::Conflict });
                };
                let authority = Arc::new(self.store.unseal(&sealed, now)?);
                Ok((State::new(self.store, authority, version), Race::Lost))
            }
            Err(error) => Err(error),
        }
    }
}

impl State {
    fn new(store: Store, authority: Arc<Authority>, version: Version) -> Self {
        Self {
            store,
            current: watch::Sender::new(authority),
            version: Mutex::new(version),
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
        match self.store.save(&draft.authority, &draft.over).await {
            Ok(version) => {
                self.put_in_force(draft.authority, version);
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
        let (sealed, over) = self.store.place.read().await?;
        if sealed.is_some() {
            return Ok(());
        }
        let version = self.store.save(&self.authority(), &over).await?;
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
        Ok(())
    }

    async fn adopt(&self, now: UnixTime) -> Result<bool, StateError> {
        let (sealed, version) = self.store.place.read().await?;
        let (current, held) = self.snapshot();
        if version == held {
            return Ok(false);
        }
        let sealed = sealed.ok_or_else(|| StateError::Gone(self.place()))?;
        let stored = self.store.unseal(&sealed, now)?;
        if let Some(problem) = current.why_not_next(&stored) {
            return Err(StateError::NotNext { place: self.place(), problem });
        }
        if current.is_same(&stored) {
            // Somebody wrote a label.
            *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
            return Ok(false);
        }
        self.put_in_force(Arc::new(stored), version);
        Ok(true)
    }

    fn put_in_force(&self, authority: Arc<Authority>, version: Version) {
        let mut held = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        *held = version;
        self.current.send_replace(authority);
    }

    fn snapshot(&self) -> (Arc<Authority>, Version) {
        let held = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        (self.authority(), held.clone())
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
}

impl std::ops::Deref for Draft {
    type Target = Authority;

    fn deref(&self) -> &Authority {
        &self.authority
    }
}

impl Store {
    async fn save(&self, authority: &Authority, over: &Version) -> Result<Version, StateError> {
        let plain = record::encode(authority)?;
        let sealed = seal::seal(&self.key, &plain)
            .map_err(|source| StateError::Sealed { place: self.place.to_string(), source })?;
        match &self.place {
            Place::Directory(directory) => {
                directory.write(STATE, &sealed, 0o600)?;
                Ok(Version::default())
            }
            Place::Secret(secret) => secret.write(&sealed, over).await.map_err(|source| self.place.failed(source)),
        }
    }

    fn unseal(&self, sealed: &[u8], now: UnixTime) -> Result<Authority, StateError> {
        let plain = seal::open(&self.key, sealed)
            .map_err(|source| StateError::Sealed { place: self.place.to_string(), source })?;
        record::decode(&plain, &self.trust_domain, now)
    }
}

impl Place {
    /// A directory, locked; made if it is missing.
    pub fn directory(path: &Path) -> Result<Self, StateError> {
        Ok(Self::Directory(Directory::open(path)?))
    }

    async fn read(&self) -> Result<(Option<Vec<u8>>, Version), StateError> {
        match self {
            Self::Directory(directory) => Ok((directory.read(STATE, MAX_STATE)?, Version::default())),
            Self::Secret(secret) => secret.read().await.map_err(|source| self.failed(source)),
        }
    }

    /// The bundle is only ever written after the state: where it is, a state was.
    async fn check_not_lost(&self) -> Result<(), StateError> {
        let sign = match self {
            Self::Directory(directory) => directory.holds(BUNDLE).then(|| directory.path(BUNDLE).display().to_string()),
            Self::Secret(secret) => secret.sign_of_loss().await.map_err(|source| self.failed(source))?,
        };
        match sign {
            Some(sign) => Err(StateError::Lost { state: self.to_string(), sign }),
            None => Ok(()),
        }
    }

    fn failed(&self, source: CallError) -> StateError {
        StateError::Secret { place: self.to_string(), source }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "{}", directory.path(STATE).display()),
            Self::Secret(secret) => write!(f, "{secret}"),
        }
    }
}
