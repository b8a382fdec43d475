//! The Secret in which the replicas share their ring of certificates: written only over the very version that was read.
//!
//! Called by `upkeep`. What cannot be read there counts as nothing: the ring can be made anew at any time, and the Secret is ours alone. It is
//! installed empty, and never made here: who may make Secrets may make one that holds another account's token.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Resource as _;
use kube::api::{GetParams, PostParams};
use kube::core::Request;

use super::{CallError, Cluster};
use crate::keeper::Ring;

/// Name of the Secret.
pub const SECRET: &str = "countersign-injector-tls";
const KEY: &str = "ring.json";

/// The Secret as it was read.
#[derive(Clone, Debug)]
pub struct Read(Secret);

/// What is there.
///
/// # Errors
/// The API server does not tell; [`CallError::Missing`]: the Secret is not installed.
pub async fn read_ring(cluster: &Cluster) -> Result<(Option<Ring>, Read), CallError> {
    let request = Request::new(path(cluster)).get(SECRET, &GetParams::default());
    let secret: Secret = cluster.ask(request).await?;
    let bytes = secret.data.as_ref().and_then(|data| data.get(KEY));
    let ring = bytes.and_then(|bytes| serde_json::from_slice(&bytes.0).ok());
    if bytes.is_some() && ring.is_none() {
        tracing::warn!(secret = SECRET, key = KEY, "holds no certificates that can be read; they are made anew");
    }
    Ok((ring, Read(secret)))
}

/// Writes over that version, and leaves all else of the Secret as it is.
///
/// # Errors
/// [`CallError::Conflict`]: another replica was first.
pub async fn write_ring(cluster: &Cluster, ring: &Ring, over: Read) -> Result<(), CallError> {
    let json = serde_json::to_vec(ring).map_err(|error| CallError::Refused(error.to_string()))?;
    let Read(mut secret) = over;
    secret.data = Some(BTreeMap::from([(KEY.to_owned(), ByteString(json))]));
    let body = serde_json::to_vec(&secret).map_err(|error| CallError::Refused(error.to_string()))?;
    let request = Request::new(path(cluster)).replace(SECRET, &PostParams::default(), body);
    cluster.ask::<Secret>(request).await.map(drop)
}

fn path(cluster: &Cluster) -> String {
    Secret::url_path(&(), Some(&cluster.namespace))
}
