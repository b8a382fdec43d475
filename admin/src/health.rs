//! `/livez`, `/readyz` and `/metrics` on a TCP port of their own.
//!
//! Each process binds and starts it, and answers by [`Health`]; kubelet and scrapers call it. It must never change anything,
//! and never take so many connections that the process's own work lacks files: it has an accept budget of its own.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{Method, Request};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::accept::{self, Budget};
use crate::http::{self, Answer, StatusCode};

/// Most connections at once; one more is closed.
pub const CONNECTIONS: usize = 64;
/// Most connections of one source: a neighbour that holds its own open must not keep the kubelet out.
pub const EACH: usize = CONNECTIONS / 4;
/// Connections that the kernel may hold before we accept them.
const BACKLOG: i32 = 64;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN_METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One condition of being ready.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// A word for it, e.g. `credentials`.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// Why not; empty where it holds.
    pub detail: Cow<'static, str>,
}

impl Check {
    /// The condition `name`, and why it does not hold.
    pub fn new(name: &'static str, problem: Option<impl Into<Cow<'static, str>>>) -> Self {
        Self { name, ok: problem.is_none(), detail: problem.map(Into::into).unwrap_or_default() }
    }
}

/// Whether all conditions hold; else why the first of those that do not, does not.
///
/// # Errors
/// That reason. No condition at all is no reason to be ready.
pub fn ready(checks: &[Check]) -> Result<(), Cow<'static, str>> {
    if checks.is_empty() {
        return Err("nothing was looked at".into());
    }
    checks.iter().find(|check| !check.ok).map_or(Ok(()), |check| Err(check.detail.clone()))
}

/// What the port shows of a process.
pub trait Health: Send + Sync + 'static {
    /// Every condition of being ready, whether it holds or not.
    fn checks(&self) -> Vec<Check>;

    /// All metrics, as OpenMetrics text.
    ///
    /// # Errors
    /// They cannot be printed.
    fn metrics(&self) -> Result<String, fmt::Error>;
}

/// Binds. The unspecified IPv6 address means all addresses of both IP versions, or of IPv4 where the system has no IPv6.
///
/// # Errors
/// The address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match bind_one(address) {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) =>
        {
            tracing::info!("health port: no IPv6 ({error})");
            bind_one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until dropped, through a drain too: that is when readiness is asked most. `shed` is told of each connection over the
/// budget, by the word `health_connections`.
pub async fn serve(listener: TcpListener, health: Arc<impl Health>, shed: impl Fn(&'static str)) {
    let handle = move |request: Request<Incoming>| std::future::ready(answer(&*health, &request));
    serve_by(listener, http::LIFE, shed, handle).await;
}

/// The same for a process that answers more than [`answer`] does, and may take up to `life` for it.
pub async fn serve_by<Handled>(
    listener: TcpListener,
    life: Duration,
    shed: impl Fn(&'static str),
    handle: impl Fn(Request<Incoming>) -> Handled + Clone + Send + 'static,
) where
    Handled: Future<Output = Answer> + Send + 'static,
{
    let accept = || async { listener.accept().await.map(|(tcp, source)| (tcp, Some(source.ip()))) };
    let budget = Budget { most: CONNECTIONS, each: EACH, life };
    accept::serve(accept, budget, || shed("health_connections"), handle).await;
}

/// Answers a request; nothing of it is read but method, path, query and `Accept`.
pub fn answer<B>(health: &impl Health, request: &Request<B>) -> Answer {
    let path = request.uri().path();
    if !matches!(path, "/livez" | "/readyz" | "/metrics") {
        return http::text(StatusCode::NOT_FOUND, "here are /livez, /readyz and /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::only("GET, HEAD");
    }
    match path {
        "/livez" => http::text(StatusCode::OK, "ok\n"),
        "/readyz" => readyz(&health.checks(), request.uri().query() == Some("verbose")),
        _ => metrics(health, request),
    }
}

/// 200 or 503; `verbose` names every condition, else only what is missing.
fn readyz(checks: &[Check], verbose: bool) -> Answer {
    let mut body = String::new();
    for check in checks.iter().filter(|check| verbose || !check.ok) {
        let Check { name, ok, detail } = check;
        // Writing to a string does not fail.
        let _ = if *ok { writeln!(body, "[+] {name}") } else { writeln!(body, "[-] {name}: {detail}") };
    }
    let (status, last) = match ready(checks) {
        Ok(()) => (StatusCode::OK, "ready\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    };
    http::text(status, body + last)
}

fn metrics<B>(health: &impl Health, request: &Request<B>) -> Answer {
    let mut wants = request.headers().get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let open = wants.any(|accept| accept.contains("application/openmetrics-text"));
    match health.metrics() {
        Ok(text) => http::of_type(StatusCode::OK, if open { OPENMETRICS } else { PLAIN_METRICS }, text),
        Err(error) => http::text(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics: {error}\n")),
    }
}

#[cfg(test)]
mod tests;
