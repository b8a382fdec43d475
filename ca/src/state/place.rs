//! Where a state lies, sealed: read and written whole, with the record of who signs from it where replicas share it. Called by `state` alone.

use std::path::Path;
use std::sync::Arc;

use countersign_identity::TrustDomain;
use rustls_pki_types::UnixTime;

use super::{Authority, BUNDLE, Directory, Lifetimes, Replicas, StateError, StateKey, record, seal};
use crate::kubernetes::{CallError, StateSecret, Version};

pub(super) const STATE: &str = "ca.state";
const MAX_STATE: u64 = 1024 * 1024;

/// Where the sealed state lies.
pub enum Place {
    /// In a directory of this machine, which one process holds.
    Directory(Directory),
    /// In a Secret of the cluster, which replicas share.
    Secret(StateSecret),
}

/// What a place holds, both sealed.
pub(super) struct Stored {
    pub(super) sealed: Option<Vec<u8>>,
    pub(super) replicas: Option<Vec<u8>>,
    pub(super) version: Version,
}

pub(super) struct Store {
    pub(super) place: Place,
    pub(super) key: StateKey,
    pub(super) trust_domain: TrustDomain,
    pub(super) lifetimes: Lifetimes,
}

impl Store {
    /// The state; and where there is none yet, with it who signs from it.
    pub(super) async fn save(
        &self,
        authority: &Authority,
        replicas: Option<&Replicas>,
        over: &Version,
    ) -> Result<Version, StateError> {
        let plain = record::encode(authority)?;
        let sealed = self.seal(&plain)?;
        match &self.place {
            Place::Directory(directory) => {
                directory.write(STATE, &sealed, 0o600)?;
                Ok(Version::default())
            }
            Place::Secret(secret) => {
                let replicas = replicas.map(|replicas| self.seal_replicas(replicas)).transpose()?;
                let written = secret.write(&sealed, replicas.as_deref(), over).await;
                written.map_err(|source| self.place.failed(source))
            }
        }
    }

    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, StateError> {
        seal::seal(&self.key, plain).map_err(|source| StateError::Sealed { place: self.place.to_string(), source })
    }

    pub(super) fn seal_replicas(&self, replicas: &Replicas) -> Result<Vec<u8>, StateError> {
        let plain = replicas.encode().map_err(|error| StateError::Record(error.to_string()))?;
        self.seal(&plain)
    }

    /// One that cannot be read holds nobody up: it is as if there were none.
    pub(super) fn unseal_replicas(&self, sealed: Option<&[u8]>) -> Arc<Replicas> {
        let read = sealed.map(|sealed| seal::open(&self.key, sealed).ok().and_then(|plain| Replicas::decode(&plain)));
        if let Some(None) = read {
            tracing::warn!(state = %self.place, "the record of replicas cannot be read; it is written anew");
        }
        Arc::new(read.flatten().unwrap_or_default())
    }

    pub(super) fn unseal(&self, sealed: &[u8], now: UnixTime) -> Result<Authority, StateError> {
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

    pub(super) async fn read(&self) -> Result<Stored, StateError> {
        match self {
            Self::Directory(directory) => {
                Ok(Stored { sealed: directory.read(STATE, MAX_STATE)?, replicas: None, version: Version::default() })
            }
            Self::Secret(secret) => {
                let (sealed, replicas, version) = secret.read().await.map_err(|source| self.failed(source))?;
                Ok(Stored { sealed, replicas, version })
            }
        }
    }

    /// The bundle is only ever written after the state: where it is, a state was.
    pub(super) async fn check_not_lost(&self) -> Result<(), StateError> {
        let sign = match self {
            Self::Directory(directory) => directory.holds(BUNDLE).then(|| directory.path(BUNDLE).display().to_string()),
            Self::Secret(secret) => secret.sign_of_loss().await.map_err(|source| self.failed(source))?,
        };
        match sign {
            Some(sign) => Err(StateError::Lost { state: self.to_string(), sign }),
            None => Ok(()),
        }
    }

    pub(super) fn failed(&self, source: CallError) -> StateError {
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
