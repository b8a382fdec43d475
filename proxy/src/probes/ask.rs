//! One question to the app, as the kubelet asks it: http, https, tcp, or gRPC's own health service.
//!
//! Called by `probes`. The app is dialled at the pod's own address by a socket that is exempt from our redirect. Redirects are not
//! followed; of a body no more is read than [`BODY`], and none is kept. It must never wait longer than the probe allows.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;

use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, TE, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Outcome;
use crate::config::probes::{AppProbe, Ask, HttpAsk};
use crate::tls::unverified::Unverified;

/// Most of a body that is read to see that it ends well, as the kubelet does.
const BODY: usize = 10 * 1024;
/// Largest head of an answer.
const HEAD: usize = 64 * 1024;
/// Largest answer of the health service.
const GRPC_ANSWER: usize = 4 * 1024;
const AGENT: HeaderValue = HeaderValue::from_static("kube-probe/countersign");

/// Where the app is, and how we go there.
#[derive(Debug)]
pub(super) struct App {
    address: IpAddr,
    mark: Option<u32>,
    unverified: Unverified,
}

impl App {
    pub(super) fn new(address: IpAddr, mark: Option<u32>) -> Self {
        Self { address, mark, unverified: Unverified::default() }
    }

    /// Asks, within the time that the probe allows.
    pub(super) async fn ask(&self, probe: &AppProbe) -> Outcome {
        let address = SocketAddr::new(self.address, probe.port());
        let hook = probe.kind.is_hook();
        let asked = async {
            let io = countersign_credentials::dial(address, self.mark).await;
            let io = io.map_err(|error| format!("the app does not accept connections on {address}: {error}"))?;
            match &probe.ask {
                Ask::Tcp { port } => Ok(format!("it accepts connections on port {port}")),
                Ask::Http(ask) if ask.https => {
                    let io = self.unverified.connect(io, self.address).await;
                    get(io.map_err(|error| format!("TLS on {address}: {error}"))?, address, ask, hook).await
                }
                Ask::Http(ask) => get(io, address, ask, hook).await,
                Ask::Grpc { service, .. } => check(io, address, service).await,
            }
        };
        let late = |_| Err(format!("no answer from {address} within {} s", probe.timeout.as_secs()));
        timeout(probe.timeout, asked).await.unwrap_or_else(late)
    }
}

/// A probe: 200 to 399 is healthy. A hook: any answer will do, as the kubelet sees it.
async fn get(
    io: impl AsyncRead + AsyncWrite + Unpin + Send,
    address: SocketAddr,
    ask: &HttpAsk,
    hook: bool,
) -> Outcome {
    let broken = |error: hyper::Error| format!("HTTP with {address}: {error}");
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD).handshake(TokioIo::new(io)).await.map_err(broken)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = ask.target.clone().into();
    *request.headers_mut() = ask.headers.clone();
    let headers = request.headers_mut();
    if let (false, Ok(host)) = (headers.contains_key(HOST), HeaderValue::try_from(address.to_string())) {
        headers.insert(HOST, host);
    }
    headers.entry(USER_AGENT).or_insert(AGENT);
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let asked = async {
        let mut answer = sender.send_request(request).await.map_err(broken)?;
        let whole = read_some(&mut answer).await;
        let status = answer.status();
        let said = format!("HTTP status {}", status.as_u16());
        if hook {
            return Ok(said);
        }
        whole.map_err(broken)?;
        if (200..400).contains(&status.as_u16()) { Ok(said) } else { Err(said) }
    };
    driven(asked, async { drop(connection.await) }).await
}

/// An answer that breaks off is no answer.
async fn read_some(answer: &mut Response<Incoming>) -> Result<(), hyper::Error> {
    let mut read = 0;
    while read < BODY {
        match answer.body_mut().frame().await {
            None => break,
            Some(frame) => read += frame?.data_ref().map_or(0, Bytes::len),
        }
    }
    Ok(())
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus.SERVING`
const SERVING: i32 = 1;

async fn check(io: TcpStream, address: SocketAddr, service: &str) -> Outcome {
    let broken = |error: hyper::Error| format!("gRPC with {address}: {error}");
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.map_err(broken)?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .body(Full::new(framed(&HealthCheckRequest { service: service.to_owned() })))
        .map_err(|error| format!("gRPC with {address}: {error}"))?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        judged(answer).await
    };
    driven(asked, async { drop(connection.await) }).await
}

/// One message, not compressed.
fn framed(message: &HealthCheckRequest) -> Bytes {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, &message].concat().into()
}

async fn judged<B>(answer: Response<B>) -> Outcome
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if answer.status() != hyper::StatusCode::OK {
        return Err(format!("no gRPC: HTTP status {}", answer.status().as_u16()));
    }
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, GRPC_ANSWER).collect().await.map_err(|error| format!("gRPC: {error}"))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let code = trailers.get("grpc-status").or_else(|| head.headers.get("grpc-status"));
    match code.and_then(|code| code.to_str().ok()) {
        Some("0") => {}
        Some("5") => return Err("gRPC: the app's health service does not know this service (NOT_FOUND)".to_owned()),
        Some("12") => return Err("gRPC: the app has no grpc.health.v1 (UNIMPLEMENTED)".to_owned()),
        Some(code) => return Err(format!("gRPC status {code:.8}")),
        None => return Err("gRPC: the answer has no status".to_owned()),
    }
    let body = body.to_bytes();
    // One message: not compressed (we offered no way), then its length, then itself.
    let message = match body.split_at_checked(5) {
        Some(([0, length @ ..], rest)) if length.len() == 4 && be(length) == rest.len() => rest,
        _ => return Err("gRPC: the answer is no single message".to_owned()),
    };
    match HealthCheckResponse::decode(message).map(|answer| answer.status) {
        Ok(SERVING) => Ok("gRPC: SERVING".to_owned()),
        Ok(2) => Err("gRPC: NOT_SERVING".to_owned()),
        Ok(3) => Err("gRPC: SERVICE_UNKNOWN".to_owned()),
        Ok(_) => Err("gRPC: UNKNOWN".to_owned()),
        Err(error) => Err(format!("gRPC: {error}")),
    }
}

fn be(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Moves the connection's bytes until there is an answer; a connection that ends first leaves the answer to say how.
async fn driven(asked: impl Future<Output = Outcome>, connection: impl Future<Output = ()>) -> Outcome {
    let connection = pin!(async {
        connection.await;
        std::future::pending::<std::convert::Infallible>().await
    });
    tokio::select! {
        biased;
        outcome = asked => outcome,
        never = connection => match never {},
    }
}
