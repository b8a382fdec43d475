//! gRPC over TLS: IssueSvid for whoever has a token, WatchBundle for whoever has an SVID, the table of holders for siblings. Started by `run`; the steps are in
//! `issue` and `watch`. Here are only the bounds of a connection and a call, and the words for a refusal.
//!
//! Calls are counted in `issue`, once their message has come whole: a slow sender holds no slot.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::ca::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use countersign_api::ca::siblings_server::SiblingsServer;
use countersign_api::ca::{
    HoldingReport, HoldingReportAnswer, IssueSvidRequest, IssueSvidResponse, TrustBundle, WatchBundleRequest,
};
use countersign_credentials::{Incoming, PeerInfo, grpc_server};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};

use crate::attest::MAX_TOKEN;
use crate::csr::MAX_CSR;
use crate::grant::GrantError;
use crate::issue::{Issuance, Refusal};
use crate::metrics::Metrics;
use crate::siblings::{Answers, Siblings};
use crate::watch::{Bundles, WatchEnd, WatchRefusal};

/// A request: CSR, token, and some numbers.
const MAX_REQUEST: usize = MAX_CSR + MAX_TOKEN + 1024;
/// From a call's first byte to its answer's first.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Calls at once on one connection.
const PER_CONNECTION: usize = 16;
/// A connection is made anew after this, so that a client's place is not held for ever.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// Calls under way when a connection has reached its age may end.
const GRACE: Duration = Duration::from_secs(10);
const PING_EACH: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(10);

/// The CA's gRPC service.
pub struct Service {
    issuance: Arc<Issuance>,
    bundles: Arc<Bundles>,
    metrics: Arc<Metrics>,
    siblings: Arc<Siblings>,
}

impl Service {
    /// Ties the parts together.
    pub fn new(issuance: Arc<Issuance>, bundles: Arc<Bundles>, metrics: Arc<Metrics>, siblings: Arc<Siblings>) -> Self {
        Self { issuance, bundles, metrics, siblings }
    }

    /// Serves until `shutdown`, then lets calls end.
    pub async fn serve(
        self,
        incoming: Incoming,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let siblings = SiblingsServer::new(Answers::new(Arc::clone(&self.siblings)));
        let service = CertificateAuthorityServer::new(self).max_decoding_message_size(MAX_REQUEST);
        grpc_server()
            .timeout(CALL_LIMIT)
            .load_shed(true)
            .concurrency_limit_per_connection(PER_CONNECTION)
            .max_concurrent_streams(PER_CONNECTION as u32)
            .max_connection_age(MAX_AGE)
            .max_connection_age_grace(GRACE)
            .http2_keepalive_interval(Some(PING_EACH))
            .http2_keepalive_timeout(Some(PING_LIMIT))
            .add_service(service)
            .add_service(siblings.max_decoding_message_size(MAX_REQUEST))
            .serve_with_incoming_shutdown(incoming, shutdown)
            .await
    }
}

#[tonic::async_trait]
impl CertificateAuthority for Service {
    async fn issue_svid(&self, request: Request<IssueSvidRequest>) -> Result<Response<IssueSvidResponse>, Status> {
        let source = peer(&request)?.address.ip().to_canonical();
        let answer = self.issuance.issue(request.into_inner(), source).await;
        answer.map(Response::new).map_err(|refusal| Status::new(code(&refusal), refusal.to_string()))
    }

    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<TrustBundle, Status>> + Send>>;

    async fn watch_bundle(
        &self,
        request: Request<WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let opened = self.bundles.watch(peer(&request)?.id.as_ref(), request.get_ref().known_generation);
        self.metrics.watch(opened.as_ref().map_or_else(WatchRefusal::label, |_| "open"));
        let stream = opened.map_err(|refusal| Status::new(watch_code(&refusal), refusal.to_string()))?;
        Ok(Response::new(Box::pin(stream.map(|bundle| bundle.map_err(end)))))
    }

    async fn report_holding(&self, request: Request<HoldingReport>) -> Result<Response<HoldingReportAnswer>, Status> {
        let reported = self.bundles.reported(peer(&request)?.id.as_ref(), request.get_ref());
        reported.map_err(|refusal| Status::new(watch_code(&refusal), refusal.to_string()))?;
        Ok(Response::new(HoldingReportAnswer {}))
    }
}

pub(crate) fn peer<T>(request: &Request<T>) -> Result<&PeerInfo, Status> {
    request.extensions().get().ok_or_else(|| Status::internal("the connection is unknown"))
}

fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Busy | Refusal::Rate { .. } => Code::ResourceExhausted,
        Refusal::Attest(error) if error.is_refusal() => Code::Unauthenticated,
        Refusal::Attest(_) => Code::Unavailable,
        Refusal::Csr(_) | Refusal::Grant(GrantError::TooShort { .. }) => Code::InvalidArgument,
        Refusal::Behind { .. } | Refusal::Grant(GrantError::Skew { .. }) => Code::FailedPrecondition,
        Refusal::Grant(GrantError::Identity(_) | GrantError::Reserved(_)) => Code::PermissionDenied,
        Refusal::Grant(GrantError::IssuerEnding { .. }) | Refusal::Audit(_) | Refusal::State(_) => Code::Unavailable,
        Refusal::Sign(_) => Code::Internal,
    }
}

fn watch_code(refusal: &WatchRefusal) -> Code {
    match refusal {
        WatchRefusal::NoSvid => Code::Unauthenticated,
        WatchRefusal::Stranger(_) => Code::PermissionDenied,
        WatchRefusal::TooMany => Code::ResourceExhausted,
    }
}

fn end(end: WatchEnd) -> Status {
    match end {
        WatchEnd::Expired => Status::unauthenticated(end.to_string()),
        WatchEnd::Shutdown => Status::unavailable(end.to_string()),
    }
}
