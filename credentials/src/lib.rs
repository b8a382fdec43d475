//! HOLD: a process's own SVID and bundle, kept fresh, and the TLS configurations made of them.
//!
//! Called by proxy, CA and controller. Read top to bottom as a connection meets it: who we are (`credentials`), whom we
//! believe (`verify`, `peer`, `cache`), the configurations (`config`), one handshake (`handshake`), a socket (`dial`), a
//! connection that ends with its credentials (`lived`), what strangers may hold (`places`, `files`), what a crash
//! leaves (`dumps`), gRPC both ways (`channel`,
//! `incoming`, within their `window`), and where the SVID and the bundle come from (`ca`).
//!
//! It must never let a key, a token or an unverified identity out, and never fall back to plaintext or to public roots.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backoff;
mod ca;
mod cache;
mod channel;
mod clock;
mod config;
mod credentials;
mod dial;
mod dumps;
mod files;
mod handshake;
mod incoming;
mod lived;
mod peer;
mod places;
mod provider;
mod secrets;
mod verify;
mod window;

#[cfg(test)]
mod testing;

pub use backoff::{Backoff, up_to};
pub use ca::{CaClient, LastError, Started, Status, Tally, start};
pub use channel::{ChannelError, ChannelSettings, TlsAs, channel, reason};
pub use clock::{Clock, SharedClock, SystemClock, system_clock};
pub use config::{ClientAuth, accept_config, connect_config, connect_config_anonymous};
pub use credentials::{Credentials, CredentialsError};
pub use dial::{DialError, dial, dial_host, dial_local};
pub use dumps::leave_no_core;
pub use files::raise_open_files;
pub use handshake::{
    Driven, HandshakeError, accept, accept_driven, accept_optional, connect, connect_anonymous, connect_driven,
    negotiated_alpn_ok, server_name,
};
pub use incoming::{Connection, Incoming, IncomingLimits, PeerInfo, STREAM_WINDOW, grpc_server, incoming};
pub use lived::{Ended, Lived};
pub use peer::{PeerError, PeerSlot};
pub use places::{Full, Place, Places};
pub use secrets::{Suite, TrafficSecrets};
pub use window::connection_window;

/// Credentials as they change: `None` until the first were accepted by our own verifier.
pub type Watch = tokio::sync::watch::Receiver<Option<std::sync::Arc<Credentials>>>;
