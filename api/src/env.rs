//! Environment variables. Each is read once, before a port is bound.

/// Trust domain of the mesh.
pub const TRUST_DOMAIN: &str = "COUNTERSIGN_TRUST_DOMAIN";
/// Namespace of CA and controller.
pub const SYSTEM_NAMESPACE: &str = "COUNTERSIGN_SYSTEM_NAMESPACE";
/// `host:port` of the CA.
pub const CA_ADDRESS: &str = "COUNTERSIGN_CA_ADDRESS";
/// `host:port` of the controller; several separated by commas.
pub const CONTROLLER_ADDRESS: &str = "COUNTERSIGN_CONTROLLER_ADDRESS";
/// File with the projected ServiceAccount token; read anew for each use.
pub const TOKEN_FILE: &str = "COUNTERSIGN_TOKEN_FILE";
/// PEM file with the roots that verify the CA until the first bundle came by stream.
pub const BOOTSTRAP_BUNDLE: &str = "COUNTERSIGN_BOOTSTRAP_BUNDLE";
/// Path of the process's admin socket.
pub const ADMIN_SOCKET: &str = "COUNTERSIGN_ADMIN_SOCKET";
/// Log filter, in the syntax of `RUST_LOG`.
pub const LOG: &str = "COUNTERSIGN_LOG";
/// Name of the pod.
pub const POD_NAME: &str = "POD_NAME";
/// UID of the pod.
pub const POD_UID: &str = "POD_UID";
/// Namespace of the pod.
pub const POD_NAMESPACE: &str = "POD_NAMESPACE";
/// Service account of the pod.
pub const SERVICE_ACCOUNT: &str = "SERVICE_ACCOUNT";
/// The pod's addresses, separated by commas.
pub const POD_IPS: &str = "POD_IPS";
