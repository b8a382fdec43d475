//! The server: HTTP/1.1, the standard gRPC health service, and a TCP port, all well or all sick.
//!
//! Called by `main`. It ends as a good app does: after SIGTERM it goes on serving until the cluster has noticed, and says with each answer that its
//! connection is not to be used again; then it lets each connection finish.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const HTTP: u16 = 8080;
const GRPC: u16 = 9090;
const TCP: u16 = 7070;
/// Until every kube-proxy and every sidecar knows that this endpoint goes.
const NOTICE: Duration = Duration::from_secs(4);
const LAST_REQUESTS: Duration = Duration::from_secs(3);

#[derive(Clone)]
struct App {
    well: watch::Sender<bool>,
    /// It was told to end. Who asks now is answered, on this connection for the last time.
    told: watch::Sender<bool>,
    /// The cluster has had time to notice.
    ending: watch::Receiver<bool>,
}

/// Serves until SIGTERM; at first `well` or not.
pub async fn run(well: bool) -> anyhow::Result<()> {
    let (end, ending) = watch::channel(false);
    let told = watch::Sender::new(false);
    let app = App { well: watch::Sender::new(well), told: told.clone(), ending };
    let (http, grpc) = (listen(HTTP).await?, listen(GRPC).await?);
    let asked = until_asked();
    tokio::spawn(serve_http(app.clone(), http));
    tokio::spawn(serve_grpc(app.clone(), grpc));
    tokio::spawn(serve_tcp(app));
    println!("serving");
    asked.await?;
    println!("asked to end");
    told.send_replace(true);
    tokio::time::sleep(NOTICE).await;
    end.send_replace(true);
    // Gone when the last connection's copy is.
    let _ = tokio::time::timeout(LAST_REQUESTS, end.closed()).await;
    Ok(())
}

/// Waits for SIGTERM. The first process of a pod is not ended by it unless it asks for it.
pub async fn until_asked() -> anyhow::Result<()> {
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}

async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    Ok(TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await?)
}

async fn serve_http(app: App, listener: TcpListener) {
    let mut ending = app.ending.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.wait_for(|ending| *ending) => return,
        };
        let Ok((stream, peer)) = accepted else { continue };
        let app = app.clone();
        tokio::spawn(async move {
            let mut ending = app.ending.clone();
            let service = service_fn(|request| answer(app.clone(), request, peer));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = ending.wait_for(|ending| *ending) => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
}

async fn answer(app: App, request: Request<Incoming>, peer: SocketAddr) -> Result<Response<Full<Bytes>>, Infallible> {
    let name = std::env::var("HOSTNAME").unwrap_or_default();
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") if *app.well.borrow() => (StatusCode::OK, "well\n".to_owned()),
        (&Method::GET, "/health") => (StatusCode::SERVICE_UNAVAILABLE, "sick\n".to_owned()),
        (&Method::GET, "/") => (StatusCode::OK, format!("hello from {name} to {}\n", peer.ip().to_canonical())),
        // A lifecycle hook's: who reads the log sees each call.
        (&Method::GET, path) if path.starts_with("/hook/") => {
            println!("hook {}", path.trim_start_matches("/hook/"));
            (StatusCode::OK, "called\n".to_owned())
        }
        (&Method::PUT, path @ ("/well" | "/sick")) => {
            app.well.send_replace(path == "/well");
            (StatusCode::OK, "so be it\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "no such path\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    if *app.told.borrow() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// `grpc.health.v1.Health/Check`: a message of one field, 1 serving or 2 not.
async fn serve_grpc(app: App, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let app = app.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let status = if *app.well.borrow() { 1 } else { 2 };
                async move {
                    let known = request.uri().path() == "/grpc.health.v1.Health/Check";
                    drop(request.into_body().collect().await);
                    Ok::<_, Infallible>(checked(known.then_some(status)))
                }
            });
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Frames = futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

fn checked(status: Option<u8>) -> Response<StreamBody<Frames>> {
    let message = status.map(|status| Ok(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]))));
    let mut trailers = HeaderMap::new();
    let code = if status.is_some() { "0" } else { "12" }; // unimplemented
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    let frames: Vec<_> = message.into_iter().chain([Ok(Frame::trailers(trailers))]).collect();
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

/// The port is open while the app is well.
async fn serve_tcp(app: App) {
    let mut well = app.well.subscribe();
    loop {
        if well.wait_for(|well| *well).await.is_err() {
            return;
        }
        let Ok(listener) = listen(TCP).await else { return };
        loop {
            tokio::select! {
                accepted = listener.accept() => drop(accepted),
                _ = well.wait_for(|well| !*well) => break,
            }
        }
    }
}
