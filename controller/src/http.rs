//! HTTP/1.1 for small answers, one request a connection. Used by `health` and `admin`. Connections, headers and time are
//! bounded; a request's body is read by nobody but who asks for it, and then at most [`MAX_BODY`] bytes of it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

/// An answer, whole.
pub type Answer = Response<Full<Bytes>>;

/// The most that is read of a request's body.
pub const MAX_BODY: usize = 4096;
/// One connection's whole time.
const LIMIT: Duration = Duration::from_secs(10);
/// After a failed accept: long enough not to spin, short enough to be ready when files are free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HEADER_BUFFER: usize = 8 * 1024;

/// Serves what `accept` brings, `cap` connections at once; more are closed.
pub async fn serve<IO, Accepted, Handled>(
    mut accept: impl FnMut() -> Accepted,
    cap: usize,
    handle: impl Fn(Request<Incoming>) -> Handled + Clone + Send + 'static,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Accepted: Future<Output = io::Result<IO>>,
    Handled: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(cap));
    loop {
        let io = match accept().await {
            Ok(io) => io,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let handle = handle.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(LIMIT)
                .keep_alive(false)
                .max_buf_size(HEADER_BUFFER)
                .serve_connection(TokioIo::new(io), answer);
            let _ = tokio::time::timeout(LIMIT, connection).await;
            drop(place);
        });
    }
}

/// A text with its status.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", text)
}

/// A value as JSON.
pub fn json(value: &serde_json::Value) -> Answer {
    answer(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

/// Any text.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A request's body as text, or `None` when it is too long or no text.
pub async fn body(request: Request<Incoming>) -> Option<String> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await.ok()?;
    String::from_utf8(body.to_bytes().to_vec()).ok()
}
