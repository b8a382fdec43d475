//! `/livez`, `/readyz`, `/metrics` over TCP, for kubelets and scrapers; nothing else is served there. Started by `run`.

use std::sync::Arc;

use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;

use crate::http::{self, Answer};
use crate::inside::Inside;
use crate::metrics;

/// Connections at once: probes and scrapers come one by one.
const CAP: usize = 64;

/// Serves for ever.
pub async fn serve(listener: TcpListener, inside: Arc<Inside>) {
    let accept = || async { listener.accept().await.map(|(tcp, _)| tcp) };
    http::serve(accept, CAP, move |request| {
        let answer = respond(&request, &inside);
        async move { answer }
    })
    .await;
}

fn respond<B>(request: &Request<B>, inside: &Inside) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match request.uri().path() {
        "/livez" => http::text(StatusCode::OK, "ok\n"),
        "/readyz" => match inside.ready() {
            Ok(()) => http::text(StatusCode::OK, "ok\n"),
            Err(why) => http::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/metrics" => match inside.metrics() {
            Ok(text) => http::answer(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(_) => http::text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be printed\n"),
        },
        _ => http::text(StatusCode::NOT_FOUND, "here are /livez /readyz /metrics\n"),
    }
}
