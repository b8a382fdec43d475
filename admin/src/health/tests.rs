use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// A process with these conditions.
struct Process(Vec<Check>);

impl Health for Process {
    fn checks(&self) -> Vec<Check> {
        self.0.clone()
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        Ok("# EOF\n".to_owned())
    }
}

fn check(name: &'static str, problem: &'static str) -> Check {
    Check::new(name, Some(problem).filter(|problem| !problem.is_empty()))
}

async fn ask(checks: &[Check], method: &str, path: &str, accept: &str) -> (u16, String, String) {
    let request = Request::builder().method(method).uri(path).header(ACCEPT, accept).body(()).unwrap();
    let answer = answer(&Process(checks.to_vec()), &request);
    let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, content_type, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn alive_is_not_ready() {
    let checks = [check("drain", ""), check("rules", "no rules yet"), check("listeners", "not bound yet")];
    assert_eq!(ask(&checks, "GET", "/livez", "").await.0, 200);
    let (status, _, body) = ask(&checks, "GET", "/readyz", "").await;
    assert_eq!((status, body.as_str()), (503, "[-] rules: no rules yet\n[-] listeners: not bound yet\nnot ready\n"));
    let (_, _, body) = ask(&checks, "GET", "/readyz?verbose", "").await;
    assert_eq!(body, "[+] drain\n[-] rules: no rules yet\n[-] listeners: not bound yet\nnot ready\n");
    assert_eq!(ready(&checks).unwrap_err(), "no rules yet");
    let (status, _, body) = ask(&checks[..1], "GET", "/readyz", "").await;
    assert_eq!((status, body.as_str()), (200, "ready\n"));
}

#[tokio::test]
async fn what_looked_at_nothing_is_not_ready() {
    assert_eq!(ask(&[], "GET", "/readyz", "").await.0, 503);
}

#[tokio::test]
async fn metrics_are_openmetrics_to_whoever_asks_for_it_and_text_to_others() {
    for (accept, expected) in [
        ("application/openmetrics-text;version=1.0.0,*/*;q=0.1", OPENMETRICS),
        ("text/plain;q=0.5, application/openmetrics-text", OPENMETRICS),
        ("*/*", PLAIN_METRICS),
        ("", PLAIN_METRICS),
    ] {
        let (status, content_type, body) = ask(&[], "GET", "/metrics", accept).await;
        assert_eq!((status, content_type.as_str(), body.as_str()), (200, expected, "# EOF\n"), "{accept}");
    }
}

#[tokio::test]
async fn nothing_else_is_there_and_nothing_can_be_changed() {
    for path in ["/", "/status", "/config_dump", "/log", "/drain", "/readyz/", "/metrics/../status"] {
        assert_eq!(ask(&[], "GET", path, "").await.0, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT"] {
        assert_eq!(ask(&[], method, "/readyz", "").await.0, 405, "{method}");
    }
}

async fn livez(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_unspecified_address_serves_both_ip_versions() {
    let listener = bind((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve(listener, Arc::new(Process(Vec::new())), |_| ()));
    assert!(livez(([127, 0, 0, 1], port).into()).await.starts_with("HTTP/1.1 200"));
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        assert!(livez((Ipv6Addr::LOCALHOST, port).into()).await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn one_address_is_only_that_address_and_a_taken_one_an_error() {
    let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(address.ip(), Ipv4Addr::LOCALHOST);
    assert_eq!(bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}
