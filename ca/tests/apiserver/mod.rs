//! A small API server in memory, for tests only: objects with resource versions, conflicts, watches with history, TokenReview,
//! and faults on demand. What it does not know (RBAC, field ownership, admission) is tested on a real one, in tests/cluster.
//!
//! Used inside of this process as a `kube::Client`, or over HTTP by a whole CA.

// Each of the two test programs uses its own half.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

type Body = UnsyncBoxBody<Bytes, Infallible>;
/// Resource, namespace, name.
type Key = (String, String, String);
type Review = Box<dyn Fn(&str, &[String]) -> Value + Send>;

/// What goes wrong, instead of an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This code, with this reason.
    Status(u16, &'static str),
    /// No answer ever.
    Hang,
    /// An answer that is none.
    Garbage(&'static str),
}

/// What somebody asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub verb: &'static str,
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub query: BTreeMap<String, String>,
    pub body: String,
}

/// The server; clones share it.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
}

struct Inner {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<Change>,
    /// Watches may not begin before this.
    compacted: u64,
    /// Watches of an older epoch end.
    epoch: u64,
    faults: Vec<(&'static str, &'static str, Fault, usize)>,
    asked: Vec<Asked>,
    review: Review,
}

struct Change {
    revision: u64,
    key: Key,
    before: Option<Value>,
    after: Option<Value>,
}

impl ApiServer {
    pub fn new() -> Self {
        let inner = Inner {
            revision: 1,
            objects: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            epoch: 0,
            faults: Vec::new(),
            asked: Vec::new(),
            review: Box::new(|_, _| json!({ "authenticated": false })),
        };
        Self { inner: Arc::new(Mutex::new(inner)), changed: watch::Sender::new(0) }
    }

    /// A client that asks it without a network, through the layer of the real one.
    pub fn client(&self, limit: &tower::timeout::TimeoutLayer) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                Ok::<_, std::io::Error>(server.answer(Request::from_parts(head, bytes)).await)
            }
        });
        kube::client::ClientBuilder::new(service, "default").with_layer(limit).build()
    }

    /// Serves HTTP on a free port of 127.0.0.1, until the runtime ends.
    pub async fn listen(&self) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let server = server.clone();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let server = server.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let bytes = body.collect().await?.to_bytes();
                        Ok::<_, hyper::Error>(server.answer(Request::from_parts(head, bytes)).await)
                    }
                });
                let io = hyper_util::rt::TokioIo::new(tcp);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
            }
        });
        address
    }

    /// The answers of TokenReview: from token and audiences to status.
    pub fn reviews(&self, review: impl Fn(&str, &[String]) -> Value + Send + 'static) {
        self.lock().review = Box::new(review);
    }

    /// The next `times` requests of that verb and resource go wrong.
    pub fn fail(&self, verb: &'static str, resource: &'static str, fault: Fault, times: usize) {
        self.lock().faults.push((verb, resource, fault, times));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Ends all watches that are open.
    pub fn end_watches(&self) {
        self.lock().epoch += 1;
        self.tell();
    }

    /// Ends all watches, and none may begin where it left off: 410 Gone.
    pub fn compact(&self) {
        let mut inner = self.lock();
        inner.epoch += 1;
        // So that even the newest version that a client has seen is too old.
        inner.revision += 1;
        inner.compacted = inner.revision;
        drop(inner);
        self.tell();
    }

    /// Puts an object there, whatever was there.
    pub fn put(&self, resource: &str, object: Value) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = (resource.to_owned(), text("/metadata/namespace"), text("/metadata/name"));
        self.lock().store(key, Some(object));
        self.tell();
    }

    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.lock().store((resource.to_owned(), namespace.to_owned(), name.to_owned()), None);
        self.tell();
    }

    pub fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Waits until `good` is true of that object.
    pub async fn until(&self, resource: &str, namespace: &str, name: &str, good: impl Fn(Option<&Value>) -> bool) {
        let mut changed = self.changed.subscribe();
        while !good(self.object(resource, namespace, name).as_ref()) {
            changed.changed().await.unwrap();
        }
    }

    /// Waits until `good` is true of all that was asked.
    pub async fn until_asked(&self, good: impl Fn(&[Asked]) -> bool) {
        let mut changed = self.changed.subscribe();
        while !good(&self.lock().asked) {
            changed.changed().await.unwrap();
        }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// How often.
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        self.lock().asked.iter().filter(|one| one.verb == verb && one.resource == resource).count()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    async fn answer(&self, request: Request<Bytes>) -> Response<Body> {
        let asked = parse(&request);
        let fault = self.lock().note(asked.clone());
        self.tell();
        match fault {
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Status(code, reason)) => return failure(code, reason, "on demand"),
            Some(Fault::Garbage(text)) => return text_body(200, text.to_owned()),
            None => {}
        }
        if asked.verb == "watch" {
            return self.watch(asked);
        }
        let answer = self.lock().answer(&asked);
        self.tell();
        answer
    }

    fn watch(&self, asked: Asked) -> Response<Body> {
        let from = asked.query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let (epoch, compacted) = {
            let inner = self.lock();
            (inner.epoch, inner.compacted)
        };
        if from < compacted {
            // As a real one says it: in the stream.
            let status = json!({ "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old" });
            return text_body(200, format!("{}\n", json!({ "type": "ERROR", "object": status })));
        }
        let (send, receive) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        let server = self.clone();
        tokio::spawn(async move {
            let mut changed = server.changed.subscribe();
            let mut seen = from;
            loop {
                let (lines, upto, now) = {
                    let inner = server.lock();
                    (inner.events(&asked, seen), inner.revision, inner.epoch)
                };
                for line in lines {
                    if send.send(Ok(Frame::data(Bytes::from(line)))).await.is_err() {
                        return;
                    }
                }
                seen = upto;
                if now != epoch {
                    return;
                }
                tokio::select! {
                    changed = changed.changed() => if changed.is_err() { return },
                    () = send.closed() => return,
                }
            }
        });
        Response::new(StreamBody::new(ReceiverStream::new(receive)).boxed_unsync())
    }
}

impl Inner {
    /// Remembers the request; what is to go wrong with it.
    fn note(&mut self, asked: Asked) -> Option<Fault> {
        let at = self.faults.iter().position(|(verb, resource, ..)| *verb == asked.verb && *resource == asked.resource);
        self.asked.push(asked);
        let at = at?;
        let fault = self.faults[at].2.clone();
        self.faults[at].3 -= 1;
        if self.faults[at].3 == 0 {
            self.faults.remove(at);
        }
        Some(fault)
    }

    fn store(&mut self, key: Key, object: Option<Value>) -> Option<Value> {
        let before = self.objects.remove(&key);
        self.revision += 1;
        let revision = self.revision;
        let after = object.map(|mut object| {
            let uid =
                before.as_ref().map_or_else(|| json!(format!("uid-{revision}")), |old| old["metadata"]["uid"].clone());
            object["metadata"]["uid"] = uid;
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
            self.objects.insert(key.clone(), object.clone());
            object
        });
        let before = before.map(|mut old| {
            // A deletion has a version of its own.
            if after.is_none() {
                old["metadata"]["resourceVersion"] = json!(revision.to_string());
            }
            old
        });
        self.history.push(Change { revision, key, before, after: after.clone() });
        after
    }

    fn answer(&mut self, asked: &Asked) -> Response<Body> {
        let key = (asked.resource.clone(), asked.namespace.clone(), asked.name.clone());
        let found = self.objects.get(&key).cloned();
        let body: Value = serde_json::from_str(&asked.body).unwrap_or_default();
        match (asked.verb, found) {
            ("create", _) if asked.resource == "tokenreviews" => {
                let audiences = serde_json::from_value(body["spec"]["audiences"].clone()).unwrap_or_default();
                let status =
                    (self.review)(body["spec"]["token"].as_str().unwrap_or_default(), audiences_of(&audiences));
                let mut review = body;
                review["status"] = status;
                object_body(201, &review)
            }
            ("create", _) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let key = (asked.resource.clone(), asked.namespace.clone(), name);
                if self.objects.contains_key(&key) {
                    return failure(409, "AlreadyExists", "already exists");
                }
                self.kept(201, key, body)
            }
            ("list", _) => {
                let items: Vec<_> =
                    self.objects.iter().filter(|(key, value)| asked.matches(key, value)).map(|(_, v)| v).collect();
                let version = self.revision.to_string();
                let list = json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": version }, "items": items });
                object_body(200, &list)
            }
            // Server-side apply makes what is not there; a merge patch does not.
            ("patch", None) if asked.query.contains_key("fieldManager") => self.kept(201, key, body),
            (_, None) => failure(404, "NotFound", "not found"),
            ("get", Some(object)) => object_body(200, &object),
            ("update", Some(object)) => {
                let wanted = body["metadata"]["resourceVersion"].as_str();
                if wanted.is_some_and(|wanted| object["metadata"]["resourceVersion"] != wanted) {
                    return failure(409, "Conflict", "the object has been modified");
                }
                self.kept(200, key, body)
            }
            ("patch", Some(object)) => {
                let wanted = body["metadata"]["resourceVersion"].as_str();
                if wanted.is_some_and(|wanted| object["metadata"]["resourceVersion"] != wanted) {
                    return failure(409, "Conflict", "the object has been modified");
                }
                // Owned by another manager, as all that is applied here without force is.
                let applied = asked.query.contains_key("fieldManager") && !asked.query.contains_key("force");
                let other = |(name, value): (&String, &Value)| object["data"].get(name).is_some_and(|old| old != value);
                if applied && body["data"].as_object().is_some_and(|data| data.iter().any(other)) {
                    return failure(409, "Conflict", "conflict with another field manager");
                }
                let mut merged = object.clone();
                merge(&mut merged, &body);
                if merged == object { object_body(200, &object) } else { self.kept(200, key, merged) }
            }
            ("delete", Some(object)) => {
                self.store(key, None);
                object_body(200, &object)
            }
            (verb, _) => failure(405, "MethodNotAllowed", verb),
        }
    }

    fn kept(&mut self, code: u16, key: Key, mut object: Value) -> Response<Body> {
        object["metadata"]["namespace"] = json!(key.1);
        object["metadata"]["name"] = json!(key.2);
        let stored = self.store(key, Some(object)).unwrap_or_default();
        object_body(code, &stored)
    }

    /// The lines that a watch is sent for what came after `seen`.
    fn events(&self, asked: &Asked, seen: u64) -> Vec<String> {
        let matches = |key: &Key, value: &Option<Value>| value.as_ref().is_some_and(|value| asked.matches(key, value));
        let later = self.history.iter().filter(|change| change.revision > seen);
        later
            .filter_map(|change| {
                let (was, is) = (matches(&change.key, &change.before), matches(&change.key, &change.after));
                let (kind, object) = match (was, is) {
                    (false, true) => ("ADDED", change.after.clone()),
                    (true, true) => ("MODIFIED", change.after.clone()),
                    (true, false) => ("DELETED", change.before.clone()),
                    (false, false) => return None,
                };
                Some(format!("{}\n", json!({ "type": kind, "object": object })))
            })
            .collect()
    }
}

impl Asked {
    fn matches(&self, key: &Key, value: &Value) -> bool {
        let selected = |query: &str, of: &dyn Fn(&str) -> Option<String>| {
            let selector = self.query.get(query).map(String::as_str).unwrap_or_default();
            selector.split(',').filter(|one| !one.is_empty()).all(|one| {
                let (name, wanted) = one.split_once('=').expect("NAME=VALUE is all that is known here");
                of(name).as_deref() == Some(wanted)
            })
        };
        let label = |name: &str| value["metadata"]["labels"][name].as_str().map(str::to_owned);
        let field = |name: &str| value.pointer(&format!("/{}", name.replace('.', "/")))?.as_str().map(str::to_owned);
        key.0 == self.resource
            && (self.namespace.is_empty() || key.1 == self.namespace)
            && selected("labelSelector", &label)
            && selected("fieldSelector", &field)
    }
}

fn audiences_of(audiences: &Vec<String>) -> &[String] {
    audiences
}

fn parse(request: &Request<Bytes>) -> Asked {
    let parts: Vec<&str> = request.uri().path().split('/').filter(|part| !part.is_empty()).collect();
    // Behind "api/v1" or "apis/GROUP/VERSION".
    let parts = &parts[if parts.first() == Some(&"apis") { 3 } else { 2 }..];
    let (namespace, resource, name) = match parts {
        ["namespaces", namespace, resource, name] => (*namespace, *resource, *name),
        ["namespaces", namespace, resource] => (*namespace, *resource, ""),
        [resource, name] => ("", *resource, *name),
        [resource] => ("", *resource, ""),
        other => panic!("{other:?}"),
    };
    let pairs = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let query: BTreeMap<_, _> = pairs.map(|(name, value)| (name.to_owned(), decoded(value))).collect();
    let watched = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let verb = match request.method().as_str() {
        "GET" if watched => "watch",
        "GET" if name.is_empty() => "list",
        "GET" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        other => panic!("{other}"),
    };
    let own = str::to_owned;
    let body = String::from_utf8_lossy(request.body()).into_owned();
    Asked { verb, resource: own(resource), namespace: own(namespace), name: own(name), query, body }
}

fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&hex, 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).unwrap()
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn failure(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message,
    });
    object_body(code, &status)
}

fn object_body(code: u16, object: &Value) -> Response<Body> {
    text_body(code, object.to_string())
}

fn text_body(code: u16, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}
