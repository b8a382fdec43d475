//! Names that two processes must spell alike: service accounts, labels, audiences, ALPN protocol ids.

/// Default namespace of the mesh's own processes.
pub const SYSTEM_NAMESPACE: &str = "countersign-system";
/// Service account of the CA.
pub const CA_ACCOUNT: &str = "countersign-ca";
/// Service account of the controller.
pub const CONTROLLER_ACCOUNT: &str = "countersign-controller";
/// Default trust domain.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Audience that a token must carry to be accepted by the CA. There is no fallback.
pub const CA_AUDIENCE: &str = "countersign-ca";

/// Namespace label: `Strict` (default) or `Permissive`.
pub const LABEL_MTLS: &str = "countersign.dev/mtls";
/// Namespace label: `Enforce` (default), `Audit` or `Off`.
pub const LABEL_POSTURE: &str = "countersign.dev/posture";
/// Namespace label: `Any` (default) or `MeshOnly`.
pub const LABEL_EGRESS: &str = "countersign.dev/egress";

/// ALPN of mTLS between two proxies: tells it from an application's own TLS.
pub const ALPN: &[u8] = b"countersign/1";
/// ALPN of the CA's and the controller's gRPC.
pub const ALPN_H2: &[u8] = b"h2";
