//! TCP ports, all configurable. 15001, 15006, 15020 and 15021 are where users of other meshes expect them.

/// The proxy's outbound listener; loopback only.
pub const OUTBOUND: u16 = 15001;
/// The proxy's inbound listener.
pub const INBOUND: u16 = 15006;
/// `/livez`, `/readyz`, `/metrics` of the proxy; exempt from the redirect.
pub const PROXY_HEALTH: u16 = 15020;
/// Nothing listens here: only the inbound redirect can make it answer.
pub const SELF_PROOF: u16 = 15021;
/// The CA's gRPC.
pub const CA: u16 = 15030;
/// The CA's `/livez`, `/readyz`, `/metrics`.
pub const CA_HEALTH: u16 = 15031;
/// The controller's gRPC.
pub const CONTROLLER: u16 = 15040;
/// The controller's `/livez`, `/readyz`, `/metrics`.
pub const CONTROLLER_HEALTH: u16 = 15041;
/// The injector's HTTPS; its service's port is 443.
pub const INJECTOR: u16 = 15050;
/// The injector's `/livez`, `/readyz`, `/metrics`.
pub const INJECTOR_HEALTH: u16 = 15051;

/// User id of the proxy: its own traffic is exempt from the outbound redirect.
pub const PROXY_UID: u32 = 1337;
/// Socket mark of the proxy, where it may set one.
pub const PROXY_MARK: u32 = 1337;
