//! HTTPS for the API server: `/mutate` for pods, `/validate` for rules, `/ephemeral` for ephemeral containers. Bounded in connections, time and size, since whoever reaches the
//! port may ask; what is answered changes nothing, and is no secret.
//!
//! Started by `run`. It must never answer a request that it could not read with one that admits.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_admin::http::{Answer as Response, StatusCode, of_type, only, text};
use http_body_util::{BodyExt as _, Limited};
use hyper::Method;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::{self, Answer, Outcome, ReadError, Request};
use crate::ephemeral;
use crate::kubernetes::Namespaces;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::probes::Token;
use crate::tls::Serving;
use crate::validate::validate;

/// The API server takes objects of 3 MiB at most; a review is one, and what goes around it.
const MAX_BODY: usize = 3 * 1024 * 1024 + 64 * 1024;
/// Any ordinary pod is smaller; few larger ones are read at once.
const SMALL_BODY: u64 = 256 * 1024;
const LARGE_AT_ONCE: usize = 8;
const CONNECTIONS: usize = 512;
/// Longest wait for a body.
const BODY_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for a request's head, the first or the next: longer than the API server keeps an idle connection (90 s), so that it is
/// never us who close one just as it is used.
const HEAD_LIMIT: Duration = Duration::from_secs(120);
/// Wait after an accept that failed for want of files or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// What answers.
pub struct Webhooks {
    mesh: Mesh,
    namespaces: Namespaces,
    metrics: Arc<Metrics>,
    large: Semaphore,
}

impl Webhooks {
    /// Ties the parts together.
    #[must_use]
    pub fn new(mesh: Mesh, namespaces: Namespaces, metrics: Arc<Metrics>) -> Self {
        Self { mesh, namespaces, metrics, large: Semaphore::new(LARGE_AT_ONCE) }
    }

    /// Serves until `shutdown`; then requests under way may end.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, serving: Serving, shutdown: CancellationToken) {
        let mut open = JoinSet::new();
        self.take_all(|| listener.accept(), &mut open, &serving, &shutdown).await;
        drop(listener);
        while open.join_next().await.is_some() {}
    }

    /// Serves what `accept` brings, until `shutdown`.
    async fn take_all<Accepted>(
        self: &Arc<Self>,
        mut accept: impl FnMut() -> Accepted,
        open: &mut JoinSet<()>,
        serving: &Serving,
        shutdown: &CancellationToken,
    ) where
        Accepted: Future<Output = io::Result<(TcpStream, SocketAddr)>>,
    {
        loop {
            let accepted = tokio::select! {
                accepted = accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let tcp = match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            while open.try_join_next().is_some() {}
            if open.len() >= CONNECTIONS {
                self.metrics.connection_refused("connections");
                continue;
            }
            open.spawn(Arc::clone(self).connection(tcp, serving.clone(), shutdown.clone()));
        }
    }

    async fn connection(self: Arc<Self>, tcp: TcpStream, serving: Serving, shutdown: CancellationToken) {
        let io = match serving.accept(tcp).await {
            Ok(io) => io,
            Err(error) => {
                tracing::debug!(%error, "no TLS");
                return self.metrics.connection_refused("handshake");
            }
        };
        let service = service_fn(move |request| {
            let webhooks = Arc::clone(&self);
            async move { Ok::<_, Infallible>(webhooks.answer(request).await) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
        let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            // Whatever went wrong is the caller's, who sees it end.
            _ = connection.as_mut() => return,
            () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> Response {
        let began = Instant::now();
        let webhook = match request.uri().path() {
            "/mutate" => "mutate",
            "/validate" => "validate",
            "/ephemeral" => "ephemeral",
            _ => return text(StatusCode::NOT_FOUND, "here are /mutate, /validate and /ephemeral\n"),
        };
        let answered = self.review(webhook, request).await;
        let (outcome, response) = match answered {
            Ok(answer) => (answer.outcome().label(), written(&answer)),
            Err(response) => (bad_request_label(), response),
        };
        self.metrics.answered(webhook, outcome, began.elapsed());
        response
    }

    async fn review(&self, webhook: &str, request: hyper::Request<Incoming>) -> Result<Answer, Response> {
        if *request.method() != Method::POST {
            return Err(only("POST"));
        }
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
            let message = format!("content type {kind:?} is not application/json\n");
            return Err(text(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let body = self.body(request.into_body()).await?;
        let request = admission::read(&body).map_err(|error| unreadable(&error))?;
        drop(body);
        let answer = match webhook {
            "mutate" => self.mutate(&request).await,
            "ephemeral" => ephemeral::judge(&request),
            _ => validate(&request),
        };
        let answer = answer.map_err(|error| unreadable(&error))?;
        log(webhook, &request, &answer);
        Ok(answer)
    }

    async fn body(&self, body: Incoming) -> Result<Bytes, Response> {
        let small = body.size_hint().upper().is_some_and(|length| length <= SMALL_BODY);
        let place = if small { None } else { Some(self.large.try_acquire()) };
        if matches!(place, Some(Err(_))) {
            return Err(text(StatusCode::SERVICE_UNAVAILABLE, "too many large reviews at once\n"));
        }
        let too_large = || text(StatusCode::PAYLOAD_TOO_LARGE, format!("a review has at most {MAX_BODY} bytes\n"));
        match tokio::time::timeout(BODY_LIMIT, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(_)) => Err(too_large()),
            Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "no body\n")),
        }
    }

    async fn mutate(&self, request: &Request) -> Result<Answer, ReadError> {
        admission::new_pod(request)?;
        let namespace = &request.namespace;
        let failed = |error| Ok(Answer::failed(request, format!("the labels of namespace {namespace:?}: {error}")));
        let (labels, remembered) = match self.namespaces.labels(namespace).await {
            Ok(labels) => labels,
            Err(error) => return failed(error),
        };
        let fresh = match Token::random() {
            Ok(token) => token,
            Err(error) => return Ok(Answer::failed(request, format!("the token of its hooks: {error}"))),
        };
        let answer = admission::mutate(&self.mesh, &labels, &fresh, request);
        if !remembered || matches!(answer.outcome(), Outcome::Injected | Outcome::Unchanged) {
            return Ok(answer);
        }
        // No pod goes without, or is refused, by labels that were changed since: the API server may have seen them already.
        match self.namespaces.fresh(namespace).await {
            Ok(labels) => Ok(admission::mutate(&self.mesh, &labels, &fresh, request)),
            Err(error) => failed(error),
        }
    }
}

fn bad_request_label() -> &'static str {
    "bad_request"
}

fn unreadable(error: &ReadError) -> Response {
    tracing::warn!(%error, "a request that cannot be read");
    text(StatusCode::BAD_REQUEST, format!("{error}\n"))
}

fn written(answer: &Answer) -> Response {
    match answer.body() {
        Ok(body) => of_type(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn log(webhook: &str, request: &Request, answer: &Answer) {
    let Request { uid, namespace, name, dry_run, .. } = request;
    let (outcome, dry_run) = (answer.outcome().label(), dry_run.unwrap_or(false));
    match (answer.outcome(), answer.message()) {
        (Outcome::Failed, message) => {
            tracing::warn!(webhook, uid, namespace, name, dry_run, outcome, message, "reviewed");
        }
        (_, message) => tracing::info!(webhook, uid, namespace, name, dry_run, outcome, message, "reviewed"),
    }
}

#[cfg(test)]
mod tests;
