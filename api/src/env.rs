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
/// Log filter: a level, or TARGET=LEVEL separated by commas.
pub const LOG: &str = "COUNTERSIGN_LOG";
/// Name of the pod.
pub const POD_NAME: &str = "POD_NAME";
/// UID of the pod.
pub const POD_UID: &str = "POD_UID";
/// Namespace of the pod.
pub const POD_NAMESPACE: &str = "POD_NAMESPACE";
/// Service account of the pod.
pub const SERVICE_ACCOUNT: &str = "SERVICE_ACCOUNT";
/// The pod's first address.
pub const POD_IP: &str = "POD_IP";
/// The pod's addresses, separated by commas.
pub const POD_IPS: &str = "POD_IPS";

// Of the proxy alone; the injector writes them.

/// Port of the inbound listener.
pub const INBOUND_PORT: &str = "COUNTERSIGN_INBOUND_PORT";
/// Port of the outbound listener.
pub const OUTBOUND_PORT: &str = "COUNTERSIGN_OUTBOUND_PORT";
/// Port of `/livez /readyz /metrics`.
pub const HEALTH_PORT: &str = "COUNTERSIGN_HEALTH_PORT";
/// Socket mark of the proxy's own connections, where it may set one.
pub const MARK: &str = "COUNTERSIGN_MARK";
/// Wanted life of the SVID.
pub const SVID_TTL: &str = "COUNTERSIGN_SVID_TTL";
/// Threads that carry connections.
pub const WORKER_THREADS: &str = "COUNTERSIGN_WORKER_THREADS";
/// How long open connections may go on once draining started.
pub const DRAIN_DEADLINE: &str = "COUNTERSIGN_DRAIN_DEADLINE";
/// `on` or `off`.
pub const ACCESS_LOG: &str = "COUNTERSIGN_ACCESS_LOG";
/// File that exists exactly while the proxy is ready.
pub const READY_FILE: &str = "COUNTERSIGN_READY_FILE";
/// Most connections open at once, in each direction.
pub const MAX_CONNECTIONS: &str = "COUNTERSIGN_MAX_CONNECTIONS";
/// Most inbound connections that have not proven themselves yet.
pub const HANDSHAKE_SLOTS: &str = "COUNTERSIGN_HANDSHAKE_SLOTS";
/// Longest dial.
pub const CONNECT_TIMEOUT: &str = "COUNTERSIGN_CONNECT_TIMEOUT";
/// Longest TLS handshake.
pub const HANDSHAKE_TIMEOUT: &str = "COUNTERSIGN_HANDSHAKE_TIMEOUT";
/// Longest wait for an inbound connection's first bytes.
pub const FIRST_BYTES_TIMEOUT: &str = "COUNTERSIGN_FIRST_BYTES_TIMEOUT";
/// Under Permissive: longest wait for a ClientHello from an unknown source.
pub const PERMISSIVE_HELLO_TIMEOUT: &str = "COUNTERSIGN_PERMISSIVE_HELLO_TIMEOUT";
/// Longest that the server side keeps an idle TLS connection.
pub const LINK_IDLE_TIMEOUT: &str = "COUNTERSIGN_LINK_IDLE_TIMEOUT";
/// Most TLS connections kept for another use.
pub const POOL_SIZE: &str = "COUNTERSIGN_POOL_SIZE";
/// Most of them to one endpoint.
pub const POOL_SIZE_EACH: &str = "COUNTERSIGN_POOL_SIZE_EACH";
/// Longest that one is kept.
pub const POOL_IDLE_TIMEOUT: &str = "COUNTERSIGN_POOL_IDLE_TIMEOUT";

/// JSON: the probes of the pod's spec, which the sidecar asks of the app in the kubelet's place ([`crate::probes`]).
pub const PROBES: &str = "COUNTERSIGN_PROBES";

// Of the proxy's sub-command `intercept`.

/// User that the proxy runs as: its traffic is not redirected.
pub const PROXY_UID: &str = "COUNTERSIGN_PROXY_UID";
/// Ports of the pod that are reached past the sidecar, separated by commas.
pub const SKIP_INBOUND_PORTS: &str = "COUNTERSIGN_SKIP_INBOUND_PORTS";
/// Ports elsewhere that the app reaches past the sidecar, separated by commas.
pub const SKIP_OUTBOUND_PORTS: &str = "COUNTERSIGN_SKIP_OUTBOUND_PORTS";
/// Addresses that the app reaches past the sidecar, separated by commas.
pub const SKIP_OUTBOUND_CIDRS: &str = "COUNTERSIGN_SKIP_OUTBOUND_CIDRS";
