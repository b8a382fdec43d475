//! One mutual-TLS connection between two sidecars, after its handshake: frames in, frames out.
//!
//! `tls` makes it, the journeys and `relay` use it, `pool` keeps it. It is poll-based, so that one task moves both
//! directions with few wake-ups, and holds no buffer while nothing waits. It must never hand out bytes of one
//! application connection as another's: parsing stops where the sink says so.

use std::io::{self, IoSlice, Read as _, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustls::{AlertDescription, Connection};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

use super::frame::{Event, Parser, ProtocolError, Took};
use super::{with_network_buffer, with_plain_buffer};

/// Most bytes that are read and thrown away before an ending connection is closed.
const DRAIN_BYTES: usize = 64 * 1024;
/// Longest time that takes.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Why a link can carry nothing more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// A record did not decrypt or broke TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer broke the frame rules.
    #[error("frames: {0}")]
    Frames(#[from] ProtocolError),
}

impl LinkError {
    /// Metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "peer_gone",
            // A TLS 1.3 client learns of it after its own side of the handshake.
            Self::Tls(rustls::Error::AlertReceived(alert)) if refuses_us(*alert) => "handshake_failed",
            Self::Tls(_) => "tls_broken",
            Self::Frames(_) => "protocol_error",
        }
    }
}

/// Whether the peer does not take our certificate (RFC 8446 section 6.2).
fn refuses_us(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
            | A::CertificateRequired
    )
}

/// What a poll for events came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something was read; poll again.
    Progress,
    /// The sink stopped, and bytes wait here.
    Stopped,
    /// The peer sends nothing more: end of TLS or of TCP.
    Ended,
}

/// Who calls the sink: a closure over what the events act on.
pub type Sink<'s> = &'s mut dyn FnMut(Event<'_>) -> Result<Took, ProtocolError>;

/// A framed TLS connection.
pub struct Link {
    io: TcpStream,
    tls: Connection,
    parser: Parser,
    /// Plaintext that arrived and was not taken. Bounded: the socket is not read while there is some.
    carry: Option<Box<Carry>>,
    /// rustls holds plaintext from the handshake's last read.
    fresh: bool,
    ended: bool,
}

/// See [`Link::carry`]; boxed, as an idle link has none.
#[derive(Default)]
struct Carry {
    bytes: Vec<u8>,
    /// So many of them were taken since.
    taken: usize,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.carry.as_ref().map_or(0, |carry| carry.bytes.len() - carry.taken);
        f.debug_struct("Link").field("waiting", &waiting).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Link {
    /// Takes over a connection whose handshake is complete.
    #[must_use]
    pub fn new(io: TcpStream, mut tls: Connection) -> Self {
        // Bounded by us: nothing is sealed while sealed bytes wait.
        tls.set_buffer_limit(None);
        Self { io, tls, parser: Parser::default(), carry: None, fresh: true, ended: false }
    }

    /// Whether nothing of an application connection waits to be taken.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.carry.is_none() && !self.fresh && self.parser.is_between_frames()
    }

    /// Seals bytes as one write: they leave with the next [`Link::poll_flush`].
    ///
    /// # Errors
    /// When TLS cannot encrypt any more.
    pub fn seal(&mut self, parts: &[IoSlice<'_>]) -> Result<(), LinkError> {
        let all: usize = parts.iter().map(|p| p.len()).sum();
        let written = self.tls.writer().write_vectored(parts)?;
        if written == all { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero).into()) }
    }

    /// Whether sealed bytes wait for the socket.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        self.tls.wants_write()
    }

    /// Writes sealed bytes to the socket until none wait.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        while self.tls.wants_write() {
            let mut socket = PollWriter { io: &mut self.io, cx };
            match self.tls.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into())),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Hands what arrived to the sink: first what waits here, then one read of the socket.
    ///
    /// # Errors
    /// When the socket fails, TLS breaks, or the peer breaks the frame rules. The link is of no more use then.
    pub fn poll_events(&mut self, cx: &mut Context<'_>, sink: Sink<'_>) -> Poll<Result<Step, LinkError>> {
        if let Some(carry) = &mut self.carry {
            carry.taken += self.parser.parse(&carry.bytes[carry.taken..], &mut *sink)?;
            if carry.taken < carry.bytes.len() {
                return Poll::Ready(Ok(Step::Stopped));
            }
            self.carry = None;
            return Poll::Ready(Ok(Step::Progress));
        }
        if self.fresh {
            self.fresh = false;
            if self.feed(&[], sink)? {
                return Poll::Ready(Ok(Step::Progress));
            }
        }
        if self.ended {
            return Poll::Ready(Ok(Step::Ended));
        }
        with_network_buffer(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(Step::Ended));
            }
            self.feed(buffer.filled(), sink)?;
            Poll::Ready(Ok(if self.carry.is_none() { Step::Progress } else { Step::Stopped }))
        })
    }

    /// Decrypts what came and hands it on, as one piece: the app is written to once for many records. What the sink does not take is
    /// carried. True: there was plaintext.
    fn feed(&mut self, mut sealed: &[u8], sink: Sink<'_>) -> Result<bool, LinkError> {
        with_plain_buffer(|plain| {
            let (mut any, mut filled, mut stopped) = (false, 0, false);
            loop {
                filled += self.take_plaintext(&mut plain[filled..])?;
                any |= filled > 0;
                if filled == plain.len() {
                    self.hand_on(&plain[..filled], &mut stopped, &mut *sink)?;
                    filled = 0;
                    continue;
                }
                if sealed.is_empty() || self.tls.read_tls(&mut sealed)? == 0 {
                    break; // after close_notify nothing more counts
                }
                if let Err(e) = self.tls.process_new_packets() {
                    // Best effort: tell the peer by an alert. What was decrypted by the same call is dropped with the link.
                    let _ = self.poll_flush(&mut Context::from_waker(Waker::noop()));
                    self.hand_on(&plain[..filled], &mut stopped, sink)?;
                    return Err(e.into());
                }
            }
            self.hand_on(&plain[..filled], &mut stopped, sink)?;
            Ok(any)
        })
    }

    /// So many bytes were decrypted and wait in rustls; none are left there unless `plain` is full.
    fn take_plaintext(&mut self, plain: &mut [u8]) -> Result<usize, LinkError> {
        let mut filled = 0;
        while filled < plain.len() {
            match self.tls.reader().read(&mut plain[filled..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(length) => filled += length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(filled)
    }

    fn hand_on(&mut self, plain: &[u8], stopped: &mut bool, sink: Sink<'_>) -> Result<(), LinkError> {
        let mut used = 0;
        if !*stopped {
            used = self.parser.parse(plain, |event| {
                let took = sink(event)?;
                *stopped |= took != Took::All;
                Ok(took)
            })?;
        }
        if used < plain.len() {
            self.carry.get_or_insert_default().bytes.extend_from_slice(&plain[used..]);
        }
        Ok(())
    }

    /// Whether a kept link may carry another application connection: all that is pending is read through TLS
    /// first, and any frame or an end spoils it.
    pub fn is_quiet(&mut self) -> bool {
        if self.ended || !self.is_between_frames() || self.wants_flush() {
            return false;
        }
        let mut byte = [std::mem::MaybeUninit::uninit()];
        match socket2::SockRef::from(&self.io).peek(&mut byte) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        let mut spoilt = false;
        let mut cx = Context::from_waker(Waker::noop());
        // A record without a frame in it (KeyUpdate) does no harm; what is still unread after it does.
        let step = self.poll_events(&mut cx, &mut |_| {
            spoilt = true;
            Ok(Took::Stop)
        });
        matches!(step, Poll::Ready(Ok(Step::Progress))) && !spoilt && self.is_between_frames() && !self.wants_flush()
    }

    /// Ends the connection so that what was written last still arrives: flush, end of TLS, half-close, then what
    /// comes is read and dropped for a while (an early reset would destroy our last frame). Bounded in bytes and time.
    pub async fn close(mut self) {
        self.tls.send_close_notify();
        let _ = tokio::time::timeout(DRAIN_TIME, async {
            if std::future::poll_fn(|cx| self.poll_flush(cx)).await.is_err() {
                return;
            }
            if std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await.is_err() {
                return;
            }
            let mut drained = 0;
            while drained < DRAIN_BYTES {
                match std::future::poll_fn(|cx| self.poll_discard(cx)).await {
                    Ok(0) | Err(_) => return,
                    Ok(n) => drained += n,
                }
            }
        })
        .await;
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        with_network_buffer(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// The TCP connection beneath.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.io
    }

    /// Asks for new traffic keys (TLS 1.3 KeyUpdate).
    ///
    /// # Errors
    /// When TLS does not allow it now.
    pub fn refresh_keys(&mut self) -> Result<(), LinkError> {
        Ok(self.tls.refresh_traffic_keys()?)
    }
}

/// The socket as rustls wants to write it.
struct PollWriter<'a, 'c> {
    io: &'a mut TcpStream,
    cx: &'a mut Context<'c>,
}

impl Write for PollWriter<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.io).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn would_block(polled: Poll<io::Result<usize>>) -> io::Result<usize> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
