//! The Secret in which the replicas share their ring of certificates: written only over the very version that was read.
//!
//! Called by `upkeep`. What cannot be read there counts as nothing: the ring can be made anew at any time, and the Secret is ours alone.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Resource as _;
use kube::api::{GetParams, ObjectMeta, PostParams};
use kube::core::Request;

use super::{CallError, Cluster};
use crate::keeper::Ring;

/// Name of the Secret.
pub const SECRET: &str = "countersign-injector-tls";
const KEY: &str = "ring.json";

/// Which content the Secret had; `None`: there was no Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Option<String>);

/// What is there.
///
/// # Errors
/// The API server does not tell.
pub async fn read_ring(cluster: &Cluster) -> Result<(Option<Ring>, Version), CallError> {
    let request = Request::new(path(cluster)).get(SECRET, &GetParams::default());
    let secret: Secret = match cluster.ask(request).await {
        Err(CallError::Missing) => return Ok((None, Version(None))),
        other => other?,
    };
    let bytes = secret.data.as_ref().and_then(|data| data.get(KEY));
    let ring = bytes.and_then(|bytes| serde_json::from_slice(&bytes.0).ok());
    if ring.is_none() {
        tracing::warn!(secret = SECRET, key = KEY, "holds no certificates that can be read; they are made anew");
    }
    Ok((ring, Version(secret.metadata.resource_version)))
}

/// Writes over that version.
///
/// # Errors
/// [`CallError::Conflict`]: another replica was first.
pub async fn write_ring(cluster: &Cluster, ring: &Ring, over: Version) -> Result<(), CallError> {
    let json = serde_json::to_vec(ring).map_err(|error| CallError::Refused(error.to_string()))?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            namespace: Some(cluster.namespace.clone()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/part-of".to_owned(), "countersign".to_owned())])),
            resource_version: over.0.clone(),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(json))])),
        ..Secret::default()
    };
    let body = serde_json::to_vec(&secret).map_err(|error| CallError::Refused(error.to_string()))?;
    let request = Request::new(path(cluster));
    let request = match over.0 {
        None => request.create(&PostParams::default(), body),
        Some(_) => request.replace(SECRET, &PostParams::default(), body),
    };
    match cluster.ask::<Secret>(request).await {
        // Deleted since it was read: the next look makes it.
        Err(CallError::Missing) => Err(CallError::Conflict),
        other => other.map(drop),
    }
}

fn path(cluster: &Cluster) -> String {
    Secret::url_path(&(), Some(&cluster.namespace))
}
