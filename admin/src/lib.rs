//! ASKED: how people and probes ask a process of ours how it is.
//!
//! Used by proxy, CA and controller; what they answer is theirs, how it is asked is here, once. Two doors: `health`, a TCP port
//! for kubelets and scrapers, and the admin `socket`, a file that only our own user and root may open, with the `routes` that
//! the process adds. Both speak `http` within bounds, on connections `accept`ed within a budget of their own. The `log` is
//! what a process says unasked; its filter is changed by the socket.
//!
//! It must never show what the process did not hand over, never administer over TCP, and never let whoever asks hold up the
//! work of the process.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accept;
mod ask;
pub mod health;
pub mod http;
pub mod log;
mod routes;
mod socket;

pub use ask::{Answered, ask, tell};
pub use log::{Log, LogError};
pub use routes::{CONNECTIONS, Routes, serve};
pub use socket::{AdminSocket, SocketError, bind};
