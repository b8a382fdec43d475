//! What is on the link between the pods: a packet capture of our own, and what can be said about it.
//!
//! Called by the claims. It must never rest on the word of the proxies: it sees frames, as any neighbour on the link does.

mod frames;
mod records;

use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

pub use frames::Stream;
pub use records::summary;

/// ETH_P_ALL (linux/if_ether.h): every protocol.
const EVERYTHING: u16 = 0x0003;
/// Segments are not cut to the link's size on virtual links.
const MAX_FRAME: usize = 256 * 1024;
/// How often the reader looks whether it is to stop.
const TICK: Duration = Duration::from_millis(50);

/// One frame and when it was read.
pub struct Frame {
    at: Duration,
    bytes: Vec<u8>,
}

/// All frames of a while.
#[derive(Default)]
pub struct Captured {
    frames: Vec<Frame>,
}

/// A capture that goes on.
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Captured>,
}

impl Capture {
    /// Starts on all devices of the namespace of the calling thread; what is sent after this returned is seen.
    pub fn start() -> Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(EVERYTHING.to_be()))))
            .context("a packet socket")?;
        // As much as the system lets us; losses show as gaps in a stream.
        let _ = socket.set_recv_buffer_size(8 * 1024 * 1024);
        socket.set_read_timeout(Some(TICK)).context("a packet socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let reader = std::thread::spawn(move || read_until(&told, socket));
        Ok(Self { stop, reader })
    }

    /// Stops; what was on the link before is in it.
    pub fn stop(self) -> Captured {
        self.stop.store(true, Ordering::Release);
        self.reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Reads on after the word to stop, until nothing is pending any more.
fn read_until(told: &AtomicBool, mut socket: Socket) -> Captured {
    let (mut captured, mut buffer) = (Captured::default(), vec![0; MAX_FRAME]);
    loop {
        let stopping = told.load(Ordering::Acquire);
        match socket.read(&mut buffer) {
            Ok(length) => {
                let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                captured.frames.push(Frame { at, bytes: buffer[..length].to_vec() });
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) && !stopping => {}
            Err(_) => return captured,
        }
    }
}

impl Captured {
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// The TCP streams from one of `from` to one of `to`, and back.
    pub fn streams(&self, from: &[IpAddr], to: &[IpAddr]) -> Vec<Stream> {
        frames::streams(self.frames.iter().map(|frame| frame.bytes.as_slice()), from, to)
    }

    /// How many frames between one of `from` and one of `to` hold these bytes, in any place.
    pub fn frames_with(&self, from: &[IpAddr], to: &[IpAddr], marker: &[u8]) -> usize {
        let between = self.frames.iter().filter(|frame| frames::is_between(&frame.bytes, from, to));
        between.filter(|frame| contains(&frame.bytes, marker)).count()
    }

    /// Writes it for other programs (pcap, Ethernet).
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.pcap()).with_context(|| path.display().to_string())
    }

    fn pcap(&self) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, u32::try_from(MAX_FRAME).unwrap_or(u32::MAX), 1] {
            file.extend(word.to_le_bytes());
        }
        for frame in &self.frames {
            let length = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX);
            let seconds = u32::try_from(frame.at.as_secs()).unwrap_or(u32::MAX);
            for word in [seconds, frame.at.subsec_micros(), length, length] {
                file.extend(word.to_le_bytes());
            }
            file.extend(&frame.bytes);
        }
        file
    }
}

/// Whether `bytes` hold `marker`.
pub fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    !marker.is_empty() && bytes.windows(marker.len()).any(|window| window == marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pcap_file_has_its_head_and_one_record_a_frame() {
        let captured = Captured { frames: vec![Frame { at: Duration::from_millis(1500), bytes: vec![7; 60] }] };
        let file = captured.pcap();
        assert_eq!(file.len(), 24 + 16 + 60);
        assert_eq!(file[..4], [0xd4, 0xc3, 0xb2, 0xa1]);
        assert_eq!(file[24..32], [1, 0, 0, 0, 0x20, 0xa1, 0x07, 0]);
    }

    #[test]
    fn a_marker_is_found_wherever_it_stands() {
        assert!(contains(b"..secret..", b"secret") && contains(b"secret", b"secret"));
        assert!(!contains(b"..secret..", b"secrets") && !contains(b"..secret..", b""));
    }
}
