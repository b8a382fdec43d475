//! Bytes of one application connection: between the app's socket and a framed link, or between two sockets.
//!
//! Called by both journeys, and only with a `Permit`. Half-close, reset and back-pressure are kept as the two programs
//! would see them without us: an end of one half closes only the other's write half, a reset stays a reset, and
//! whoever reads slowly slows the sender. Nothing is buffered for an idle connection.

mod framed;
mod plain;

pub use framed::{End, Held, Side, relay};
pub use plain::{PlainEnd, splice};

/// Bytes that went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// From client to server.
    pub sent: u64,
    /// From server to client.
    pub received: u64,
}

#[cfg(test)]
pub(crate) mod tests;
