//! `/livez`, `/readyz` and `/metrics` on a TCP port of their own, which the redirect leaves alone.
//!
//! `run` binds and starts it; kubelet and scrapers call it. It must never change anything, and never take so many
//! connections that the data path lacks files: it has an accept budget of its own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::ACCEPT;
use hyper::{Method, Request, StatusCode};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::http::{self, Answer};
use crate::metrics::Metrics;
use crate::ready::Readiness;

/// Most connections at once; one more is closed.
const CONNECTIONS: usize = 32;
/// Connections that the kernel may hold before we accept them.
const BACKLOG: i32 = 64;
/// Wait after an accept that failed for want of files or memory.
const PAUSE: Duration = Duration::from_millis(100);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN_METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What it answers from; clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/metrics`.
    pub metrics: Metrics,
}

/// Binds on all addresses, of both IP versions where the system has both.
///
/// # Errors
/// When the port cannot be bound.
pub fn bind(port: u16) -> io::Result<TcpListener> {
    let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    match bind_one(v6) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse && error.kind() != io::ErrorKind::PermissionDenied => {
            tracing::info!("health port: no IPv6 ({error})");
            bind_one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
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

/// Serves until dropped, through a drain too: that is when readiness is asked most.
pub async fn serve(listener: TcpListener, health: Health) {
    let budget = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&budget).try_acquire_owned() else {
            health.metrics.shed("health_connections");
            continue;
        };
        let health = health.clone();
        tokio::spawn(async move {
            let _slot = slot;
            http::serve(stream, |request| std::future::ready(health.answer(&request))).await;
        });
    }
}

impl Health {
    /// Answers a request; nothing of it is read but method, path, query and `Accept`.
    pub fn answer<B>(&self, request: &Request<B>) -> Answer {
        let path = request.uri().path();
        if !matches!(path, "/livez" | "/readyz" | "/metrics") {
            return http::text(StatusCode::NOT_FOUND, "here are /livez, /readyz and /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return http::only("GET, HEAD");
        }
        match path {
            "/livez" => http::text(StatusCode::OK, "ok\n"),
            "/readyz" => self.readyz(request.uri().query() == Some("verbose")),
            _ => {
                let wants = request.headers().get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
                let open = wants.into_iter().any(|accept| accept.contains("application/openmetrics-text"));
                http::of_type(StatusCode::OK, if open { OPENMETRICS } else { PLAIN_METRICS }, self.metrics.encode())
            }
        }
    }

    /// 200 or 503; `verbose` names every condition, else only what is missing.
    fn readyz(&self, verbose: bool) -> Answer {
        let checks = self.readiness.checks();
        let ready = checks.iter().all(|check| check.ok);
        let mut body = String::new();
        for check in checks.iter().filter(|check| verbose || !check.ok) {
            let line = if check.ok {
                format!("[+] {}\n", check.name)
            } else {
                format!("[-] {}: {}\n", check.name, check.detail)
            };
            body.push_str(&line);
        }
        body.push_str(if ready { "ready\n" } else { "not ready\n" });
        http::text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
