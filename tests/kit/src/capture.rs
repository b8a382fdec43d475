//! What passes the link between the pods, kept in memory.
//!
//! Made by tests and the demo, to show what a neighbour on the link can see. It must never claim to have seen all when it
//! did not: [`Captured::whole`] and the flows' own gaps say so.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::flow::{Flow, flows};
use crate::lacks::Here as _;
use crate::net::{BRIDGE, Net};
use crate::packet::Segment;
use crate::raw::Raw;
use crate::wait::wait_for;

/// Longest frame: with segmentation offload, 64 KiB and its headers.
const LONGEST: usize = 128 * 1024;
/// Between two looks at whether to stop.
const PATIENCE: Duration = Duration::from_millis(20);
/// IEEE 802: for local experiments. Marks the end of a capture.
const FENCE: [u8; 2] = [0x88, 0xb5];

/// A capture that is going on.
pub struct Capture {
    stop: Arc<AtomicBool>,
    fenced: Arc<AtomicBool>,
    thread: JoinHandle<Captured>,
    fence: Raw,
}

/// What was captured.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    frames: Vec<Vec<u8>>,
    bytes: usize,
    overflow: bool,
}

impl Capture {
    /// Starts; every frame sent on the link after this returns is captured, until `bound` bytes are held.
    ///
    /// # Errors
    /// If no packet socket can be had ([`crate::Lacks`]).
    pub fn start(net: &Net, bound: usize) -> Result<Self> {
        // The bridge hands us what it forwards only if it believes that somebody listens for it.
        net.link().ip(&format!("link set {BRIDGE} promisc on\n")).here()?;
        let raw = Raw::open(net.link(), BRIDGE)?;
        raw.set_patience(PATIENCE)?;
        let (stop, fenced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, saw_fence) = (Arc::clone(&stop), Arc::clone(&fenced));
        let thread = std::thread::spawn(move || read(&raw, bound, &stopped, &saw_fence));
        Ok(Self { stop, fenced, thread, fence: Raw::open(net.link(), BRIDGE)? })
    }

    /// Ends it; all that was sent before is in what it returns.
    ///
    /// # Errors
    /// If the capture itself failed ([`crate::Lacks`]).
    pub fn finish(self) -> Result<Captured> {
        let mut fence = [&[0xff; 6][..], &self.fence.hardware(), &FENCE].concat();
        fence.resize(60, 0);
        self.fence.send(&fence).here()?;
        let seen =
            wait_for(Duration::from_secs(10), "the capture's own last frame", || self.fenced.load(Ordering::Acquire));
        self.stop.store(true, Ordering::Release);
        let captured = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seen.here()?;
        Ok(captured)
    }
}

fn read(raw: &Raw, bound: usize, stop: &AtomicBool, fenced: &AtomicBool) -> Captured {
    let mut captured = Captured::default();
    let mut buffer = vec![0; LONGEST];
    while !stop.load(Ordering::Acquire) {
        match raw.receive(&mut buffer) {
            Ok(length) if buffer.get(12..14) == Some(&FENCE) && length == 60 => fenced.store(true, Ordering::Release),
            Ok(length) if captured.bytes + length > bound => captured.overflow = true,
            Ok(length) => {
                captured.bytes += length;
                captured.frames.push(buffer[..length].to_vec());
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => {
                captured.overflow = true; // the link is gone, or frames were lost
                break;
            }
        }
    }
    captured
}

impl Captured {
    /// Every frame, in order.
    #[must_use]
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }

    /// False if there was more than the bound, or reading failed.
    #[must_use]
    pub fn whole(&self) -> bool {
        !self.overflow
    }

    /// All TCP segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment> {
        self.frames.iter().filter_map(|frame| Segment::read(frame))
    }

    /// The TCP connections, put together from their segments, in order of their first.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        flows(self.segments())
    }

    /// The TCP connections to this address and port.
    #[must_use]
    pub fn flows_to(&self, server: SocketAddr) -> Vec<Flow> {
        self.flows().into_iter().filter(|flow| flow.server == server).collect()
    }

    /// Does any frame, or any connection's bytes in either direction put together, hold these bytes?
    #[must_use]
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let flows = self.flows();
        let streams = flows.iter().flat_map(|flow| [&flow.to_server.bytes, &flow.to_client.bytes]);
        self.frames.iter().chain(streams).any(|held| holds(held, bytes))
    }
}

fn holds(held: &[u8], bytes: &[u8]) -> bool {
    !bytes.is_empty() && held.windows(bytes.len()).any(|window| window == bytes)
}
