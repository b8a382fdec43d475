//! The probes of the pod's spec, as the injector wrote them, checked once.
//!
//! Called by `config`; `probes` asks them. It must never let a caller choose what is asked, nor ask the proxy's own ports.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use countersign_api::probes::{self as said, Kind, MAX_HEADERS, MAX_PROBES, MAX_TEXT, MAX_TIMEOUT_SECONDS};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::PathAndQuery;
use serde::Serialize;

/// Headers that speak of the connection itself, which is ours.
const OURS: [HeaderName; 6] = [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// One probe or hook.
#[derive(Clone)]
pub struct AppProbe {
    /// Its container.
    pub container: String,
    /// Which of the container's.
    pub kind: Kind,
    /// How long the app may take.
    pub timeout: Duration,
    /// What is asked.
    pub ask: Ask,
    /// A hook's: it is asked by who knows this alone. Never shown.
    token: Option<String>,
}

impl fmt::Debug for AppProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} within {:?}: {:?}", said::path(&self.container, self.kind, None), self.timeout, self.ask)
    }
}

/// What is asked of the app.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A GET over HTTP/1.1.
    Http(HttpAsk),
    /// A connection.
    Tcp {
        /// Port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// Port.
        port: u16,
        /// Service; may be empty.
        service: String,
    },
}

/// A GET.
#[derive(Clone)]
pub struct HttpAsk {
    /// Port.
    pub port: u16,
    /// TLS, whose certificate is not verified.
    pub https: bool,
    /// Path and query.
    pub target: PathAndQuery,
    /// Of the pod's spec. They may hold a secret, and are never shown.
    pub headers: HeaderMap,
}

impl fmt::Debug for HttpAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GET {} on {}, {} headers", self.target.path(), self.port, self.headers.len())
    }
}

/// What `/config_dump` shows: neither headers nor query, nor a hook's token.
#[derive(Debug, Serialize)]
pub struct ProbeView {
    path: String,
    asks: &'static str,
    port: u16,
    timeout_seconds: u64,
}

impl AppProbe {
    /// Where it is answered on the health port. Of a hook: a secret.
    #[must_use]
    pub fn path(&self) -> String {
        said::path(&self.container, self.kind, self.token.as_deref())
    }

    /// Which port of the app is asked.
    #[must_use]
    pub fn port(&self) -> u16 {
        match &self.ask {
            Ask::Http(http) => http.port,
            Ask::Tcp { port } | Ask::Grpc { port, .. } => *port,
        }
    }

    /// For people.
    #[must_use]
    pub fn view(&self) -> ProbeView {
        let asks = match &self.ask {
            Ask::Http(http) if http.https => "https",
            Ask::Http(_) => "http",
            Ask::Tcp { .. } => "tcp",
            Ask::Grpc { .. } => "grpc",
        };
        let path = said::path(&self.container, self.kind, None);
        ProbeView { path, asks, port: self.port(), timeout_seconds: self.timeout.as_secs() }
    }
}

/// Reads what [`countersign_api::env::PROBES`] holds. The error names the container, the probe and the field.
pub fn read(text: &str) -> Result<Vec<AppProbe>, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("longer than {MAX_TEXT} bytes"));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    // With keys as text: an error can then name which probe it is in.
    let probes: Said = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path: String = error.path().to_string().chars().take(200).collect();
        let why: String = error.inner().to_string().chars().take(200).collect();
        format!("{path}: {why}")
    })?;
    json.end().map_err(|error| error.to_string())?;
    if probes.values().map(BTreeMap::len).sum::<usize>() > MAX_PROBES {
        return Err(format!("more than {MAX_PROBES} probes"));
    }
    let mut checked = Vec::new();
    for (container, of_container) in probes {
        if !is_label(&container) {
            let quoted: String = container.chars().take(80).collect();
            return Err(format!("{quoted:?} is not a container's name"));
        }
        for (kind, probe) in of_container {
            let quoted: String = kind.chars().take(80).collect();
            let kind = kind_of(&kind).ok_or_else(|| format!("{container}: {quoted:?} is no probe"))?;
            let one = check(&container, kind, probe);
            checked.push(one.map_err(|why| format!("{container}.{}: {why}", kind.as_str()))?);
        }
    }
    Ok(checked)
}

/// [`said::Probes`] before its words are known.
type Said = BTreeMap<String, BTreeMap<String, said::Probe>>;

fn kind_of(word: &str) -> Option<Kind> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
}

fn check(container: &str, kind: Kind, probe: said::Probe) -> Result<AppProbe, String> {
    let seconds = probe.timeout_seconds;
    if !(1..=MAX_TIMEOUT_SECONDS).contains(&seconds) {
        return Err(format!("timeoutSeconds: {seconds} is not within 1 and {MAX_TIMEOUT_SECONDS}"));
    }
    match probe.token.as_deref() {
        Some(token) if kind.is_hook() && said::is_token(token) => {}
        None if !kind.is_hook() => {}
        None => return Err("token: a hook that anybody could ask for".to_owned()),
        // Not what it is: that is a secret, if a bad one.
        Some(_) if kind.is_hook() => return Err("token: not 32 hexadecimal digits".to_owned()),
        Some(_) => return Err("token: a probe has none".to_owned()),
    }
    let ask = match probe.ask {
        said::Ask::Http { port, path, https, headers } => {
            Ask::Http(HttpAsk { port, https, target: target(&path)?, headers: read_headers(headers)? })
        }
        said::Ask::Tcp { port } => Ask::Tcp { port },
        said::Ask::Grpc { port, service } => Ask::Grpc { port, service },
    };
    let timeout = Duration::from_secs(u64::from(seconds));
    let checked = AppProbe { container: container.to_owned(), kind, timeout, ask, token: probe.token };
    if checked.port() == 0 { Err("port: 0 is not a port (1-65535)".to_owned()) } else { Ok(checked) }
}

/// RFC 1123: what Kubernetes allows as a container's name.
fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Kubernetes takes any text as a path, and the kubelet makes an URL of it: so do we.
fn target(path: &str) -> Result<PathAndQuery, String> {
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.split('#').next().unwrap_or_default().bytes() {
        match byte {
            0x21..=0x7e if !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') => {
                target.push(char::from(byte));
            }
            _ => target.push_str(&format!("%{byte:02X}")),
        }
    }
    PathAndQuery::try_from(target).map_err(|error| format!("path: {error}"))
}

fn read_headers(headers: Vec<(String, String)>) -> Result<HeaderMap, String> {
    if headers.len() > MAX_HEADERS {
        return Err(format!("headers: more than {MAX_HEADERS}"));
    }
    let mut read = HeaderMap::new();
    for (at, (name, value)) in headers.iter().enumerate() {
        let name = HeaderName::try_from(name).map_err(|_| format!("headers[{at}]: the name is no header's"))?;
        let value =
            HeaderValue::try_from(value).map_err(|_| format!("headers[{at}]: {name} cannot have this value"))?;
        if !OURS.contains(&name) {
            read.append(name, value);
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "00112233445566778899aabbccddeeff";

    fn refusal(text: &str) -> String {
        read(text).unwrap_err()
    }

    fn http(path: &str, headers: &str) -> Result<HttpAsk, String> {
        let text = format!(
            r#"{{"web":{{"liveness":{{"timeoutSeconds":1,"ask":{{"http":{{"port":80,"path":{path:?},"headers":{headers}}}}}}}}}}}"#
        );
        match read(&text)?.remove(0).ask {
            Ask::Http(http) => Ok(http),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn what_the_injector_writes_is_read_back() {
        let of = |ask| said::Probe { timeout_seconds: 3, ask, token: None };
        let hook = |ask| said::Probe { token: Some(TOKEN.to_owned()), ..of(ask) };
        let web = [
            (Kind::Liveness, of(said::Ask::Tcp { port: 5432 })),
            (Kind::Readiness, of(said::Ask::Grpc { port: 9000, service: "shop.Cart".into() })),
            (
                Kind::PreStop,
                hook(said::Ask::Http { port: 8443, path: "/bye?now".into(), https: true, headers: Vec::new() }),
            ),
        ];
        let probes = said::Probes::from([("web".to_owned(), web.into())]);
        let read = read(&serde_json::to_string(&probes).unwrap()).unwrap();
        let shown: Vec<_> = read.iter().map(|probe| (probe.path(), probe.view().asks, probe.port())).collect();
        let expected = [
            ("/app/web/liveness".to_owned(), "tcp", 5432),
            ("/app/web/preStop".to_owned(), "https", 8443),
            ("/app/web/readiness".to_owned(), "grpc", 9000),
        ];
        let expected = expected.map(|(path, asks, port)| match path.ends_with("preStop") {
            true => (format!("{path}/{TOKEN}"), asks, port),
            false => (path, asks, port),
        });
        assert_eq!(shown, expected);
        let views = serde_json::to_string(&read.iter().map(AppProbe::view).collect::<Vec<_>>()).unwrap();
        assert!(views.contains("/app/web/preStop") && !views.contains(TOKEN), "{views}");
        assert!(!format!("{read:?}").contains(TOKEN));
        assert!(read.iter().all(|probe| probe.timeout == Duration::from_secs(3)));
    }

    #[test]
    fn an_error_names_the_container_the_probe_and_the_field() {
        for (text, said) in [
            (
                r#"{"web":{"liveness":{"timeoutSeconds":1,"ask":{"tcp":{"port":70000}}}}}"#,
                "web.liveness.ask.tcp.port: ",
            ),
            (r#"{"web":{"liveness":{"timeoutSeconds":1,"ask":{"exec":{}}}}}"#, "web.liveness.ask"),
            (r#"{"web":{"alive":{"timeoutSeconds":1,"ask":{"tcp":{"port":1}}}}}"#, "web: \"alive\" is no probe"),
            (r#"{"web":{"liveness":{}}}"#, "web.liveness: missing field"),
            (
                r#"{"web":{"liveness":{"timeoutSeconds":1,"retry":2,"ask":{"tcp":{"port":1}}}}}"#,
                "unknown field `retry`",
            ),
            (
                r#"{"web":{"liveness":{"timeoutSeconds":0,"ask":{"tcp":{"port":1}}}}}"#,
                "web.liveness: timeoutSeconds: 0",
            ),
            (r#"{"web":{"startup":{"timeoutSeconds":1,"ask":{"tcp":{"port":0}}}}}"#, "web.startup: port: 0"),
            (r#"{"web":{"preStop":{"timeoutSeconds":1,"ask":{"tcp":{"port":1}}}}}"#, "web.preStop: token: a hook that"),
            (
                r#"{"web":{"preStop":{"timeoutSeconds":1,"ask":{"tcp":{"port":1}},"token":"0123"}}}"#,
                "web.preStop: token: not 32",
            ),
            (
                r#"{"web":{"startup":{"timeoutSeconds":1,"ask":{"tcp":{"port":1}},"token":"00112233445566778899aabbccddeeff"}}}"#,
                "web.startup: token: a probe has none",
            ),
            (r#"{"../x":{}}"#, "is not a container's name"),
            ("{} {}", "trailing characters"),
        ] {
            assert!(refusal(text).contains(said), "{text}: {}", refusal(text));
        }
        assert!(http("/", r#"[["a b","c"]]"#).unwrap_err().contains("headers[0]"));
        assert!(http("/", r#"[["a","b\nc: d"]]"#).unwrap_err().contains("headers[0]: a cannot have this value"));
    }

    #[test]
    fn a_path_of_any_text_becomes_one_target() {
        for (path, target) in [
            ("/healthz", "/healthz"),
            ("", "/"),
            ("healthz?a=b&c", "/healthz?a=b&c"),
            ("/a b\r\nHost: x", "/a%20b%0D%0AHost:%20x"),
            ("/ä#fragment", "/%C3%A4"),
            ("/%20", "/%20"),
        ] {
            assert_eq!(http(path, "[]").unwrap().target.as_str(), target);
        }
    }

    #[test]
    fn headers_are_those_of_the_spec_but_for_the_connections_own_and_are_not_shown() {
        let ask = http("/", r#"[["Authorization","Bearer s3cret"],["X-A","1"],["x-a","2"],["Connection","upgrade"]]"#);
        let ask = ask.unwrap();
        assert_eq!(ask.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!((ask.headers.len(), ask.headers.contains_key("connection")), (3, false));
        assert!(!format!("{ask:?}").contains("s3cret"));
    }
}
