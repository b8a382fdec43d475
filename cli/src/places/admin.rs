//! One question to an admin socket: HTTP/1.1 over a unix socket.
//!
//! Called by `places` and `ca`. It must never wait for ever, nor read without bound.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

const LIMIT: Duration = Duration::from_secs(5);
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// A socket's address holds no more (unix(7)); a longer path is reached through its folder.
const MAX_PATH: usize = 107;

/// Any `GET`; `None` where the process has nothing there.
pub async fn get(socket: &Path, path: &str) -> Result<Option<Value>> {
    let body = tokio::time::timeout(LIMIT, fetch(socket, path));
    match body.await.map_err(|_| anyhow::anyhow!("no answer within {} s", LIMIT.as_secs()))?? {
        Some(body) => serde_json::from_slice(&body).map(Some).context("the answer is not JSON"),
        None => Ok(None),
    }
}

/// Any `GET` or `POST`: the status code and the body, whatever they are.
pub async fn call(socket: &Path, post: bool, path: &str, limit: Duration) -> Result<(u16, Bytes)> {
    let asked = tokio::time::timeout(limit, exchange(socket, post, path));
    asked.await.map_err(|_| anyhow::anyhow!("no answer within {} s", limit.as_secs()))?
}

async fn fetch(socket: &Path, path: &str) -> Result<Option<Bytes>> {
    match exchange(socket, false, path).await? {
        (404, _) => Ok(None),
        (200..300, body) => Ok(Some(body)),
        (code, _) => bail!("{path} was answered with {code}"),
    }
}

async fn exchange(socket: &Path, post: bool, path: &str) -> Result<(u16, Bytes)> {
    ensure!(socket.as_os_str().len() <= MAX_PATH, "the socket's path is longer than {MAX_PATH} bytes");
    let stream = UnixStream::connect(socket).await.context("connecting")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("speaking HTTP")?;
    let driver = tokio::spawn(connection);
    let request = if post { Request::post(path) } else { Request::get(path) };
    let request = request.header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("asking")?;
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    driver.abort();
    Ok((code, body.map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?.to_bytes()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// Answers one connection with `reply`.
    async fn ask(reply: &'static str) -> Result<Option<Value>> {
        let dir = std::env::temp_dir().join(format!("countersign-admin-{}-{}", std::process::id(), reply.len()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET /status HTTP/1.1\r\n"));
            stream.write_all(reply.as_bytes()).await.unwrap();
        });
        let answer = get(&path, "/status").await;
        server.await.unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        answer
    }

    #[tokio::test]
    async fn an_answer_is_read() {
        let answer = ask("HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"ready\": true }").await.unwrap().unwrap();
        assert_eq!(answer["ready"], true);
    }

    #[tokio::test]
    async fn nothing_there_is_no_error() {
        assert!(ask("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        assert!(ask("HTTP/1.1 500 Internal\r\ncontent-length: 0\r\n\r\n").await.is_err());
        assert!(ask("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nno!").await.is_err());
        assert!(ask("SSH-2.0-hello\r\n").await.is_err());
        assert!(get(Path::new("/no/such.sock"), "/status").await.is_err());
    }
}
