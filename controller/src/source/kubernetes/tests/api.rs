//! An API server in memory, as far as lists, watches and status writes go: resource versions, pages, bookmarks of its past, 410 for
//! what it has forgotten, and every kind of refusal.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;
use tower::service_fn;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Namespace and name.
type Key = (String, String);

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
}

struct State {
    version: u64,
    objects: BTreeMap<String, BTreeMap<Key, Value>>,
    /// What happened since `forgotten`.
    past: Vec<Happened>,
    forgotten: u64,
    live: broadcast::Sender<Happened>,
    lists: BTreeMap<String, usize>,
    forbidden: Vec<String>,
    refuse: bool,
    writes: usize,
    write_attempts: usize,
    refuse_writes: u16,
}

#[derive(Clone)]
struct Happened {
    version: u64,
    path: String,
    line: String,
    /// Ends every watch.
    cut: bool,
}

impl FakeApi {
    pub fn new() -> Self {
        let state = State {
            version: 1,
            objects: BTreeMap::new(),
            past: Vec::new(),
            forgotten: 0,
            live: broadcast::channel(4096).0,
            lists: BTreeMap::new(),
            forbidden: Vec::new(),
            refuse: false,
            writes: 0,
            write_attempts: 0,
            refuse_writes: 0,
        };
        FakeApi { state: Arc::new(Mutex::new(state)) }
    }

    pub fn client(&self) -> Client {
        let api = self.clone();
        let serve = move |request: Request<Body>| {
            let api = api.clone();
            Box::pin(async move { api.serve(request).await })
                as Pin<Box<dyn Future<Output = Result<Answer, std::io::Error>> + Send>>
        };
        Client::new(service_fn(serve), "default")
    }

    /// Creates or changes; a status that is there stays.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        let old = state.objects.get(path).and_then(|objects| objects.get(&key(&object))).cloned();
        if let Some(status) = old.as_ref().filter(|_| path.contains("policies")).and_then(|old| old.get("status")) {
            object["status"] = status.clone();
        }
        state.happen(path, if old.is_some() { "MODIFIED" } else { "ADDED" }, object);
    }

    pub fn delete(&self, path: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        let objects = state.objects.get_mut(path).unwrap();
        let key = objects.keys().find(|(_, known)| known == name).unwrap().clone();
        let object = objects.remove(&key).unwrap();
        state.happen(path, "DELETED", object);
    }

    pub fn find(&self, path: &str, name: &str) -> Option<Value> {
        let state = self.state.lock().unwrap();
        state.objects.get(path)?.iter().find(|((_, known), _)| known == name).map(|(_, object)| object.clone())
    }

    /// Ends every watch.
    pub fn cut(&self) {
        let state = self.state.lock().unwrap();
        let _ = state.live.send(Happened { version: 0, path: String::new(), line: String::new(), cut: true });
    }

    /// Answers nobody.
    pub fn refuse(&self, refuse: bool) {
        self.state.lock().unwrap().refuse = refuse;
    }

    pub fn forbid(&self, path: &str, forbid: bool) {
        let mut state = self.state.lock().unwrap();
        state.forbidden.retain(|known| known != path);
        if forbid {
            state.forbidden.push(path.to_owned());
        }
    }

    /// What happened until now can be watched no more.
    pub fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        state.past.clear();
        state.forgotten = state.version;
    }

    pub fn refuse_writes(&self, code: u16) {
        self.state.lock().unwrap().refuse_writes = code;
    }

    /// Lists, page by page.
    pub fn lists(&self, path: &str) -> usize {
        self.state.lock().unwrap().lists.get(path).copied().unwrap_or(0)
    }

    pub fn writes(&self) -> usize {
        self.state.lock().unwrap().writes
    }

    pub fn write_attempts(&self) -> usize {
        self.state.lock().unwrap().write_attempts
    }

    async fn serve(&self, request: Request<Body>) -> Result<Answer, std::io::Error> {
        let path = request.uri().path().to_owned();
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let method = request.method().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut state = self.state.lock().unwrap();
        if state.refuse {
            return Err(std::io::Error::other("connection refused"));
        }
        if state.forbidden.contains(&path) {
            return Ok(failure(403, "you may not"));
        }
        Ok(match (method, query.contains_key("watch")) {
            (Method::GET, false) => state.list(&path, &query),
            (Method::GET, true) => state.watch(&path, &query),
            (Method::PATCH, _) => state.write(&path, &body),
            _ => failure(405, "what?"),
        })
    }
}

impl State {
    fn happen(&mut self, path: &str, kind: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if kind != "DELETED" {
            self.objects.entry(path.to_owned()).or_default().insert(key(&object), object.clone());
        }
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let happened = Happened { version: self.version, path: path.to_owned(), line, cut: false };
        self.past.push(happened.clone());
        let _ = self.live.send(happened);
    }

    fn list(&mut self, path: &str, query: &BTreeMap<String, String>) -> Answer {
        *self.lists.entry(path.to_owned()).or_default() += 1;
        let limit: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let from: usize = query.get("continue").map_or(0, |from| from.parse().unwrap());
        let none = BTreeMap::new();
        let objects = self.objects.get(path).unwrap_or(&none);
        let page: Vec<Value> = objects.values().skip(from).take(limit).cloned().collect();
        let more = (from + page.len() < objects.len()).then(|| (from + page.len()).to_string());
        let list = json!({
            "apiVersion": "v1", "kind": "List", "items": page,
            "metadata": {"resourceVersion": self.version.to_string(), "continue": more.unwrap_or_default()},
        });
        answer(200, list.to_string())
    }

    fn watch(&mut self, path: &str, query: &BTreeMap<String, String>) -> Answer {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        if from < self.forgotten {
            let gone = json!({"type": "ERROR", "object": {
                "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old resource version",
            }});
            return answer(200, format!("{gone}\n"));
        }
        let past: Vec<Happened> =
            self.past.iter().filter(|happened| happened.version > from && happened.path == path).cloned().collect();
        let path = path.to_owned();
        let live = BroadcastStream::new(self.live.subscribe())
            .map_while(|happened| happened.ok().filter(|happened| !happened.cut))
            .filter(move |happened| happened.path == path);
        let lines = tokio_stream::iter(past).chain(live).map(|happened| Ok(Frame::data(Bytes::from(happened.line))));
        Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
    }

    /// Server-side apply of a status.
    fn write(&mut self, path: &str, body: &[u8]) -> Answer {
        self.write_attempts += 1;
        if self.refuse_writes > 0 {
            return failure(self.refuse_writes, "not now");
        }
        let patch: Value = serde_json::from_slice(body).unwrap();
        let parts: Vec<&str> = path.split('/').collect();
        let [_, _, group, version, _, namespace, plural, name, "status"] = parts[..] else { panic!("{path}") };
        let of = format!("/apis/{group}/{version}/{plural}");
        let key = (namespace.to_owned(), name.to_owned());
        let Some(mut object) = self.objects.get(&of).and_then(|objects| objects.get(&key)).cloned() else {
            return failure(404, "not found");
        };
        if patch["metadata"]["uid"] != object["metadata"]["uid"] {
            return failure(409, "another uid");
        }
        self.writes += 1;
        object["status"] = patch["status"].clone();
        self.happen(&of, "MODIFIED", object.clone());
        answer(200, object.to_string())
    }
}

fn key(object: &Value) -> Key {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn failure(code: u16, message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "x"});
    answer(code, status.to_string())
}

fn answer(code: u16, text: String) -> Answer {
    let body = BodyExt::boxed_unsync(Full::new(Bytes::from(text)));
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}
