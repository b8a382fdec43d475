//! The cluster, as the CA uses it: who is a pod (`review`), where the state lies (`secret`), where pods find the roots
//! (`bundles`). Opened by `run` when a flag needs it; only here is `kube` named.
//!
//! Every call is bounded in time, and none is made under a lock. An answer is parsed here and not in the library, which logs
//! what it cannot parse: a token or a key must never get into a log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tower::timeout::TimeoutLayer;

mod bundles;
mod review;
mod secret;
#[cfg(test)]
#[path = "../../tests/apiserver/mod.rs"]
pub(crate) mod testing;
mod watch;

pub use bundles::Publisher;
pub use review::TokenReviews;
pub use secret::{KeySecret, KeySecretError, StateSecret, Version};

/// A call to the API server ends at the latest after this.
pub const CALL_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// An answer begins at the latest after this, that of a watch too: the library would wait for ever.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// A connection that is read from and says nothing for so long is given up; longer than a watch is asked for.
const READ_LIMIT: Duration = Duration::from_secs(40);
/// Of an answer that we quote.
const QUOTED: usize = 300;

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not in a pod, or the pod has no token of its account.
    #[error("not in a pod with a service account: {0}; outside of a cluster give --kubeconfig")]
    NotInCluster(String),
    /// The file is no good.
    #[error("--kubeconfig {path}: {problem}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The client cannot be made.
    #[error("no client for the API server: {0}")]
    Client(String),
}

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not reached, too slow, overloaded: it may be tried again.
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
    /// The CA's account may not do this.
    #[error("the API server does not permit it: {0}")]
    Forbidden(String),
    /// There is no such object.
    #[error("there is none")]
    Missing,
    /// Somebody else was first: it exists already, or has changed since it was read.
    #[error("somebody else was first")]
    Conflict,
    /// Any other refusal.
    #[error("the API server refuses: {0}")]
    Refused(String),
}

impl CallError {
    /// True if time may mend it: RBAC rules too may come later than the pod.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Forbidden(_))
    }
}

/// The API server, and the namespace of our own objects.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    /// With the pod's own account, or with a kubeconfig. Nothing is asked yet.
    pub async fn connect(kubeconfig: Option<&Path>, namespace: &str) -> Result<Self, ConnectError> {
        let mut config = match kubeconfig {
            None => kube::Config::incluster().map_err(|error| ConnectError::NotInCluster(error.to_string()))?,
            Some(path) => from_file(path).await?,
        };
        config.connect_timeout = Some(CONNECT_LIMIT);
        // The library would try again for up to 1000 s; we try again by ourselves, and say so.
        config.default_retry = false;
        config.read_timeout = Some(READ_LIMIT);
        config.reset_reader_on_write = true;
        let builder = ClientBuilder::try_from(config).map_err(|error| ConnectError::Client(chain(&error)))?;
        let client = builder.with_layer(&head_limit()).build();
        Ok(Self { client, namespace: namespace.to_owned() })
    }

    #[cfg(test)]
    pub(crate) fn on(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// The namespace of the mesh's own processes.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// One request, one answer, in bounded time.
    async fn ask<T: DeserializeOwned>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
        limit: Duration,
    ) -> Result<T, CallError> {
        let request = request.map_err(|error| CallError::Refused(error.to_string()))?;
        let answer = tokio::time::timeout(limit, self.client.request_text(request));
        let text = match answer.await {
            Err(_) => return Err(CallError::Unavailable(format!("no answer within {} s", limit.as_secs()))),
            Ok(answer) => zeroize::Zeroizing::new(answer.map_err(sort)?),
        };
        serde_json::from_str(&text).map_err(|error| CallError::Unavailable(unparsable(&error)))
    }
}

/// Connects when it is first needed, and not at all where nothing is in a cluster.
pub struct Connector<'a> {
    kubeconfig: Option<&'a Path>,
    namespace: &'a str,
    cluster: OnceCell<Cluster>,
}

impl<'a> Connector<'a> {
    /// Not connected yet.
    pub fn new(kubeconfig: Option<&'a Path>, namespace: &'a str) -> Self {
        Self { kubeconfig, namespace, cluster: OnceCell::new() }
    }

    /// The cluster.
    pub async fn cluster(&self) -> Result<Cluster, ConnectError> {
        self.cluster.get_or_try_init(|| Cluster::connect(self.kubeconfig, self.namespace)).await.cloned()
    }
}

fn head_limit() -> TimeoutLayer {
    TimeoutLayer::new(HEAD_LIMIT)
}

async fn from_file(path: &Path) -> Result<kube::Config, ConnectError> {
    let bad = |error: &dyn std::error::Error| ConnectError::Kubeconfig { path: path.to_owned(), problem: chain(error) };
    let file = Kubeconfig::read_from(path).map_err(|error| bad(&error))?;
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|error| bad(&error))
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

/// The API server in memory, as a cluster.
#[cfg(test)]
pub(crate) fn on_server(server: &testing::ApiServer, namespace: &str) -> Cluster {
    Cluster::on(server.client(&head_limit()), namespace)
}
