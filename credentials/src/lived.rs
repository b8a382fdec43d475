//! A connection that ends with its credentials: at the earlier end of the two leaves, and at once when a new bundle no longer
//! vouches for the peer's chain (ARCHITECTURE.md, credentials).
//!
//! Made by `channel` and `incoming` for gRPC in both directions; the proxy's own connections have their own deadline. One
//! task must do all reading and writing (as hyper's connection task does): the end wakes whoever polled last.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::{BundleChange, BundleSet, Purpose};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::Watch;
use crate::clock::SharedClock;

/// The wall clock is asked at least so often: it may be set while we sleep.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Why a connection was ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// One of the two leaves ended.
    #[error("the credentials of this connection have expired")]
    Expired,
    /// The bundle changed and does not vouch for the peer any more.
    #[error("the trust bundle no longer vouches for the peer of this connection")]
    Revoked,
    /// A client without a certificate stayed longer than it takes to get one.
    #[error("the time of a client without a certificate is over")]
    Overstayed,
}

/// What a connection's life hangs on.
pub(crate) struct Life {
    pub(crate) until: UnixTime,
    pub(crate) clock: SharedClock,
    /// New bundles come from here; `None` for a connection made before the first SVID.
    pub(crate) watch: Option<Watch>,
    /// By which the peer was judged; only a set that lost a root makes us judge it again.
    pub(crate) bundles: BundleSet,
    /// The peer's chain as shown, leaf first; empty when it showed none.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) purpose: Purpose,
    /// The longest that the connection may last, whatever its credentials.
    pub(crate) most: Option<Duration>,
}

/// A stream that fails with [`Ended`] when its credentials no longer hold.
pub struct Lived<S> {
    inner: S,
    end: Pin<Box<dyn Future<Output = Ended> + Send>>,
    ended: Option<Ended>,
}

impl<S> Lived<S> {
    pub(crate) fn new(inner: S, life: Life) -> Self {
        let leave_at = life.most.map(|most| Instant::now() + most);
        let end = async move {
            tokio::select! {
                ended = life.end() => ended,
                () = come(leave_at) => Ended::Overstayed,
            }
        };
        Self { inner, end: Box::pin(end), ended: None }
    }

    /// The stream itself.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.ended.is_none()
            && let Poll::Ready(ended) = self.end.as_mut().poll(cx)
        {
            self.ended = Some(ended);
        }
        self.ended.map_or(Ok(()), |ended| Err(io::Error::new(io::ErrorKind::ConnectionAborted, ended)))
    }
}

impl Life {
    async fn end(mut self) -> Ended {
        loop {
            let now = self.clock.now();
            if now > self.until {
                return Ended::Expired;
            }
            let left = Duration::from_secs(self.until.as_secs() - now.as_secs() + 1);
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
                changed = changed(&mut self.watch) => {
                    if changed && !self.still_vouched() {
                        return Ended::Revoked;
                    }
                }
            }
        }
    }

    fn still_vouched(&mut self) -> bool {
        let Some(credentials) = self.watch.as_ref().and_then(|watch| watch.borrow().clone()) else {
            return true;
        };
        let change = credentials.bundles().compare(&self.bundles);
        self.bundles = credentials.bundles().clone();
        change != BundleChange::Lost || self.chain.is_empty() || credentials.reverify(&self.chain, self.purpose).is_ok()
    }
}

/// Returns at that time; never if there is none.
async fn come(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// True on a change; never when nobody will publish any more.
async fn changed(watch: &mut Option<Watch>) -> bool {
    if let Some(live) = watch {
        if live.changed().await.is_ok() {
            return true;
        }
        *watch = None;
    }
    std::future::pending().await
}

impl<S: AsyncRead + Unpin> AsyncRead for Lived<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.alive(cx)?;
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lived<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.alive(cx)?;
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.alive(cx)?;
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
#[cfg(test)]
mod tests;
