//! The journey of a pod: from the pod that the API server shows us to the patch that it gets, or to a refusal.
//!
//! Called by `admission` for the API server and by `offline` for files. Pure: the same pod, namespace, mesh and token give the same answer.
//! Nothing is patched unless every step before it was content, and a pod that was reviewed before comes out the same.

use std::collections::BTreeMap;

use countersign_api::names;
use serde_json::Value;

use crate::membership::{self, Membership, Why};
use crate::mesh::Mesh;
use crate::patch::{self, Op};
use crate::pod::{Pod, Refusal, none};
use crate::probes::Token;
use crate::restore::Status;
use crate::{containers, probes, refuse, restore, settings};

/// The namespace that a pod is made in.
#[derive(Clone, Copy, Debug)]
pub enum Namespace<'a> {
    /// With its labels.
    Known(&'a BTreeMap<String, String>),
    /// A file's: whoever asked for injection labelled it in.
    Asked,
}

impl Namespace<'_> {
    /// One of its labels.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        match self {
            Self::Known(labels) => labels.get(key).map(String::as_str),
            Self::Asked if key == names::LABEL_INJECT => Some("enabled"),
            Self::Asked => None,
        }
    }
}

/// What becomes of a pod that is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Reviewed {
    /// It is left as it is.
    Skipped(Why),
    /// It has its sidecar now.
    Injected {
        /// The whole pod.
        pod: Value,
        /// What makes it of the one that came; empty if it was so before.
        patch: Vec<Op>,
        /// What its author should know.
        warnings: Vec<String>,
    },
}

/// Reviews a pod, or the template of one. `fresh`: by which its hooks are called from now on, if it has any and was never reviewed before.
///
/// # Errors
/// All that is wrong with it, each by its field.
pub fn review(mesh: &Mesh, namespace: Namespace<'_>, fresh: &Token, came: &Value) -> Result<Reviewed, Refusal> {
    let mut problems = Vec::new();

    // Is it a pod, as far as we look at it?
    let mut pod = Pod::read(came)?;

    // Is it for us?
    if let Membership::Out(why) = membership::of(&pod, namespace.label(names::LABEL_INJECT))? {
        return Ok(Reviewed::Skipped(why));
    }

    // What we did to it before is undone: others may have changed it since.
    let before = restore::restore(&mut pod)?;

    // What does it want of its sidecar, and may it?
    let settings = settings::read(mesh, &pod, &mut problems);

    // What speaks against a sidecar, and what only weakens it?
    refuse::check(mesh, &namespace, &pod, &mut problems);
    let warnings = refuse::warnings(&pod);

    // The kubelet asks the sidecar from now on.
    let token = before.as_ref().and_then(Status::token);
    let taken = probes::take(&mut pod, token.as_ref().unwrap_or(fresh), &mut problems);

    // All of it at once, so that its author need not come back for each.
    none(problems)?;

    // Ours first, then all others.
    let labelled = label(&mut pod, namespace) || before.is_some_and(|before| before.labelled);
    containers::add(mesh, &settings, &taken, labelled, &mut pod);
    let pod = pod.into_value();
    let patch = patch::between(came, &pod);
    Ok(Reviewed::Injected { pod, patch, warnings })
}

/// A pod of a file goes into a namespace that need not be labelled; by its own label the roots come there all the same.
fn label(pod: &mut Pod, namespace: Namespace<'_>) -> bool {
    let missing = matches!(namespace, Namespace::Asked) && pod.label(names::LABEL_INJECT).is_none();
    if missing {
        pod.set("labels", names::LABEL_INJECT, Some("enabled".to_owned()));
    }
    missing
}

#[cfg(test)]
mod tests;
