//! A small API server in memory, over plain HTTP: objects by their path, resource versions that are checked, JSON patches that are
//! applied by somebody else's code. Used by unit tests and by the test of the binary, which reach it with a kubeconfig. The truth is
//! the cluster; this is for races and faults that a cluster does not show on demand.

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

pub const SYSTEM: &str = "countersign-system";
pub const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/countersign-injector";
pub const VALIDATING: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/countersign-policies";
pub const SECRET: &str = "/api/v1/namespaces/countersign-system/secrets/countersign-injector-tls";

/// As the chart has it.
pub fn empty_secret() -> Value {
    json!({ "metadata": { "name": "countersign-injector-tls", "labels": { "of": "the chart" } }, "type": "Opaque" })
}

/// Called with method and path before a request is answered; may change the objects, or give an error's code.
pub type Hook = Box<dyn FnMut(&str, &str, &mut State) -> Option<u16> + Send>;

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Value>,
    pub version: u64,
    pub asked: Vec<String>,
}

impl State {
    pub fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

#[derive(Clone)]
pub struct ApiServer {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
    hook: Arc<Mutex<Option<Hook>>>,
    dir: Arc<tempfile::TempDir>,
}

impl ApiServer {
    /// With both webhook configurations, the empty Secret, and a namespace `shop` that is labelled in.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            hook: Arc::default(),
            dir: Arc::new(tempfile::tempdir().unwrap()),
        };
        server.namespace("shop", &[("countersign.dev/inject", "enabled")]);
        server.put(SECRET, empty_secret());
        for path in [MUTATING, VALIDATING] {
            let entry = |name: &str| json!({ "name": name, "clientConfig": { "service": { "name": "countersign-injector", "namespace": SYSTEM } } });
            let name = path.rsplit('/').next().unwrap();
            server.put(path, json!({ "metadata": { "name": name }, "webhooks": [entry("a"), entry("b")] }));
        }
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let server = accepting.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service));
            }
        });
        server
    }

    pub fn kubeconfig(&self) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", self.address) } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": {} }],
        });
        std::fs::write(&path, text.to_string()).unwrap();
        path
    }

    pub fn put(&self, path: &str, object: Value) {
        self.state.lock().unwrap().put(path, object);
    }

    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        self.put(&format!("/api/v1/namespaces/{name}"), json!({ "metadata": { "name": name, "labels": labels } }));
    }

    pub fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    pub fn remove(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path);
    }

    pub fn hook(&self, hook: impl FnMut(&str, &str, &mut State) -> Option<u16> + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn unhook(&self) {
        *self.hook.lock().unwrap() = None;
    }

    /// Requests so far, as `METHOD path`.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut state = self.state.lock().unwrap();
        state.asked.push(format!("{method} {path}"));
        let failed = self.hook.lock().unwrap().as_mut().and_then(|hook| hook(method.as_str(), &path, &mut state));
        let result = match failed {
            Some(code) => Err(code),
            None => act(&mut state, &method, &path, &body),
        };
        let (code, value) = match result {
            Ok(object) => (200, object),
            Err(code) => (
                code,
                json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": "Test", "message": "as the test wants" }),
            ),
        };
        let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
        *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap();
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    }
}

fn act(state: &mut State, method: &Method, path: &str, body: &[u8]) -> Result<Value, u16> {
    let json = || serde_json::from_slice::<Value>(body).map_err(|_| 400_u16);
    let current = state.objects.get(path).cloned();
    match method.as_str() {
        "GET" => current.ok_or(404),
        // Nobody may make anything.
        "POST" => Err(403),
        "PUT" => {
            let (object, current) = (json()?, current.ok_or(404_u16)?);
            let (wanted, is) = (&object["metadata"]["resourceVersion"], &current["metadata"]["resourceVersion"]);
            if !wanted.is_null() && wanted != is {
                return Err(409);
            }
            Ok(state.put(path, object))
        }
        "PATCH" => {
            let mut object = current.ok_or(404_u16)?;
            let patch: json_patch::Patch = serde_json::from_value(json()?).map_err(|_| 400_u16)?;
            json_patch::patch(&mut object, &patch).map_err(|_| 422_u16)?;
            Ok(state.put(path, object))
        }
        _ => Err(405),
    }
}
