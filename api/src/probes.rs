//! What the kubelet's probes of a meshed pod become: the injector takes each out of the pod's spec, and the sidecar answers it on
//! its health port by asking the app the same, as the pod's spec had it.
//!
//! The injector writes a [`Probes`] as JSON into [`crate::env::PROBES`]; the proxy reads it once, before a port is bound. The path on
//! the health port is [`path`]. A caller can choose among these and nothing else. A probe only looks, and whoever reaches the port may
//! ask it; a hook does something, so its path ends in a token that the injector makes up for each pod, and that only who may read the
//! pod knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest [`Probes`], in bytes of JSON.
pub const MAX_TEXT: usize = 256 * 1024;
/// Most probes and hooks of a pod.
pub const MAX_PROBES: usize = 128;
/// Most headers of a probe.
pub const MAX_HEADERS: usize = 64;
/// Longest that an app may take, in seconds.
pub const MAX_TIMEOUT_SECONDS: u32 = 3600;
/// Letters of a [`Probe::token`]: 128 bits in hexadecimal.
pub const TOKEN_LETTERS: usize = 32;

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

    /// A hook, which does something, and not a probe, which only looks.
    #[must_use]
    pub const fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
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
    /// A hook's, and no probe's: the last part of its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
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

/// Whether a text can be a hook's token: [`TOKEN_LETTERS`] hexadecimal digits in lower case.
#[must_use]
pub fn is_token(text: &str) -> bool {
    text.len() == TOKEN_LETTERS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The path on the health port at which the sidecar answers a probe, or, by its token, a hook.
#[must_use]
pub fn path(container: &str, kind: Kind, token: Option<&str>) -> String {
    let path = format!("/app/{container}/{}", kind.as_str());
    token.map_or_else(|| path.clone(), |token| format!("{path}/{token}"))
}
