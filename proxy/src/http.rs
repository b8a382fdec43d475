//! One HTTP/1.1 connection to the proxy itself, bounded in time and size; and the answers given on it.
//!
//! Called by `health` and `admin`; application traffic never comes here. It must never read more than a small body, nor keep
//! a connection that says nothing.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

/// Longest wait for a request's head, the first or the next.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(60);
/// Largest request head.
const HEAD_BYTES: usize = 8 * 1024;
/// Longest wait for a request's body.
const BODY_LIMIT: Duration = Duration::from_secs(5);

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// Serves one connection until it ends, goes silent or has lived long enough.
pub async fn serve<H, F>(io: impl AsyncRead + AsyncWrite + Unpin + Send, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Send,
    F: Future<Output = Answer> + Send,
{
    let service = service_fn(|request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(HEAD_BYTES);
    let connection = server.serve_connection(TokioIo::new(io), service);
    // Whatever went wrong is the caller's of this connection, who sees it end.
    let _ = tokio::time::timeout(LIFE, connection).await;
}

/// Reads a body of at most `most` bytes as text.
///
/// # Errors
/// The answer to give where it is too long, too slow, or no text.
pub async fn body(request: Request<Incoming>, most: usize) -> Result<String, Answer> {
    let whole = Limited::new(request.into_body(), most).collect();
    match tokio::time::timeout(BODY_LIMIT, whole).await {
        Ok(Ok(body)) => String::from_utf8(body.to_bytes().to_vec())
            .map_err(|_| text(StatusCode::BAD_REQUEST, "the body is not UTF-8\n")),
        Ok(Err(_)) => Err(text(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has at most {most} bytes\n"))),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "no body\n")),
    }
}

/// Plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    of_type(status, "text/plain; charset=utf-8", body)
}

/// JSON, indented for people.
pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string_pretty(value) {
        Ok(mut body) => {
            body.push('\n');
            of_type(status, "application/json", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Anything else. It is never to be stored: it was true for a moment.
pub fn of_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// The path is known, the method is not.
pub fn only(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}
