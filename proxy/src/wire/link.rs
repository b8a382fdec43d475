//! One mutual-TLS connection between two sidecars, after its handshake: frames in, frames out.
//!
//! `tls` makes it, the journeys and `relay` use it, `pool` keeps it. It is poll-based, so that one task moves both
//! directions with few wake-ups, and holds no buffer while nothing waits. It must never hand out bytes of one
//! application connection as another's: parsing stops where the sink says so.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustls::AlertDescription;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

use super::frame::{self, Event, Parser, ProtocolError, Took};
use super::out::Out;
use super::records::{Opened, RecordError, Records};
use super::{BUFFER, with_network_buffer, with_plain_buffer, with_sealed_buffer};

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
    Tls(#[from] RecordError),
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
            Self::Tls(RecordError::Alert(alert)) if refuses_us(*alert) => "handshake_failed",
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
    records: Records,
    out: Out,
    /// The beginning of a record that is not whole yet. An idle link has none.
    begun: Vec<u8>,
    parser: Parser,
    /// Plaintext that arrived and was not taken. Bounded: the socket is not read while there is some.
    carry: Option<Box<Carry>>,
    /// `begun` is what was read beyond the handshake, and may hold whole records.
    fresh: bool,
    ended: bool,
    /// See [`Link::owe_fin`].
    owes_fin: bool,
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
    /// Takes over a connection whose handshake is complete; `unread` is what was read beyond it.
    #[must_use]
    pub fn new(io: TcpStream, records: Records, unread: Vec<u8>) -> Self {
        let fresh = !unread.is_empty();
        Self {
            io,
            records,
            out: Out::default(),
            begun: unread,
            parser: Parser::default(),
            carry: None,
            fresh,
            ended: false,
            owes_fin: false,
        }
    }

    /// Whether nothing of an application connection waits to be taken.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.carry.is_none() && self.begun.is_empty() && self.parser.is_between_frames()
    }

    /// Seals bytes as one write: they leave with the next [`Link::poll_flush`].
    ///
    /// # Errors
    /// When TLS cannot encrypt any more.
    pub fn seal(&mut self, parts: &[&[u8]]) -> Result<(), LinkError> {
        if std::mem::take(&mut self.owes_fin) {
            let with_fin: Vec<&[u8]> = std::iter::once(&frame::FIN[..]).chain(parts.iter().copied()).collect();
            return Ok(self.records.seal(&with_fin, &mut self.out)?);
        }
        Ok(self.records.seal(parts, &mut self.out)?)
    }

    /// `FIN` is due and nobody waits for it: it leaves with whatever is sealed next, before that, in the same record. A link that is dropped
    /// pays first.
    pub fn owe_fin(&mut self) {
        self.owes_fin = true;
    }

    /// Whether a `FIN` is due.
    #[must_use]
    pub fn owes_fin(&self) -> bool {
        self.owes_fin
    }

    /// Sends the `FIN` that is due, now. False: the link is of no more use.
    pub fn pay_fin(&mut self) -> bool {
        !self.owes_fin || (self.seal(&[]).is_ok() && self.out.try_flush(&self.io).is_ok())
    }

    /// Whether sealed bytes wait for the socket.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        !self.out.is_empty()
    }

    /// Writes sealed bytes to the socket until none wait.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.out.poll_flush(&mut self.io, cx).map_err(LinkError::Io)
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
            let unread = std::mem::take(&mut self.begun);
            if self.feed(&unread, &mut *sink)? {
                return Poll::Ready(Ok(if self.carry.is_none() { Step::Progress } else { Step::Stopped }));
            }
        }
        if self.ended {
            return Poll::Ready(Ok(Step::Ended));
        }
        with_sealed_buffer(|buffer| {
            let begun = self.begun.len();
            let mut read = ReadBuf::new(&mut buffer[begun..begun + BUFFER]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            let length = read.filled().len();
            if length == 0 {
                self.ended = true;
                return Poll::Ready(Ok(Step::Ended));
            }
            buffer[..begun].copy_from_slice(&std::mem::take(&mut self.begun));
            self.feed(&buffer[..begun + length], sink)?;
            Poll::Ready(Ok(if self.carry.is_none() { Step::Progress } else { Step::Stopped }))
        })
    }

    /// Opens what came and hands it on, as one piece: the app is written to once for many records. What the sink does not take is
    /// carried, a record that is not whole is kept. True: there was plaintext.
    fn feed(&mut self, sealed: &[u8], sink: Sink<'_>) -> Result<bool, LinkError> {
        with_plain_buffer(|plain| {
            let (mut at, mut filled, mut broken) = (0, 0, None);
            while !self.ended {
                match self.records.open(&sealed[at..], &mut plain[filled..]) {
                    Ok(None) => break,
                    Ok(Some((taken, opened))) => {
                        at += taken;
                        match opened {
                            Opened::Data(length) => filled += length,
                            Opened::Nothing => {}
                            Opened::Closed => self.ended = true, // nothing after it counts
                        }
                    }
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            self.hand_on(&plain[..filled], sink)?;
            if let Some(error) = broken {
                self.records.seal_alert(error, &mut self.out);
                // Best effort.
                let _ = self.out.try_flush(&self.io);
                return Err(error.into());
            }
            if !self.ended && at < sealed.len() {
                self.begun = sealed[at..].to_vec();
            }
            Ok(filled > 0)
        })
    }

    fn hand_on(&mut self, plain: &[u8], sink: Sink<'_>) -> Result<(), LinkError> {
        let used = self.parser.parse(plain, sink)?;
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
        match self.peek() {
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
        let harmless = matches!(step, Poll::Ready(Ok(Step::Progress))) && !spoilt && !self.ended;
        harmless
            && self.is_between_frames()
            && !self.wants_flush()
            && self.peek().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    fn peek(&self) -> io::Result<usize> {
        socket2::SockRef::from(&self.io).peek(&mut [std::mem::MaybeUninit::uninit()])
    }

    /// Ends the connection so that what was written last still arrives: flush, end of TLS, half-close, then what
    /// comes is read and dropped for a while (an early reset would destroy our last frame). Bounded in bytes and time.
    pub async fn close(mut self) {
        if (self.owes_fin && self.seal(&[]).is_err()) || self.records.seal_end(&mut self.out).is_err() {
            return;
        }
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

    /// New traffic keys, of both sides (TLS 1.3 `KeyUpdate`).
    #[cfg(test)]
    pub fn refresh_keys(&mut self) -> Result<(), LinkError> {
        Ok(self.records.renew_keys(true, &mut self.out)?)
    }
}

/// Without its `FIN`, a connection that ended well would end as a reset.
impl Drop for Link {
    fn drop(&mut self) {
        self.pay_fin();
    }
}
