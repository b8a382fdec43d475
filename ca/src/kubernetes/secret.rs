//! The two Secrets of the CA: the sealed state, and the key that seals it. Called by `state` alone.
//!
//! Each is written over the very resource version that was read, or made where there was none: never over what somebody else
//! wrote meanwhile. The key is written once and never again.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::names;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{GetParams, Patch, PatchParams};
use kube::core::Request;
use serde_json::json;
use tokio_stream::Stream;
use zeroize::{Zeroize as _, Zeroizing};

use super::watch::pings;
use super::{CALL_LIMIT, CallError, Cluster};
use crate::state::{KeyError, StateKey, random_name};

const NO_RANDOM: &str = "no random numbers";

/// Which content a Secret had; `None`: there was no Secret. Only compared and given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version(Option<String>);

/// One value of one Secret in our own namespace.
#[derive(Clone)]
struct Value {
    cluster: Cluster,
    name: String,
    key: &'static str,
}

/// The Secret with the sealed state.
pub struct StateSecret(Value);

/// The Secret with the state key.
#[derive(Clone)]
pub struct KeySecret(Value);

/// Why there is no state key. What is said never holds a part of it.
#[derive(Debug, thiserror::Error)]
pub enum KeySecretError {
    /// The call failed.
    #[error("Secret {name}: {source}")]
    Call {
        /// Which.
        name: String,
        /// What came of the call.
        source: CallError,
    },
    /// A state is there, and no key.
    #[error(
        "Secret {0} holds no state key, but there is a state that was sealed with one: restore the key's Secret; a new key \
         would not open the state"
    )]
    Missing(String),
    /// The Secret holds something else.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No random numbers.
    #[error("{NO_RANDOM}")]
    Random,
}

impl KeySecretError {
    /// True if time may mend it.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Call { source, .. } if source.may_pass() || *source == CallError::Conflict)
    }
}

impl StateSecret {
    /// The Secret `name`; nothing is asked yet.
    pub fn new(cluster: Cluster, name: String) -> Self {
        Self(Value { cluster, name, key: names::CA_STATE_KEY })
    }

    /// The sealed state, if there is one; the sealed record of replicas beside it, if there is one; and the version that both are.
    pub async fn read(&self) -> Result<(Option<Vec<u8>>, Option<Vec<u8>>, Version), CallError> {
        self.0.read_beside(Some(names::CA_REPLICAS_KEY)).await
    }

    /// Writes the state, and the record where one is given, over that version. [`CallError::Conflict`]: that is no longer what is there.
    pub async fn write(&self, state: &[u8], replicas: Option<&[u8]>, over: &Version) -> Result<Version, CallError> {
        let replicas = replicas.map(|replicas| (names::CA_REPLICAS_KEY, replicas));
        self.0.write_all([(self.0.key, state)].into_iter().chain(replicas), over).await
    }

    /// Writes the record of replicas over that version, and leaves the state as it is.
    pub async fn write_replicas(&self, sealed: &[u8], over: &Version) -> Result<Version, CallError> {
        self.0.write_all([(names::CA_REPLICAS_KEY, sealed)].into_iter(), over).await
    }

    /// The public bundle in our own namespace: where it is, a state was.
    pub async fn sign_of_loss(&self) -> Result<Option<String>, CallError> {
        let (cluster, name) = (&self.0.cluster, names::BUNDLE_CONFIG_MAP);
        let request = Request::new(path(cluster, "configmaps")).get(name, &GetParams::default());
        match cluster.ask::<ConfigMap>(request, CALL_LIMIT).await {
            Ok(map) if map.data.as_ref().is_some_and(|data| data.contains_key(names::BUNDLE_KEY)) => {
                Ok(Some(format!("ConfigMap {}/{name}", cluster.namespace())))
            }
            Ok(_) | Err(CallError::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says each time that it may have changed, and each time that this could not be seen.
    pub fn pings(&self) -> impl Stream<Item = Result<(), CallError>> + Send + use<> {
        let Value { cluster, name, .. } = &self.0;
        let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        pings(api, name)
    }
}

impl fmt::Display for StateSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {}", self.0)
    }
}

impl KeySecret {
    /// The Secret `name`; nothing is asked yet.
    pub fn new(cluster: Cluster, name: String) -> Self {
        Self(Value { cluster, name, key: names::CA_KEY_KEY })
    }

    /// The state key. If there is none it is made, 32 random bytes, when `may_make`: when there is no state that an earlier
    /// one sealed. Whoever makes it first, all get that one.
    pub async fn obtain(&self, may_make: bool) -> Result<StateKey, KeySecretError> {
        let failed = |source| KeySecretError::Call { name: self.0.to_string(), source };
        let (found, over) = self.0.read().await.map_err(failed)?;
        if let Some(bytes) = found {
            return Ok(StateKey::from_bytes(&format!("Secret {}", self.0), &Zeroizing::new(bytes))?);
        }
        if !may_make {
            return Err(KeySecretError::Missing(self.0.to_string()));
        }
        let mut bytes = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| KeySecretError::Random)?;
        match self.0.write(&*bytes, &over).await {
            Ok(_) => tracing::info!(secret = %self.0, "a new state key was made: without it the state cannot be read"),
            Err(CallError::Conflict) => tracing::info!(secret = %self.0, "another replica made the state key"),
            Err(error) => return Err(failed(error)),
        }
        // What is there counts, and not what we meant to write.
        match self.0.read().await.map_err(failed)?.0 {
            Some(bytes) => Ok(StateKey::from_bytes(&format!("Secret {}", self.0), &Zeroizing::new(bytes))?),
            None => Err(failed(CallError::Conflict)),
        }
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySecret({})", self.0)
    }
}

impl Value {
    async fn read(&self) -> Result<(Option<Vec<u8>>, Version), CallError> {
        let (ours, _, version) = self.read_beside(None).await?;
        Ok((ours, version))
    }

    async fn read_beside(
        &self,
        beside: Option<&str>,
    ) -> Result<(Option<Vec<u8>>, Option<Vec<u8>>, Version), CallError> {
        let request = Request::new(path(&self.cluster, "secrets")).get(&self.name, &GetParams::default());
        match self.cluster.ask::<Secret>(request, CALL_LIMIT).await {
            Ok(secret) => {
                let version = Version(secret.metadata.resource_version);
                let mut data = secret.data.unwrap_or_default();
                let beside = beside.and_then(|key| data.remove(key)).map(|value| value.0);
                Ok((self.taken(data), beside.filter(|value| !value.is_empty()), version))
            }
            Err(CallError::Missing) => Ok((None, None, Version::default())),
            Err(error) => Err(error),
        }
    }

    /// Our value; the others of the Secret are wiped.
    fn taken(&self, mut data: BTreeMap<String, ByteString>) -> Option<Vec<u8>> {
        let ours = data.remove(self.key).map(|value| value.0).filter(|value| !value.is_empty());
        data.into_values().for_each(|mut other| other.0.zeroize());
        ours
    }

    async fn write(&self, value: &[u8], over: &Version) -> Result<Version, CallError> {
        self.write_all([(self.key, value)].into_iter(), over).await
    }

    async fn write_all<'a>(
        &self,
        values: impl Iterator<Item = (&'a str, &'a [u8])>,
        over: &Version,
    ) -> Result<Version, CallError> {
        let path = path(&self.cluster, "secrets");
        let data: serde_json::Map<_, _> =
            values.map(|(key, value)| (key.to_owned(), json!(*Zeroizing::new(STANDARD.encode(value))))).collect();
        let request = match &over.0 {
            // Only made where there is none. By applying, since RBAC can bind that to a name, and a plain create it cannot; under
            // a manager's name that nobody else has, and not forced: where somebody else's value is, this is a conflict.
            None => {
                let labels = json!({ names::LABEL_MANAGED_BY: names::CA_ACCOUNT });
                let metadata = json!({ "name": self.name, "namespace": self.cluster.namespace, "labels": labels });
                let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data });
                let params = PatchParams::apply(&manager().ok_or_else(|| CallError::Refused(NO_RANDOM.to_owned()))?);
                Request::new(path).patch(&self.name, &params, &Patch::Apply(secret))
            }
            // Labels and whatever else somebody has put there stay.
            Some(version) => {
                let change = json!({ "metadata": { "resourceVersion": version }, "data": data });
                Request::new(path).patch(&self.name, &PatchParams::default(), &Patch::Merge(change))
            }
        };
        match self.cluster.ask::<Secret>(request, CALL_LIMIT).await {
            Ok(secret) => Ok(Version(secret.metadata.resource_version)),
            // Removed since it was read.
            Err(CallError::Missing) if over.0.is_some() => Err(CallError::Conflict),
            Err(error) => Err(error),
        }
    }
}

/// A field manager of this one write.
fn manager() -> Option<String> {
    Some(format!("{}-{}", names::CA_ACCOUNT, random_name::<8>().ok()?))
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster.namespace, self.name)
    }
}

fn path(cluster: &Cluster, resource: &str) -> String {
    format!("/api/v1/namespaces/{}/{resource}", cluster.namespace)
}

#[cfg(test)]
mod tests;
