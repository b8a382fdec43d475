//! The API server, as the injector uses it: the labels of a namespace (`namespaces`), the Secret that the replicas share (`secret`),
//! the `caBundle` of our webhook configurations (`webhooks`). Only here is `kube` named. Every call is bounded in time.
//!
//! # What has to be installed
//!
//! Two entries of one `MutatingWebhookConfiguration`, so that whatever is labelled in fails closed, and unlabelled pods in
//! unlabelled namespaces, kube-system and our own pods schedule with the injector down. `Exists` and not `In [enabled]`: a misspelled
//! word comes here and is refused, instead of being overlooked.
//!
//! ```yaml
//! apiVersion: admissionregistration.k8s.io/v1
//! kind: MutatingWebhookConfiguration
//! metadata: {name: countersign-injector}
//! webhooks:
//! - name: namespace.inject.countersign.dev         # by the namespace's label, unless the pod says no
//!   namespaceSelector:
//!     matchExpressions:
//!     - {key: countersign.dev/inject, operator: Exists}
//!     - {key: countersign.dev/inject, operator: NotIn, values: [disabled]}
//!     - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, countersign-system]}
//!   objectSelector:
//!     matchExpressions: [{key: countersign.dev/inject, operator: NotIn, values: [disabled]}]
//!   rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods], scope: Namespaced}]
//!   clientConfig: {service: {name: countersign-injector, namespace: countersign-system, path: /mutate, port: 443}}
//!   admissionReviewVersions: [v1]
//!   failurePolicy: Fail
//!   reinvocationPolicy: IfNeeded                   # others may add containers after us
//!   sideEffects: None
//!   matchPolicy: Equivalent
//!   timeoutSeconds: 10                             # more than the 3 s that a namespace's labels may take
//! - name: pod.inject.countersign.dev               # by the pod's own label, in any other namespace
//!   namespaceSelector:
//!     matchExpressions:
//!     - {key: countersign.dev/inject, operator: NotIn, values: [enabled]}
//!     - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, countersign-system]}
//!   objectSelector:
//!     matchExpressions:
//!     - {key: countersign.dev/inject, operator: Exists}
//!     - {key: countersign.dev/inject, operator: NotIn, values: [disabled]}
//!   # ... all else as above
//! ---
//! apiVersion: admissionregistration.k8s.io/v1
//! kind: ValidatingWebhookConfiguration
//! metadata: {name: countersign-policies}
//! webhooks:
//! - name: policies.countersign.dev
//!   rules: [{apiGroups: [policy.countersign.dev], apiVersions: [v1alpha1], operations: [CREATE, UPDATE], resources: [authorizationpolicies], scope: Namespaced}]
//!   clientConfig: {service: {name: countersign-injector, namespace: countersign-system, path: /validate, port: 443}}
//!   # ... failurePolicy: Fail, sideEffects: None, matchPolicy: Equivalent, admissionReviewVersions: [v1], timeoutSeconds: 10
//! - name: ephemeral.countersign.dev                 # kubectl debug, as the sidecar's own user, in a pod that has one
//!   rules: [{apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [pods/ephemeralcontainers], scope: Namespaced}]
//!   clientConfig: {service: {name: countersign-injector, namespace: countersign-system, path: /ephemeral, port: 443}}
//!   # matchConditions on both; ... all else as above
//! ```
//!
//! And the Secret `countersign-injector-tls`, of type Opaque and empty: nobody may make one here.
//!
//! No `caBundle` is written there: the injector does, and an upgrade then leaves it alone. Only entries whose `service` is ours are
//! touched.
//!
//! Rights of the account `countersign-injector`:
//!
//! | where | resources | names | verbs | why |
//! | --- | --- | --- | --- | --- |
//! | cluster | mutatingwebhookconfigurations | countersign-injector | get, patch | its caBundle |
//! | cluster | validatingwebhookconfigurations | countersign-policies | get, patch | its caBundle |
//! | cluster | namespaces | | get | labels: meshed or not, Pod Security |
//! | own namespace | secrets | countersign-injector-tls | get, update | the serving certificate |

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::request::Error as RequestError;
use serde::de::DeserializeOwned;

mod namespaces;
mod secret;
mod webhooks;

pub use namespaces::Namespaces;
pub use secret::{Read, read_ring, write_ring};
pub use webhooks::{Found, Published, find, publish};

/// A call to the API server ends at the latest after this.
pub const CALL_LIMIT: Duration = Duration::from_secs(3);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Of an answer that we quote.
const QUOTED: usize = 300;

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
#[error("{flag}: {problem}")]
pub struct ConnectError {
    flag: &'static str,
    problem: String,
}

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CallError {
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
    #[error("the API server does not permit it: {0}")]
    Forbidden(String),
    #[error("there is none")]
    Missing,
    #[error("somebody else was first")]
    Conflict,
    #[error("the API server refuses: {0}")]
    Refused(String),
}

/// The API server, and our own place in it.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    namespace: String,
}

impl Cluster {
    /// With the pod's own account, or with a kubeconfig. Nothing is asked yet.
    ///
    /// # Errors
    /// Neither is there, or the file is no good.
    pub async fn connect(kubeconfig: Option<&Path>, namespace: &str) -> Result<Self, ConnectError> {
        let bad = |flag, error: &dyn std::error::Error| ConnectError { flag, problem: chain(error) };
        let mut config = match kubeconfig {
            None => kube::Config::incluster().map_err(|error| bad("not in a pod, and no --kubeconfig", &error))?,
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| bad("--kubeconfig", &error))?;
                let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
                config.map_err(|error| bad("--kubeconfig", &error))?
            }
        };
        config.connect_timeout = Some(CONNECT_LIMIT);
        // The library would go on trying for minutes; we try again by ourselves, and say so.
        config.default_retry = false;
        let client = kube::Client::try_from(config).map_err(|error| bad("no client for the API server", &error))?;
        Ok(Self { client, namespace: namespace.to_owned() })
    }

    /// One request, one answer, in bounded time.
    async fn ask<T: DeserializeOwned>(
        &self,
        request: Result<http::Request<Vec<u8>>, RequestError>,
    ) -> Result<T, CallError> {
        let request = request.map_err(|error| CallError::Refused(error.to_string()))?;
        let answer = tokio::time::timeout(CALL_LIMIT, self.client.request_text(request));
        let text = match answer.await {
            Err(_) => return Err(CallError::Unavailable(format!("no answer within {} s", CALL_LIMIT.as_secs()))),
            Ok(answer) => zeroize::Zeroizing::new(answer.map_err(sort)?),
        };
        serde_json::from_str(&text).map_err(|error| CallError::Unavailable(unparsable(&error)))
    }
}

/// The library's error as one of ours.
fn sort(error: kube::Error) -> CallError {
    match error {
        kube::Error::Api(status) => match status.code {
            401 | 403 => CallError::Forbidden(quoted(&status.message)),
            404 => CallError::Missing,
            409 => CallError::Conflict,
            408 | 429 | 500.. => CallError::Unavailable(format!("{} {}", status.code, quoted(&status.message))),
            code => CallError::Refused(format!("{code} {}", quoted(&status.message))),
        },
        kube::Error::SerdeError(error) => CallError::Unavailable(unparsable(&error)),
        other => CallError::Unavailable(chain(&other)),
    }
}

/// Where, and not what: a parser's error quotes what it read, and that may be a key.
fn unparsable(error: &serde_json::Error) -> String {
    format!("its answer does not parse (line {} column {})", error.line(), error.column())
}

/// The error with its causes: the outer ones mostly say no more than that there is one.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    quoted(&text)
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
