//! A pod as it was before us. Injection begins with it, so that a second pass (`reinvocationPolicy: IfNeeded`) does exactly what
//! the first would have done with what is there now; and `countersign uninject` ends with it.
//!
//! What we did stands in the pod's status annotation. Whoever made the pod may have written that too: it is believed only in so
//! far as the pod gets back what its author might as well have written there himself. It must never remove anything from a
//! pod without that annotation.

use countersign_api::names;
use serde::{Deserialize, Serialize};

use crate::containers::{OUR_CONTAINERS, OUR_VOLUMES};
use crate::pod::{Pod, Problem, name};
use crate::probes::{self, Originals, Token};

/// What [`names::ANNOTATION_STATUS`] holds. A newer or older injector may have written it: what is not known is left alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the injector that wrote it.
    pub version: String,
    /// The probes and hooks that were turned to the sidecar, as they were.
    #[serde(default, skip_serializing_if = "Originals::is_empty")]
    pub probes: Originals,
    /// By which the pod's hooks are called, if it has any; a second pass keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook_token: Option<String>,
    /// Whether we put the pod's label in, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub labelled: bool,
}

impl Status {
    /// The token, if it can be one.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        self.hook_token.as_deref().and_then(Token::of)
    }
}

/// Undoes what an earlier pass did, but for the label; tells what it was, if there was one.
///
/// # Errors
/// The status annotation cannot be read.
pub fn restore(pod: &mut Pod) -> Result<Option<Status>, Problem> {
    let field = || format!("metadata.annotations[{:?}]", names::ANNOTATION_STATUS);
    let annotation =
        pod.annotations().find(|(key, _)| *key == names::ANNOTATION_STATUS).map(|(_, value)| value.to_owned());
    let Some(annotation) = annotation else { return Ok(None) };
    let status: Status = serde_json::from_str(&annotation).map_err(|error| {
        Problem::new(field(), format!("is written by the injector, and is not what it writes ({error}); remove it"))
    })?;
    for (key, ours) in [("initContainers", &OUR_CONTAINERS[..]), ("volumes", &OUR_VOLUMES[..])] {
        if !pod.list(key).is_empty() {
            pod.list_mut(key).retain(|entry| !ours.contains(&name(entry)));
            pod.drop_if_empty(key);
        }
    }
    probes::give_back(pod, &status.probes, status.token().as_ref());
    pod.set("annotations", names::ANNOTATION_STATUS, None);
    Ok(Some(status))
}

/// The pod as it was before us, label and all. False if we had done nothing to it.
///
/// # Errors
/// The status annotation cannot be read.
pub fn uninject(pod: &mut Pod) -> Result<bool, Problem> {
    let status = restore(pod)?;
    if status.as_ref().is_some_and(|status| status.labelled) {
        pod.set("labels", names::LABEL_INJECT, None);
    }
    Ok(status.is_some())
}
