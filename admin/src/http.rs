//! One HTTP/1.1 connection to the process itself, bounded in time and size; and the answers given on it.
//!
//! Called by `health` and `routes`, and for the answers by the processes; application traffic never comes here. It must never
//! read more than a small body, nor keep a connection that says nothing.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

pub use hyper::StatusCode;

/// Longest wait for a request's head, the first or the next.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Longest life of a connection, where the process says nothing else.
pub const LIFE: Duration = Duration::from_secs(60);
/// Largest request head.
const HEAD_BYTES: usize = 8 * 1024;
/// Longest wait for a request's body.
const BODY_LIMIT: Duration = Duration::from_secs(5);

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// Serves one connection until it ends, goes silent or has lived for `life`.
pub async fn serve<H, F>(io: impl AsyncRead + AsyncWrite + Unpin + Send, life: Duration, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Send,
    F: Future<Output = Answer> + Send,
{
    let service = service_fn(move |request| {
        let answer = handle(request);
        async move {
            let answer = answer.await;
            // An error here ends the connection without a word.
            if answer.extensions().get::<Unanswered>().is_some() { Err(Unanswered) } else { Ok(answer) }
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(HEAD_BYTES);
    let connection = server.serve_connection(TokioIo::new(io), service);
    // Whatever went wrong is the caller's of this connection, who sees it end.
    let _ = tokio::time::timeout(life, connection).await;
}

/// Says nothing, and ends the connection: what a caller takes for a failure whatever it thinks of statuses.
pub fn unanswered() -> Answer {
    let mut answer = Response::default();
    answer.extensions_mut().insert(Unanswered);
    answer
}

/// The last answer on its connection.
pub fn last(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not answered")]
struct Unanswered;

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
pub fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string_pretty(value) {
        Ok(mut body) => {
            body.push('\n');
            of_type(StatusCode::OK, "application/json", body)
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

/// The path is known, the method is not; `methods` are, separated by commas.
pub fn only(methods: &str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods}\n"));
    if let Ok(allowed) = HeaderValue::from_str(methods) {
        answer.headers_mut().insert(ALLOW, allowed);
    }
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    /// A connection whose requests are answered with their body.
    fn echo() -> DuplexStream {
        let (far, near) = duplex(64 * 1024);
        tokio::spawn(serve(near, LIFE, |request| async {
            body(request, 8).await.map_or_else(|refusal| refusal, |body| text(StatusCode::OK, body))
        }));
        far
    }

    #[tokio::test]
    async fn who_is_not_answered_sees_the_connection_end_and_not_a_byte() {
        let (mut far, near) = duplex(1024);
        tokio::spawn(serve(near, LIFE, |_| async { unanswered() }));
        far.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert_eq!(rest(far).await, "");
    }

    async fn rest(mut far: DuplexStream) -> String {
        let mut said = String::new();
        // It may end with an error where what was sent was not read.
        let _ = far.read_to_string(&mut said).await;
        said
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_cut() {
        for beginning in ["", "GET /livez HT", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let began = Instant::now();
            let mut far = echo();
            far.write_all(beginning.as_bytes()).await.unwrap();
            rest(far).await;
            assert!(began.elapsed() <= HEAD_LIMIT + Duration::from_secs(1), "{beginning:?}: {:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_speaks_for_ever_is_cut_too() {
        let began = Instant::now();
        let mut far = echo();
        while far.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.is_ok() {
            let _ = far.read(&mut [0; 1024]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!((LIFE..LIFE + HEAD_LIMIT).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let mut far = echo();
        let _ = far.write_all(b"GET /livez HTTP/1.1\r\nX: ").await;
        let mut sent = 0_usize;
        while sent < 1024 * 1024 && far.write_all(&[b'a'; 1024]).await.is_ok() {
            sent += 1024;
        }
        assert!(sent < 1024 * 1024, "all of it was read");
        let answer = rest(far).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_long_or_late_or_no_text_is_refused() {
        for (length, body, code) in
            [(8, &b"12345678"[..], 200), (9, b"123456789", 413), (8, b"1234", 408), (2, b"\xff\xfe", 400)]
        {
            let mut far = echo();
            let head = format!("PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
            far.write_all(head.as_bytes()).await.unwrap();
            far.write_all(body).await.unwrap();
            let mut answer = vec![0; 12];
            far.read_exact(&mut answer).await.unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), format!("HTTP/1.1 {code}"));
        }
    }

    #[test]
    fn nothing_that_is_answered_may_be_stored() {
        for answer in [text(StatusCode::OK, ""), json(&1), only("GET")] {
            assert_eq!(answer.headers()[CACHE_CONTROL], "no-store");
        }
    }
}
