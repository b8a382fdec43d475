//! What the kubelet's probes of a meshed pod become: the injector takes each out of the pod's spec, and the sidecar answers it on
//! its health port by asking the app the same, as the pod's spec had it.
//!
//! The injector writes a [`Probes`] as JSON into [`crate::env::PROBES`]; the proxy reads it once, before a port is bound. The path on
//! the health port is [`path`]. A caller can choose among these and nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All probes and HTTP lifecycle hooks of a pod, by container and then by what the pod's spec calls it.
pub type Probes = BTreeMap<String, BTreeMap<Kind, Probe>>;

/// Which of a container's probes or hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// `livenessProbe`
    Liveness,
    /// `readinessProbe`
    Readiness,
    /// `startupProbe`
    Startup,
    /// `lifecycle.postStart`
    PostStart,
    /// `lifecycle.preStop`
    PreStop,
}

impl Kind {
    /// The word in the path and in the JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
            Self::PostStart => "postStart",
            Self::PreStop => "preStop",
        }
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// How long the app may take, in seconds, as in the pod's spec.
    pub timeout_seconds: u32,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked of the app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Ask {
    /// `httpGet`: healthy at 200 to 399.
    Http {
        /// Port, resolved if the spec had a name.
        port: u16,
        /// Path and query.
        path: String,
        /// TLS, whose certificate is not verified, as the kubelet does it.
        #[serde(default)]
        https: bool,
        /// The spec's headers, in its order.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// `tcpSocket`: healthy if it accepts.
    Tcp {
        /// Port.
        port: u16,
    },
    /// `grpc`: healthy if `grpc.health.v1` says SERVING.
    Grpc {
        /// Port.
        port: u16,
        /// Service name; may be empty.
        #[serde(default)]
        service: String,
    },
}

/// The path on the health port at which the sidecar answers a probe.
#[must_use]
pub fn path(container: &str, kind: Kind) -> String {
    format!("/app/{container}/{}", kind.as_str())
}
