//! What a journey refuses before a rule can be asked. Inbound: a source that does not come by mutual TLS, or that could not be shown who we
//! are. Outbound: a destination of the app where nobody is known, or nobody who proved to be the one. Made by `inbound` and `outbound`,
//! remembered and explained like a denial. It must never name an identity: none was proven.

/// Longest sentence that is kept of what was seen.
const MAX_SEEN: usize = 256;

/// A connection that got no further than its first bytes, its way, or its handshake.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The word of docs/errors.md.
    pub result: &'static str,
    /// What closed the way.
    pub ground: Ground,
    /// What was seen, in one sentence.
    pub seen: String,
}

/// Why only mutual TLS would have done, or why that failed; or why the app was not let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// No rules came yet: nothing opens the port.
    NoRules,
    /// Strict, and no Allow opens the port to sources without identity.
    Strict,
    /// The source's address is a meshed workload's: its sidecar would have come by mutual TLS.
    MeshedSource,
    /// Under Strict, on a port that is opened: nobody is known at the source's address, which is inside the mesh's ranges, or who is there
    /// could not be told.
    UnknownSource,
    /// The handshake failed.
    Handshake,
    /// This proxy has no SVID that is good.
    OwnSvid,
    /// Out: inside the mesh's ranges, and the controller knows nobody there.
    UnknownDestination,
    /// Out: nobody of the service is ready; or only somebody without a sidecar, after TLS was begun.
    NobodyReady,
    /// Out: the controller did not say who is there.
    NoAnswer,
    /// Out: the app asks for more new addresses than it may.
    TooManyAddresses,
    /// Out: another identity than the controller's word was proven.
    SomebodyElse,
    /// Out: the handshake failed.
    HandshakeOut,
}

impl Refused {
    /// Bounds what is kept of the sentence: a peer may have chosen parts of it.
    #[must_use]
    pub fn new(result: &'static str, ground: Ground, seen: &str) -> Self {
        Self { result, ground, seen: seen.chars().take(MAX_SEEN).collect() }
    }
}

#[cfg(test)]
mod tests;
