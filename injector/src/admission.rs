//! What the API server sends and what it gets: `AdmissionReview` of `admission.k8s.io/v1`.
//!
//! Called by the server with a body. A request that cannot be read gets one sentence that says why, and never an answer that
//! admits. Nothing is written anywhere, so a dry run is answered like any other.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::membership::Why;
use crate::mesh::Mesh;
use crate::patch::Op;
use crate::pod::Refusal;
use crate::probes::Token;
use crate::review::{Namespace, Reviewed, review};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// HTTP code inside the answer: what was asked is forbidden.
const FORBIDDEN: u16 = 403;
/// The same: to be tried again.
const UNAVAILABLE: u16 = 503;

/// Why there is no answer inside an `AdmissionReview`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ReadError {
    #[error("not JSON of an AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0} {1:?} is not {KIND} of {API_VERSION}")]
    Kind(&'static str, String),
    #[error("request: is missing")]
    NoRequest,
    #[error("request.{field}: {problem}")]
    Field { field: &'static str, problem: String },
}

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Names this one; the answer carries it back.
    pub uid: String,
    /// Of the object.
    pub kind: Kind,
    /// `CREATE`, `UPDATE`, ...
    pub operation: String,
    /// Which part of the object; empty for the whole.
    #[serde(default)]
    pub sub_resource: String,
    /// Where the object is made.
    #[serde(default)]
    pub namespace: String,
    /// Its name; empty where the API server makes one up.
    #[serde(default)]
    pub name: String,
    /// As it shall be.
    #[serde(default)]
    pub object: Value,
    /// As it was.
    #[serde(default)]
    pub old_object: Value,
    /// Whether it is only tried.
    #[serde(default)]
    pub dry_run: Option<bool>,
}

/// What an object is.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Kind {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    api_version: String,
    kind: String,
    request: Option<Request>,
}

/// What is answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<&'static str, String>,
    /// A bounded word for it.
    #[serde(skip)]
    outcome: Outcome,
}

/// What kind of answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A pod got its sidecar.
    Injected,
    /// A pod had it as it should be.
    Unchanged,
    /// A pod gets none.
    Skipped,
    /// A rule is good.
    Accepted,
    /// A pod or a rule is refused.
    Refused,
    /// It could not be found out.
    Failed,
}

impl Outcome {
    /// A word for it, in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

/// Reads a body.
///
/// # Errors
/// What is wrong with it.
pub fn read(body: &[u8]) -> Result<Request, ReadError> {
    let asked: Asked = serde_json::from_slice(body)?;
    if asked.api_version != API_VERSION {
        return Err(ReadError::Kind("apiVersion", asked.api_version));
    }
    if asked.kind != KIND {
        return Err(ReadError::Kind("kind", asked.kind));
    }
    let request = asked.request.ok_or(ReadError::NoRequest)?;
    if request.uid.is_empty() {
        return Err(ReadError::Field { field: "uid", problem: "is empty".to_owned() });
    }
    Ok(request)
}

/// Whether the request is about a new pod: the only one that the mutating webhook is made for.
///
/// # Errors
/// What it is about instead: the webhook's `rules` are wrong.
pub fn new_pod(request: &Request) -> Result<(), ReadError> {
    let Kind { group, version, kind } = &request.kind;
    if (group.as_str(), version.as_str(), kind.as_str()) != ("", "v1", "Pod") {
        let problem = format!("{group}/{version} {kind} is not v1 Pod: see `rules` of the webhook's configuration");
        return Err(ReadError::Field { field: "kind", problem });
    }
    if request.operation != "CREATE" {
        let problem = format!("{} is not CREATE: see `rules` of the webhook's configuration", request.operation);
        return Err(ReadError::Field { field: "operation", problem });
    }
    Ok(())
}

/// Answers for a new pod. `labels`: its namespace's; `fresh`: by which its hooks are called.
#[must_use]
pub fn mutate(mesh: &Mesh, labels: &BTreeMap<String, String>, fresh: &Token, request: &Request) -> Answer {
    match review(mesh, Namespace::Known(labels), fresh, &request.object) {
        Ok(Reviewed::Skipped(why)) => Answer::skipped(request, why),
        Ok(Reviewed::Injected { patch, warnings, .. }) => Answer::injected(request, &patch, warnings),
        Err(refusal) => Answer::refused(request, &refusal),
    }
}

impl Answer {
    /// As it is.
    #[must_use]
    pub fn accepted(request: &Request) -> Self {
        Self {
            uid: request.uid.clone(),
            allowed: true,
            status: None,
            patch_type: None,
            patch: None,
            warnings: Vec::new(),
            audit_annotations: BTreeMap::new(),
            outcome: Outcome::Accepted,
        }
    }

    /// Not at all.
    #[must_use]
    pub fn denied(request: &Request, message: String) -> Self {
        let status = Status { code: FORBIDDEN, reason: "Forbidden", message };
        Self { allowed: false, status: Some(status), outcome: Outcome::Refused, ..Self::accepted(request) }
    }

    /// Not now: what has to be known for an answer is not known. Nothing labelled in passes without one.
    #[must_use]
    pub fn failed(request: &Request, message: String) -> Self {
        let status = Status { code: UNAVAILABLE, reason: "ServiceUnavailable", message };
        Self { allowed: false, status: Some(status), outcome: Outcome::Failed, ..Self::accepted(request) }
    }

    fn refused(request: &Request, refusal: &Refusal) -> Self {
        Self::denied(request, format!("no sidecar can be put into this pod: {refusal}"))
    }

    fn skipped(request: &Request, why: Why) -> Self {
        Self {
            warnings: why.warning().map(|warning| format!("countersign: {warning}")).into_iter().collect(),
            audit_annotations: BTreeMap::from([("skipped", why.label().to_owned())]),
            outcome: Outcome::Skipped,
            ..Self::accepted(request)
        }
    }

    fn injected(request: &Request, patch: &[Op], warnings: Vec<String>) -> Self {
        let audit = BTreeMap::from([("injected", env!("CARGO_PKG_VERSION").to_owned())]);
        let warnings = warnings.into_iter().map(|warning| format!("countersign: {warning}")).collect();
        let answer =
            Self { warnings, audit_annotations: audit, outcome: Outcome::Unchanged, ..Self::accepted(request) };
        if patch.is_empty() {
            return answer;
        }
        match serde_json::to_vec(patch) {
            Ok(patch) => Self {
                patch_type: Some("JSONPatch"),
                patch: Some(STANDARD.encode(patch)),
                outcome: Outcome::Injected,
                ..answer
            },
            // JSON that came in as JSON: it cannot happen, and must not admit if it does.
            Err(error) => Self::denied(request, format!("the patch cannot be written: {error}")),
        }
    }

    /// Whether the API server goes on.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.allowed
    }

    /// What kind of answer it is.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Why it is not allowed.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.status.as_ref().map(|status| status.message.as_str())
    }

    /// The whole `AdmissionReview`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn body(&self) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Review<'a> {
            api_version: &'static str,
            kind: &'static str,
            response: &'a Answer,
        }
        serde_json::to_vec(&Review { api_version: API_VERSION, kind: KIND, response: self })
    }
}

#[cfg(test)]
mod tests;
