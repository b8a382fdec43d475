//! App socket <-> framed link, for one `OPEN`..`FIN`.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::Flow;
use crate::permit::Permit;
use crate::wire::frame::{self, Event, HEADER, ProtocolError, Status, Took};
use crate::wire::link::{Link, LinkError, Step};
use crate::wire::with_app_buffer;

/// The server side's `STATUS` accepted waits at most so long for the app's first bytes, to leave with them in one record: one write,
/// one packet and one wake-up of the client side less. Nobody waits for it: the client side has only to forget what it holds.
const STATUS_WAITS: Duration = Duration::from_millis(1);

/// Which end of the link we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We dialled: we say `OPEN` and await `STATUS`.
    Client,
    /// We accepted: we say `STATUS`.
    Server,
}

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// Both halves closed well and all is flushed, but perhaps for a `FIN` that the link owes: it may carry another connection.
    Done,
    /// The app's socket was reset or failed. The peer has yet to be told.
    AppReset,
    /// The peer's application connection was reset.
    PeerReset,
    /// TLS or TCP ended without `FIN`, or the peer broke the rules: a reset, never a clean end.
    PeerGone(Option<LinkError>),
    /// The server side said no. Client side only, before any byte came.
    Refused(Status),
    /// The server side was closing the link as we used it. No byte reached the app.
    Closing,
}

/// Client side: all bytes sent before the server side accepted, as long as they are few: with them another try is possible. Server
/// side: whether it has still to say that it accepted.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Vec<u8>,
    fin: bool,
    lost: bool,
    unsaid: bool,
}

impl Held {
    /// Most bytes held. Beyond, a refusal is final.
    pub const MOST: usize = 16 * 1024;

    /// Whether every byte taken from the app is still here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.lost
    }

    /// The bytes, for where no link takes them.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The server side's last frames where the relay ended early: `RST`, after a `STATUS` that is still unsaid, which is the first that
    /// is said, however soon the connection ends.
    #[must_use]
    pub fn reset(&self) -> Vec<u8> {
        let mut frames = if self.unsaid { frame::status(Status::Accepted) } else { Vec::new() };
        frames.extend_from_slice(&frame::RST);
        frames
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.lost || self.bytes.len() + bytes.len() > Self::MOST {
            *self = Self { lost: true, ..Self::default() };
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// `OPEN`, and what was sent after it the last time.
    fn open(&self) -> Vec<u8> {
        let mut prefix = frame::OPEN.to_vec();
        if !self.bytes.is_empty() {
            prefix.extend_from_slice(&frame::data_header(self.bytes.len()));
            prefix.extend_from_slice(&self.bytes);
        }
        if self.fin {
            prefix.extend_from_slice(&frame::FIN);
        }
        prefix
    }
}

/// Relays one application connection. Client side: sends `OPEN` with the first bytes in one record and waits for
/// nothing. Server side: `STATUS` accepted leaves with the app's first bytes, or alone if the app is silent ([`STATUS_WAITS`]); where
/// the relay is dropped or ends before that, [`Held::reset`] says it.
pub fn relay<'a>(
    _permit: &'a Permit,
    side: Side,
    app: &'a mut TcpStream,
    link: &'a mut Link,
    held: &'a mut Held,
    flow: &'a mut Flow,
) -> impl Future<Output = End> + Send + 'a {
    let prefix = match side {
        Side::Client => {
            flow.sent += held.bytes.len() as u64;
            held.open()
        }
        Side::Server => {
            held.unsaid = true;
            frame::status(Status::Accepted)
        }
    };
    let mut relay = Relay {
        accepted: side == Side::Server,
        app_eof: held.fin,
        app_deaf: false,
        net_fin: false,
        app_shut: false,
        end: None,
        wait: None,
        side,
        prefix,
        app,
        link,
        held,
        flow,
    };
    poll_fn(move |cx| relay.poll(cx))
}

struct Relay<'a> {
    side: Side,
    app: &'a mut TcpStream,
    link: &'a mut Link,
    held: &'a mut Held,
    flow: &'a mut Flow,
    /// Frames that leave with the first bytes.
    prefix: Vec<u8>,
    /// How long they wait for those.
    wait: Option<Pin<Box<Sleep>>>,
    accepted: bool,
    app_eof: bool,
    /// The app takes nothing more: it was reset. What it said before that is still on its way.
    app_deaf: bool,
    net_fin: bool,
    app_shut: bool,
    end: Option<End>,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            // Incoming first: a refusal that waits to be read tells more than the failure of our own write.
            let moved = self.poll_incoming(cx) | (self.end.is_none() && self.poll_outgoing(cx));
            if let Some(end) = self.end.take() {
                return Poll::Ready(self.last_words(end, cx));
            }
            if self.accepted && self.app_eof && self.app_shut && self.prefix.is_empty() && !self.link.wants_flush() {
                return Poll::Ready(End::Done);
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// A write that failed tells only that the peer is gone. What it said last may still wait to be read, and tells more; what stands
    /// before that is for an app that gets a reset in any case.
    fn last_words(&mut self, end: End, cx: &mut Context<'_>) -> End {
        if !matches!(end, End::PeerGone(Some(LinkError::Io(_)))) {
            return end;
        }
        self.app_deaf = true;
        while self.end.is_none() && self.poll_incoming(cx) {}
        match self.end.take() {
            Some(said @ (End::PeerReset | End::Refused(_) | End::Closing | End::PeerGone(Some(LinkError::Tls(_))))) => {
                said
            }
            _ => end,
        }
    }

    fn gone(&mut self, error: LinkError) {
        self.end = Some(End::PeerGone(Some(error)));
    }

    /// App to network: one read of the app, sealed and written. True: something moved.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> bool {
        if self.link.wants_flush() {
            match self.link.poll_flush(cx) {
                Poll::Pending => return false,
                Poll::Ready(Err(e)) => {
                    self.gone(e);
                    return false;
                }
                Poll::Ready(Ok(())) => {}
            }
        }
        let sealed = if self.app_eof { self.seal_prefix() } else { self.poll_app(cx) };
        match sealed {
            Ok(false) => false,
            Err(e) => {
                self.gone(e);
                false
            }
            Ok(true) => match self.link.poll_flush(cx) {
                Poll::Ready(Err(e)) => {
                    self.gone(e);
                    false
                }
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            },
        }
    }

    fn seal_prefix(&mut self) -> Result<bool, LinkError> {
        if self.prefix.is_empty() {
            return Ok(false);
        }
        self.seal_behind_prefix(&[])?;
        Ok(true)
    }

    fn seal_behind_prefix(&mut self, frames: &[u8]) -> Result<(), LinkError> {
        self.link.seal(&[&std::mem::take(&mut self.prefix), frames])?;
        self.held.unsaid = false;
        self.wait = None;
        Ok(())
    }

    /// Whether what is to leave with the app's first bytes waits for them.
    fn prefix_waits(&mut self, cx: &mut Context<'_>) -> bool {
        if self.side == Side::Client || self.prefix.is_empty() {
            return false;
        }
        self.wait.get_or_insert_with(|| Box::pin(sleep(STATUS_WAITS))).as_mut().poll(cx).is_pending()
    }

    /// Whether nobody waits for our `FIN`: the client side's, after the server side's own. It leaves with the next `OPEN`: one write, one packet
    /// and one wake-up of the server side less.
    fn fin_may_wait(&self) -> bool {
        self.side == Side::Client && self.accepted && self.net_fin && self.prefix.is_empty()
    }

    /// Reads the app and seals what came. True: something was sealed.
    fn poll_app(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        with_app_buffer(|buffer| {
            // As much as with its header and a `FIN` fills whole records.
            let most = buffer.len() - 2 * HEADER;
            let (mut length, mut fin) = (0, false);
            // An end that is known already is read at once, and leaves with the last bytes. Where it is not, a second read costs no
            // system call: a short one has told the runtime that no more is there.
            while length < most && !fin && self.end.is_none() {
                let mut read = ReadBuf::new(&mut buffer[HEADER + length..HEADER + most]);
                match Pin::new(&mut *self.app).poll_read(cx, &mut read) {
                    Poll::Pending => break,
                    Poll::Ready(Err(_)) => self.end = Some(End::AppReset),
                    // Not a clean end: the write before has told.
                    Poll::Ready(Ok(())) if read.filled().is_empty() && self.app_deaf => self.end = Some(End::AppReset),
                    Poll::Ready(Ok(())) if read.filled().is_empty() => fin = true,
                    Poll::Ready(Ok(())) => length += read.filled().len(),
                }
            }
            if length == 0 && fin && self.fin_may_wait() {
                self.app_eof = true;
                self.link.owe_fin();
                return Ok(false);
            }
            if length == 0 && !fin {
                return if self.end.is_some() || self.prefix_waits(cx) { Ok(false) } else { self.seal_prefix() };
            }
            let mut frames = HEADER..HEADER + length;
            if length > 0 {
                frames.start = 0;
                buffer[..HEADER].copy_from_slice(&frame::data_header(length));
                if !self.accepted {
                    self.held.add(&buffer[HEADER..HEADER + length]);
                }
                *match self.side {
                    Side::Client => &mut self.flow.sent,
                    Side::Server => &mut self.flow.received,
                } += length as u64;
            }
            if fin {
                buffer[frames.end..frames.end + HEADER].copy_from_slice(&frame::FIN);
                frames.end += HEADER;
                self.app_eof = true;
                self.held.fin = !self.accepted;
            }
            self.seal_behind_prefix(&buffer[frames])?;
            Ok(true)
        })
    }

    /// Network to app: what waits, or one read of the link. True: something moved.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> bool {
        if self.end.is_some() || (self.net_fin && self.app_eof) {
            return false; // both halves are over: what follows belongs to the next OPEN
        }
        let mut blocked = false;
        let mut inner = Context::from_waker(cx.waker());
        let Self { side, app, link, flow, accepted, app_eof, app_deaf, net_fin, end, held, .. } = self;
        let received = match side {
            Side::Client => &mut flow.received,
            Side::Server => &mut flow.sent,
        };
        let polled = link.poll_events(cx, &mut |event| match event {
            Event::Status(status) if *side == Side::Client && !*accepted => {
                if status == Status::Accepted {
                    *accepted = true;
                    **held = Held::default();
                    return Ok(Took::All);
                }
                *end = Some(End::Refused(status));
                Ok(Took::Stop)
            }
            Event::Closing if *side == Side::Client && !*accepted => {
                *end = Some(End::Closing);
                Ok(Took::Stop)
            }
            Event::Rst if *accepted => {
                *end = Some(End::PeerReset);
                Ok(Took::Stop)
            }
            Event::Fin if *accepted && !*net_fin => {
                *net_fin = true;
                Ok(Took::Stop)
            }
            Event::Data(_) if *accepted && !*net_fin && *app_deaf => Ok(Took::All),
            Event::Data(data) if *accepted && !*net_fin => match Pin::new(&mut **app).poll_write(&mut inner, data) {
                Poll::Ready(Ok(written)) => {
                    *received += written as u64;
                    Ok(if written == data.len() { Took::All } else { Took::Some(written) })
                }
                Poll::Ready(Err(_)) if *app_eof => {
                    *end = Some(End::AppReset);
                    Ok(Took::Stop)
                }
                Poll::Ready(Err(_)) => {
                    *app_deaf = true;
                    Ok(Took::All)
                }
                Poll::Pending => {
                    blocked = true;
                    Ok(Took::Some(0))
                }
            },
            other => Err(ProtocolError::OutOfTurn(other.name())),
        });
        match polled {
            Poll::Pending => return false,
            Poll::Ready(Err(e)) => {
                self.gone(e);
                return false;
            }
            Poll::Ready(Ok(Step::Ended)) if self.end.is_none() => {
                self.end = Some(End::PeerGone(None));
                return false;
            }
            Poll::Ready(Ok(_)) => {}
        }
        if self.net_fin && !self.app_shut {
            // The kernel closes the write half at once; an app that is gone already shows in the other half.
            let _ = Pin::new(&mut *self.app).poll_shutdown(cx);
            self.app_shut = true;
        }
        !blocked
    }
}
