//! What an app may answer, and what the kubelet is told of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::config::probes::read;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An app that reads one head and answers with these bytes, each connection; how often it was asked, and what it read last.
struct App {
    port: u16,
    asked: Arc<AtomicUsize>,
    head: Arc<std::sync::Mutex<String>>,
}

async fn app(answer: &'static str) -> App {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let app = App { port: listener.local_addr().unwrap().port(), asked: Arc::default(), head: Arc::default() };
    let (asked, last) = (Arc::clone(&app.asked), Arc::clone(&app.head));
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            asked.fetch_add(1, Ordering::SeqCst);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match io.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            *last.lock().unwrap() = String::from_utf8(head).unwrap();
            let _ = io.write_all(answer.as_bytes()).await;
            if answer.is_empty() {
                std::future::pending::<()>().await; // hangs, with the connection open
            }
        }
    });
    app
}

/// The probes of a container `web`: each a kind and what it asks.
fn probes(each: &[(&str, String)]) -> Probes {
    let each: Vec<_> =
        each.iter().map(|(kind, ask)| format!(r#""{kind}":{{"timeoutSeconds":1,"ask":{ask}}}"#)).collect();
    Probes::new(&read(&format!(r#"{{"web":{{{}}}}}"#, each.join(","))).unwrap(), LOCAL, None)
}

fn http_get(port: u16, more: &str) -> String {
    format!(r#"{{"http":{{"port":{port},"path":"/healthz"{more}}}}}"#)
}

async fn say(probes: &Probes, path: &str) -> (u16, String) {
    let answer = probes.answer(&Method::GET, path).await;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn said_of(answer: &'static str) -> (u16, String) {
    let app = app(answer).await;
    say(&probes(&[("liveness", http_get(app.port, ""))]), "/app/web/liveness").await
}

#[tokio::test]
async fn from_200_to_399_is_healthy_and_nothing_of_the_apps_answer_is_told_but_its_status() {
    for (answer, status, said) in [
        ("HTTP/1.1 200 Fine\r\ncontent-length: 6\r\n\r\nsecret", 200, "HTTP status 200\n"),
        ("HTTP/1.1 399 ?\r\n\r\n", 200, "HTTP status 399\n"),
        ("HTTP/1.0 204 No\r\nx-secret: secret\r\n\r\n", 200, "HTTP status 204\n"),
        ("HTTP/1.1 400 Bad\r\n\r\n", 503, "HTTP status 400\n"),
        ("HTTP/1.1 503 No\r\ncontent-length: 6\r\n\r\nsecret", 503, "HTTP status 503\n"),
        ("HTTP/1.1 101 Switching\r\n\r\n", 503, "HTTP status 101\n"),
    ] {
        assert_eq!(said_of(answer).await, (status, said.to_owned()), "{answer}");
    }
}

#[tokio::test]
async fn a_redirect_is_healthy_and_not_followed() {
    let elsewhere = app("HTTP/1.1 500 No\r\n\r\n").await;
    let answer =
        format!("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{}/\r\ncontent-length: 0\r\n\r\n", elsewhere.port);
    assert_eq!(said_of(answer.leak()).await, (200, "HTTP status 302\n".to_owned()));
    assert_eq!(elsewhere.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_app_that_hangs_breaks_off_or_speaks_nonsense_is_not_healthy() {
    for (answer, said) in [
        ("", "within 1 s"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this", "HTTP with"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "HTTP with"),
    ] {
        let (status, text) = said_of(answer).await;
        assert!(status == 503 && text.contains(said), "{answer:?}: {text}");
    }
    let closed = TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port();
    for ask in [
        http_get(closed, ""),
        format!(r#"{{"tcp":{{"port":{closed}}}}}"#),
        format!(r#"{{"grpc":{{"port":{closed}}}}}"#),
    ] {
        let (status, text) = say(&probes(&[("startup", ask)]), "/app/web/startup").await;
        assert!(status == 503 && text.contains("does not accept connections"), "{text}");
    }
}

#[tokio::test]
async fn the_app_sees_the_specs_headers_and_none_of_the_callers() {
    let app = app("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let plain = probes(&[("liveness", http_get(app.port, ""))]);
    assert_eq!(say(&plain, "/app/web/liveness").await.0, 200);
    let head = app.head.lock().unwrap().to_lowercase();
    let mut lines: Vec<_> = head.trim_end().lines().collect();
    lines[1..].sort_unstable();
    let host = format!("host: 127.0.0.1:{}", app.port);
    assert_eq!(
        lines,
        ["get /healthz http/1.1", "accept: */*", "connection: close", &host, "user-agent: kube-probe/countersign"]
    );
    let more = r#","headers":[["Host","shop.example"],["User-Agent","mine"],["X-A","1"]]"#;
    let own = probes(&[("liveness", http_get(app.port, more))]);
    assert_eq!(say(&own, "/app/web/liveness").await.0, 200);
    let head = app.head.lock().unwrap().to_lowercase();
    for line in ["host: shop.example", "user-agent: mine", "x-a: 1"] {
        assert_eq!(head.lines().filter(|each| *each == line).count(), 1, "{line} in {head}");
    }
    assert_eq!(head.matches("host:").count(), 1, "{head}");
}

#[tokio::test]
async fn only_the_pods_own_probes_are_answered_and_only_to_get() {
    let app = app("HTTP/1.1 200 OK\r\n\r\n").await;
    let probes = probes(&[("liveness", http_get(app.port, ""))]);
    for path in [
        "/app/web/readiness",
        "/app/web",
        "/app/",
        "/app/web/liveness/",
        "/app/web/../web/liveness",
        "/app/db/liveness",
    ] {
        assert_eq!(say(&probes, path).await.0, 404, "{path}");
    }
    for method in [Method::POST, Method::PUT, Method::HEAD, Method::OPTIONS] {
        assert_eq!(probes.answer(&method, "/app/web/liveness").await.status().as_u16(), 405, "{method}");
    }
    assert_eq!(app.asked.load(Ordering::SeqCst), 0);
    assert!(Probes::concerns("/app/web/liveness") && !Probes::concerns("/readyz"));
}

#[tokio::test]
async fn a_flood_of_callers_reaches_the_app_once_and_all_of_them_hear_its_answer() {
    let app = app("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let probes = Arc::new(probes(&[("liveness", http_get(app.port, ""))]));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let probes = Arc::clone(&probes);
            tokio::spawn(async move { say(&probes, "/app/web/liveness").await.0 })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 200);
    }
    assert!(app.asked.load(Ordering::SeqCst) <= 2, "{:?}", app.asked);
    let slot = &probes.by_path["/app/web/liveness"];
    // What is no longer fresh is asked again.
    let before = app.asked.load(Ordering::SeqCst);
    let outdated = Instant::now().checked_sub(FRESH).unwrap();
    *slot.last.lock().await = Some((outdated, Ok(String::new())));
    assert_eq!(say(&probes, "/app/web/liveness").await.0, 200);
    assert_eq!(app.asked.load(Ordering::SeqCst), before + 1);
}

/// A hook of a container `web`, and its path.
fn hook(port: u16, more: &str) -> (Probes, String) {
    let token = "00112233445566778899aabbccddeeff";
    let text =
        format!(r#"{{"web":{{"preStop":{{"timeoutSeconds":1,"token":"{token}","ask":{}}}}}}}"#, http_get(port, more));
    (Probes::new(&read(&text).unwrap(), LOCAL, None), format!("/app/web/preStop/{token}"))
}

#[tokio::test]
async fn a_hook_is_called_by_its_token_alone() {
    let app = app("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (probes, path) = hook(app.port, "");
    for other in ["/app/web/preStop", "/app/web/preStop/", "/app/web/preStop/00112233445566778899aabbccddeefe"] {
        assert_eq!(say(&probes, other).await.0, 404, "{other}");
    }
    assert_eq!(app.asked.load(Ordering::SeqCst), 0);
    assert_eq!(say(&probes, &path).await.0, 200);
}

#[tokio::test]
async fn a_hook_is_called_anew_each_time() {
    let app = app("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (probes, path) = hook(app.port, "");
    for times in 1..=3 {
        assert_eq!(say(&probes, &path).await.0, 200);
        assert_eq!(app.asked.load(Ordering::SeqCst), times);
    }
}

/// As the kubelet has it of the app itself: any answer is a success, and none is a failure that no status can say.
#[tokio::test]
async fn a_hook_that_the_app_answers_is_good_and_one_that_it_does_not_is_not_answered() {
    for answer in ["HTTP/1.1 500 No\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nless"] {
        let (probes, path) = hook(app(answer).await.port, "");
        assert_eq!(over_http(probes, &path).await.lines().next(), Some("HTTP/1.1 200 OK"), "{answer}");
    }
    let closed = TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port();
    let silent = app("").await.port;
    let nonsense = app("SSH-2.0-OpenSSH_9.2\r\n").await.port;
    for port in [closed, silent, nonsense] {
        let (probes, path) = hook(port, "");
        assert_eq!(over_http(probes, &path).await, "", "the kubelet takes any answer for a success");
    }
}

/// All that the kubelet would hear on the health port.
async fn over_http(probes: Probes, path: &str) -> String {
    let (mut far, near) = tokio::io::duplex(4096);
    let probes = Arc::new(probes);
    tokio::spawn(http::serve(near, Duration::from_secs(9), move |request| {
        let probes = Arc::clone(&probes);
        async move { probes.answer(&Method::GET, request.uri().path()).await }
    }));
    far.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut said = String::new();
    let _ = far.read_to_string(&mut said).await;
    said
}

#[tokio::test]
async fn a_tcp_probe_is_good_where_the_app_accepts() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let probes = probes(&[("readiness", format!(r#"{{"tcp":{{"port":{port}}}}}"#))]);
    assert_eq!(say(&probes, "/app/web/readiness").await.0, 200);
}

/// A gRPC server that answers everything with this status and this message, and tells what it was asked.
async fn grpc(
    status: &'static str,
    message: &'static [u8],
) -> (u16, tokio::sync::mpsc::UnboundedReceiver<(String, Bytes)>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    let (tell, asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let tell = tell.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let tell = tell.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await?.to_bytes();
                    let _ = tell.send((path, body));
                    let trailers = [("grpc-status".parse().unwrap(), HeaderValue::from_static(status))];
                    let trailers = hyper::HeaderMap::from_iter(trailers);
                    let body = Full::new(Bytes::from_static(message)).with_trailers(async { Some(Ok(trailers)) });
                    Ok::<_, hyper::Error>(
                        Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
                    )
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(io), service),
            );
        }
    });
    (address.port(), asked)
}

#[tokio::test]
async fn a_grpc_probe_is_good_where_the_health_service_says_serving() {
    for (status, message, code, said) in [
        ("0", &[0, 0, 0, 0, 2, 8, 1][..], 200, "gRPC: SERVING\n"),
        ("0", &[0, 0, 0, 0, 2, 8, 2], 503, "gRPC: NOT_SERVING\n"),
        ("0", &[0, 0, 0, 0, 0], 503, "gRPC: UNKNOWN\n"),
        ("0", &[0, 0, 0, 0, 9, 8, 1], 503, "gRPC: the answer is no single message\n"),
        ("0", &[1, 0, 0, 0, 2, 8, 1], 503, "gRPC: the answer is no single message\n"),
        ("12", &[], 503, "gRPC: the app has no grpc.health.v1 (UNIMPLEMENTED)\n"),
        ("5", &[], 503, "gRPC: the app's health service does not know this service (NOT_FOUND)\n"),
        ("14", &[], 503, "gRPC status 14\n"),
    ] {
        let (port, mut asked) = grpc(status, message).await;
        let ask = format!(r#"{{"grpc":{{"port":{port},"service":"shop.Cart"}}}}"#);
        assert_eq!(say(&probes(&[("liveness", ask)]), "/app/web/liveness").await, (code, said.to_owned()));
        let (path, body) = asked.recv().await.unwrap();
        assert_eq!(path, "/grpc.health.v1.Health/Check");
        assert_eq!(&body[..], b"\0\0\0\0\x0b\x0a\x09shop.Cart");
    }
    let (port, _asked) = grpc("0", &[0, 0, 0, 0, 2, 8, 1]).await;
    let http = probes(&[("liveness", http_get(port, ""))]);
    assert_eq!(say(&http, "/app/web/liveness").await.0, 503, "no HTTP/1.1 there");
    let app = app("HTTP/1.1 200 OK\r\n\r\n").await;
    let no_grpc = probes(&[("liveness", format!(r#"{{"grpc":{{"port":{}}}}}"#, app.port))]);
    assert_eq!(say(&no_grpc, "/app/web/liveness").await.0, 503);
}

/// Self-signed, ended long ago, for another name: the kubelet takes it.
#[tokio::test]
async fn an_https_probe_looks_at_no_certificate() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["elsewhere.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let mut io = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let mut head = [0; 512];
            let _ = io.read(&mut head).await.unwrap();
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            let _ = io.shutdown().await;
        });
        let probes = probes(&[("liveness", http_get(port, r#","https":true"#))]);
        assert_eq!(say(&probes, "/app/web/liveness").await, (200, "HTTP status 200\n".to_owned()));
    }
    let plain = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = plain.local_addr().unwrap().port();
    tokio::spawn(async move { plain.accept().await.unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await });
    let probes = probes(&[("liveness", http_get(port, r#","https":true"#))]);
    let (status, said) = say(&probes, "/app/web/liveness").await;
    assert!(status == 503 && said.starts_with("TLS on 127.0.0.1"), "{said}");
}
