//! A gRPC channel over our own TLS: each time it connects it takes the credentials of that moment, dials with the mark, and
//! expects one exact SPIFFE id.
//!
//! Called by `ca` and by the proxy's controller client. Must never connect with expired credentials, and never to anybody
//! else than the id it was made for.

use std::error::Error;
use std::time::Duration;

use countersign_api::names::ALPN_H2;
use countersign_identity::{BundleSet, Purpose, SpiffeId};
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::Watch;
use crate::clock::SharedClock;
use crate::dial::{DialError, dial_host};
use crate::handshake::{HandshakeError, connect, connect_anonymous};
use crate::lived::{Life, Lived};
use crate::window::connection_window;

const DIAL_LIMIT: Duration = Duration::from_secs(10);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const PING_EACH: Duration = Duration::from_secs(20);
const PING_LIMIT: Duration = Duration::from_secs(10);
/// Bytes in flight to us of one stream, and so the most that waits for us to read it.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The smallest message of a stream that comes to us, with its gRPC header: nobody is at an IPv4 address.
const SMALLEST: u32 = 17;
/// Never reached by our one stream; small answers that wait while rules are compiled must not end the connection.
const CONNECTION_WINDOW: u32 = connection_window(STREAM_WINDOW, SMALLEST);
const HEADER_LIST: u32 = 16 * 1024;
/// Requests waiting in the channel, and under way.
const WAITING: usize = 64;

/// As whom a channel connects.
#[derive(Clone, Debug)]
pub enum TlsAs {
    /// With the SVID and the bundles that are current when it connects.
    Ourselves(Watch),
    /// Without an SVID, judging the server by these bundles: how the first SVID is asked for.
    Nobody(BundleSet, SharedClock),
}

/// Where a channel leads.
#[derive(Clone, Debug)]
pub struct ChannelSettings {
    /// `host:port`, several separated by commas, tried in this order.
    pub address: String,
    /// The only identity that is accepted there.
    pub expected: SpiffeId,
    /// As whom to connect.
    pub tls: TlsAs,
    /// Socket mark that exempts us from our own redirect.
    pub mark: Option<u32>,
}

/// Why a channel could not connect.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// We have no SVID yet.
    #[error("no SVID of our own yet")]
    NoCredentials,
    /// Our SVID has ended and was not renewed.
    #[error("our own SVID has expired")]
    Expired,
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// TCP, but no TLS with the expected peer.
    #[error("{address}: {source}")]
    Handshake {
        /// As configured.
        address: String,
        /// How it ended.
        #[source]
        source: HandshakeError,
    },
}

impl ChannelError {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::Expired => "own_svid_expired",
            Self::Dial(error) => error.label(),
            Self::Handshake { source, .. } => source.label(),
        }
    }

    /// The connect error behind a failed call, if that is why it failed.
    pub fn behind(status: &tonic::Status) -> Option<&Self> {
        causes(status).find_map(|cause| cause.downcast_ref())
    }
}

/// A lazy channel: connects at the first call, and again after each loss. Backing off is the caller's part.
pub fn channel(settings: ChannelSettings) -> Channel {
    let connector = tower::service_fn(move |_: http::Uri| {
        let settings = settings.clone();
        async move { settings.connect().await.map(TokioIo::new) }
    });
    // The URI fills HTTP/2's authority only; where to connect and whom to expect are the settings'.
    Endpoint::from_static("http://countersign")
        .http2_keep_alive_interval(PING_EACH)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(HEADER_LIST)
        .buffer_size(WAITING)
        .concurrency_limit(WAITING)
        .connect_with_connector_lazy(connector)
}

/// What went wrong, with the causes below it: a transport error alone says only "transport error".
pub fn reason(status: &tonic::Status) -> String {
    match ChannelError::behind(status) {
        Some(error) => error.to_string(),
        None => causes(status).last().map_or_else(
            || format!("{:?}: {}", status.code(), status.message()),
            |deepest| format!("{:?}: {}: {deepest}", status.code(), status.message()),
        ),
    }
}

fn causes(status: &tonic::Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |cause: &&(dyn Error + 'static)| (*cause).source())
}

impl ChannelSettings {
    async fn connect(self) -> Result<Lived<TlsStream<TcpStream>>, ChannelError> {
        match &self.tls {
            TlsAs::Ourselves(watch) => self.connect_as_ourselves(watch.clone()).await,
            TlsAs::Nobody(bundles, clock) => self.connect_as_nobody(bundles, clock).await,
        }
    }

    async fn connect_as_ourselves(&self, mut watch: Watch) -> Result<Lived<TlsStream<TcpStream>>, ChannelError> {
        // Marks this value as seen: what is published from here on wakes the connection's own end.
        let credentials = watch.borrow_and_update().clone().ok_or(ChannelError::NoCredentials)?;
        if credentials.expired() {
            return Err(ChannelError::Expired);
        }
        let tcp = dial_host(&self.address, self.mark, DIAL_LIMIT).await?;
        let (stream, peer) = connect(tcp, &credentials, &[ALPN_H2], &self.expected, HANDSHAKE_LIMIT)
            .await
            .map_err(|source| self.failed(source))?;
        let until = credentials.expires_at().min(peer.path_not_after());
        let clock = SharedClock::clone(credentials.clock());
        let (bundles, chain) = (credentials.bundles().clone(), shown(&stream));
        let (watch, purpose) = (Some(watch), Purpose::Server);
        Ok(Lived::new(stream, Life { until, clock, watch, bundles, chain, purpose, most: None }))
    }

    async fn connect_as_nobody(
        &self,
        bundles: &BundleSet,
        clock: &SharedClock,
    ) -> Result<Lived<TlsStream<TcpStream>>, ChannelError> {
        let tcp = dial_host(&self.address, self.mark, DIAL_LIMIT).await?;
        let (stream, peer) = connect_anonymous(tcp, bundles, clock, &[ALPN_H2], &self.expected, HANDSHAKE_LIMIT)
            .await
            .map_err(|source| self.failed(source))?;
        let (until, clock) = (peer.path_not_after(), SharedClock::clone(clock));
        let (bundles, chain) = (bundles.clone(), shown(&stream));
        let purpose = Purpose::Server;
        Ok(Lived::new(stream, Life { until, clock, watch: None, bundles, chain, purpose, most: None }))
    }

    fn failed(&self, source: HandshakeError) -> ChannelError {
        ChannelError::Handshake { address: self.address.clone(), source }
    }
}

/// The chain that the server showed.
fn shown(stream: &TlsStream<TcpStream>) -> Vec<CertificateDer<'static>> {
    stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests;
