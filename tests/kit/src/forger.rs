//! A neighbour on the link that names whatever destination it likes, in frames to a victim's hardware address.
//!
//! Made by tests of the guards. Its own kernel knows nothing of the connections it makes, and is kept from saying so.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::net::Pod;
use crate::packet::{Segment, flag};
use crate::raw::Raw;

/// For what must happen.
const SOON: Duration = Duration::from_secs(10);
/// Between two looks.
const PATIENCE: Duration = Duration::from_millis(50);
/// A kernel that knows no such connection would answer the SYN-ACK with a reset.
const QUIET: &str = "table inet quiet {\nchain output {\ntype filter hook output priority 0; policy accept;\n\
                     tcp flags & rst == rst drop\n}\n}\n";

/// What the frames are made with.
pub struct Forger {
    raw: Raw,
    addresses: [std::net::IpAddr; 2],
    victim: [u8; 6],
    port: u16,
}

impl Forger {
    /// In a pod of its own: from now on its kernel resets nothing any more.
    ///
    /// # Errors
    /// If there is no `nft`, or no packet socket is to be had.
    pub fn new(own: &Pod, victim: &Pod) -> Result<Self> {
        own.nft(QUIET)?;
        let raw = Raw::open(own, "eth0")?;
        raw.set_patience(PATIENCE)?;
        let victim = Raw::open(victim, "eth0")?.hardware();
        Ok(Self { raw, addresses: own.addresses(), victim, port: 40_000 })
    }

    /// A handshake with `target`; then one with `fence`, which must answer: as frames keep their order, whatever the first did is
    /// done by then. The forger's port, if `target` answered.
    ///
    /// # Errors
    /// If the fence does not answer.
    pub fn handshake(&mut self, target: SocketAddr, fence: SocketAddr) -> Result<Option<u16>> {
        let (port, fence_port) = (self.port, self.port + 1);
        self.port += 2;
        let begun = Instant::now();
        self.send(port, target, flag::SYN, (1, 0))?;
        let mut answered = None;
        let mut buffer = vec![0; 2048];
        self.send(fence_port, fence, flag::SYN, (1, 0))?;
        loop {
            ensure!(begun.elapsed() < SOON, "{fence} must answer, and does not");
            let Ok(length) = self.raw.receive(&mut buffer) else {
                self.send(fence_port, fence, flag::SYN, (1, 0))?;
                continue;
            };
            let Some(segment) = Segment::read(&buffer[..length]) else { continue };
            let to = segment.destination.port();
            if !segment.has(flag::SYN | flag::ACK) || (to != port && to != fence_port) {
                continue;
            }
            let from = if to == port { target } else { fence };
            self.send(to, from, flag::ACK, (2, segment.sequence.wrapping_add(1)))?;
            if to == port {
                answered = Some(port);
            } else {
                return Ok(answered);
            }
        }
    }

    fn send(&self, port: u16, destination: SocketAddr, flags: u8, (sequence, acknowledged): (u32, u32)) -> Result<()> {
        let [v4, v6] = self.addresses;
        let source = SocketAddr::new(if destination.is_ipv4() { v4 } else { v6 }, port);
        let segment = Segment { source, destination, sequence, acknowledged, flags, payload: Vec::new() };
        self.raw.send(&segment.frame(self.raw.hardware(), self.victim))
    }
}
