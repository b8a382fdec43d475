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

/// Domain of every label and annotation of ours; also with words before it, behind which a dot stands.
pub const DOMAIN: &str = "countersign.dev";
/// Label of a namespace or a pod: `enabled` or `disabled`. The pod's own goes before its namespace's.
pub const LABEL_INJECT: &str = "countersign.dev/inject";
/// Kubernetes' annotation of a pod that only mirrors a static one, which a kubelet runs from a file; only a node may make one.
pub const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// Pod annotation that the injector leaves: JSON, what it did and with which version. Never read as a permission.
pub const ANNOTATION_STATUS: &str = "countersign.dev/status";
/// Prefix of the pod annotations by which a pod asks for a setting of its own sidecar.
pub const ANNOTATION_PREFIX: &str = "proxy.countersign.dev/";
/// Name of the sidecar's container: a pod is meshed exactly if it has one.
pub const SIDECAR_CONTAINER: &str = "countersign-proxy";
/// Name of the init container that sets the redirect rules.
pub const INTERCEPT_CONTAINER: &str = "countersign-intercept";
/// ConfigMap in every meshed namespace that holds the roots, in PEM, under [`BUNDLE_KEY`].
pub const BUNDLE_CONFIG_MAP: &str = "countersign-bundle";
/// Key of the roots in [`BUNDLE_CONFIG_MAP`].
pub const BUNDLE_KEY: &str = "bundle.pem";
/// Secret in the system namespace that holds the CA's sealed state, under [`CA_STATE_KEY`].
pub const CA_STATE_SECRET: &str = "countersign-ca-state";
/// Key of the sealed state in [`CA_STATE_SECRET`].
pub const CA_STATE_KEY: &str = "ca.state";
/// Key of the record of who signs from the state, sealed too, in [`CA_STATE_SECRET`].
pub const CA_REPLICAS_KEY: &str = "ca.replicas";
/// Secret in the system namespace that holds the 32 bytes that seal the CA's state, under [`CA_KEY_KEY`].
pub const CA_KEY_SECRET: &str = "countersign-ca-key";
/// Key of the 32 bytes in [`CA_KEY_SECRET`].
pub const CA_KEY_KEY: &str = "state.key";
/// Label of objects that one of our processes makes and keeps; its value is that process's account. By it `uninstall` finds them.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Directory of the sidecar's projected token, whose file is `countersign-token`.
pub const TOKEN_DIR: &str = "/var/run/secrets/tokens";
/// Directory where [`BUNDLE_CONFIG_MAP`] is mounted.
pub const BUNDLE_DIR: &str = "/var/run/secrets/countersign";
/// Directory of the admin socket.
pub const RUN_DIR: &str = "/run/countersign";
/// Service and Deployment of the injector, and its account.
pub const INJECTOR_ACCOUNT: &str = "countersign-injector";

/// ALPN of mTLS between two proxies: tells it from an application's own TLS.
pub const ALPN: &[u8] = b"countersign/1";
/// ALPN of the second connection between two proxies by which an open one is proven anew.
pub const ALPN_REAUTH: &[u8] = b"countersign-reauth/1";
/// ALPN of the CA's and the controller's gRPC.
pub const ALPN_H2: &[u8] = b"h2";
