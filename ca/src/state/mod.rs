//! What must survive a restart: root, issuer, bundle generation. Sealed in one file of a locked directory; opened by `run`,
//! renewed by `upkeep`, read by every signature. It must never write when it could not read what is there, and never make a
//! new root where signs of an older one remain.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_identity::TrustDomain;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;

mod authority;
mod directory;
mod key;
mod record;
mod seal;
#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, BACKDATE, Lifetimes, Pair, pem};
pub(crate) use authority::{date, hex, random_serial, sha256};
pub use directory::{Directory, DirectoryError, write_whole};
pub use key::{KeyError, StateKey};
pub use seal::SealError;

/// Why the state cannot be used. Whatever it is: nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or a file in it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The seal does not open.
    #[error("{path}: {source}")]
    Sealed {
        /// The state file.
        path: PathBuf,
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
    /// The state file is gone, but the bundle made from it is there.
    #[error(
        "{state} is missing, but {sign} is there: the state was lost. Restore it, or remove {sign} to make a new root \
         that nobody trusts yet"
    )]
    Lost {
        /// The state file.
        state: PathBuf,
        /// What gives the loss away.
        sign: PathBuf,
    },
}

const STATE: &str = "ca.state";
/// Name of the public bundle (PEM) in the state directory.
pub const BUNDLE: &str = "bundle.pem";
/// Name of the audit log in the state directory.
pub const AUDIT: &str = "audit.jsonl";
const MAX_STATE: u64 = 1024 * 1024;

/// What the directory held.
pub enum Opened {
    /// A state, checked.
    Found(State),
    /// Nothing yet.
    Vacant(Vacant),
}

/// A locked directory without a state.
pub struct Vacant(Store);

/// The state in force.
pub struct State {
    store: Store,
    current: watch::Sender<Arc<Authority>>,
}

struct Store {
    directory: Directory,
    key: StateKey,
    trust_domain: TrustDomain,
    lifetimes: Lifetimes,
}

/// Locks the directory and reads what is there; writes nothing but the lock file.
pub fn open(
    path: &Path,
    key: StateKey,
    trust_domain: &TrustDomain,
    lifetimes: Lifetimes,
    now: UnixTime,
) -> Result<Opened, StateError> {
    let directory = Directory::open(path)?;
    let sealed = directory.read(STATE, MAX_STATE)?;
    let store = Store { directory, key, trust_domain: trust_domain.clone(), lifetimes };
    let Some(sealed) = sealed else {
        // The bundle is only ever written after the state: where it is, a state was.
        if store.directory.holds(BUNDLE) {
            return Err(StateError::Lost { state: store.directory.path(STATE), sign: store.directory.path(BUNDLE) });
        }
        return Ok(Opened::Vacant(Vacant(store)));
    };
    let plain = seal::open(&store.key, &sealed)
        .map_err(|source| StateError::Sealed { path: store.directory.path(STATE), source })?;
    let authority = record::decode(&plain, trust_domain, now)?;
    Ok(Opened::Found(State { store, current: watch::Sender::new(Arc::new(authority)) }))
}

impl Vacant {
    /// Makes a root and an issuer; nothing is written yet, so that the audit record can come first.
    pub fn draft(&self, now: UnixTime) -> Result<Authority, StateError> {
        Ok(Authority::create(&self.0.trust_domain, self.0.lifetimes, now)?)
    }

    /// Writes the draft and puts it in force.
    pub fn commit(self, draft: Authority) -> Result<State, StateError> {
        self.0.save(&draft)?;
        Ok(State { store: self.0, current: watch::Sender::new(Arc::new(draft)) })
    }
}

impl State {
    /// What signs now.
    pub fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.current.borrow())
    }

    /// Follows what signs and what is trusted.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Authority>> {
        self.current.subscribe()
    }

    /// A new issuer when one is due; nothing is written yet.
    pub fn draft_issuer(&self, now: UnixTime) -> Result<Option<Authority>, StateError> {
        let current = self.authority();
        if !current.issuer_due(self.store.lifetimes, now) {
            return Ok(None);
        }
        Ok(Some(current.with_new_issuer(self.store.lifetimes, now)?))
    }

    /// Writes the draft, then puts it in force. On an error the old one stays in both places.
    pub fn commit(&self, draft: Authority) -> Result<(), StateError> {
        self.store.save(&draft)?;
        self.current.send_replace(Arc::new(draft));
        Ok(())
    }
}

impl Store {
    fn save(&self, authority: &Authority) -> Result<(), StateError> {
        let plain = record::encode(authority)?;
        let sealed = seal::seal(&self.key, &plain)
            .map_err(|source| StateError::Sealed { path: self.directory.path(STATE), source })?;
        Ok(self.directory.write(STATE, &sealed, 0o600)?)
    }
}
