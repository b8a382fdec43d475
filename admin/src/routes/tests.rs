use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::*;
use crate::log::tests::detached;
use crate::socket::bind;

/// An admin socket that is served.
struct Served {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    drained: Arc<AtomicUsize>,
    shed: Arc<Mutex<Vec<&'static str>>>,
    task: JoinHandle<()>,
}

fn served(log: Log) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let (drained, shed) = (Arc::new(AtomicUsize::new(0)), Arc::<Mutex<Vec<_>>>::default());
    let (drains, sheds) = (Arc::clone(&drained), Arc::clone(&shed));
    let routes = Routes::new(log).get("/status", || http::json(&json!({ "ready": true })));
    let routes = routes.get_under("/things/", |thing| http::text(StatusCode::OK, thing.to_owned()));
    let routes = routes.post("/drain", move || {
        drains.fetch_add(1, Ordering::SeqCst);
        http::text(StatusCode::OK, "withdrawn\n")
    });
    let bound = bind(&socket).unwrap();
    let task = tokio::spawn(serve(bound, routes, move |what| sheds.lock().unwrap().push(what)));
    Served { _folder: folder, socket, drained, shed, task }
}

impl Served {
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(body.as_bytes()).await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn the_log_changes_while_it_runs_and_a_bad_filter_changes_nothing() {
    let served = served(detached("info"));
    assert_eq!(served.get("/log").await["filter"], "info");
    let (status, body) = served.ask("PUT", "/log", "warn,countersign_proxy=debug\n").await;
    assert_eq!(status, 200, "{body}");
    let now = served.get("/log").await["filter"].as_str().unwrap().to_owned();
    assert!(now.contains("countersign_proxy=debug"), "{now}");
    let (status, body) = served.ask("PUT", "/log", "countersign_proxy=loud").await;
    assert_eq!(status, 400);
    assert!(body.contains("not a filter"), "{body}");
    assert_eq!(served.ask("PUT", "/log", &"a".repeat(MAX_FILTER + 1)).await.0, 413);
    assert_eq!(served.get("/log").await["filter"], now);
}

#[tokio::test]
async fn a_log_that_is_not_ours_is_said_so_and_left_alone() {
    let served = served(Log::none());
    assert_eq!(served.ask("PUT", "/log", "debug").await, (400, "the log is not ours to change\n".to_owned()));
    assert_eq!(served.get("/log").await["filter"], "not ours");
}

#[tokio::test]
async fn what_asks_changes_nothing_and_what_does_something_must_be_told() {
    let served = served(detached("info"));
    assert_eq!(served.get("/status").await["ready"], true);
    assert_eq!(served.ask("GET", "/drain", "").await, (405, "only POST\n".to_owned()));
    assert_eq!(served.drained.load(Ordering::SeqCst), 0);
    assert_eq!(served.ask("POST", "/drain", "").await.0, 200);
    assert_eq!(served.drained.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let served = served(detached("info"));
    assert_eq!(served.ask("GET", "/", "").await, (404, "here are /status /drain /log\n".to_owned()));
    assert_eq!(served.ask("GET", "/status/", "").await.0, 404);
    assert_eq!(served.ask("POST", "/status", "").await, (405, "only GET\n".to_owned()));
    assert_eq!(served.ask("DELETE", "/log", "").await, (405, "only GET, PUT\n".to_owned()));
}

#[tokio::test]
async fn connections_over_the_budget_are_closed_and_counted() {
    let served = served(detached("info"));
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        stream.write_all(b"GET /log HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 15];
        stream.read_exact(&mut first).await.unwrap();
        held.push(stream);
    }
    let mut more = UnixStream::connect(&served.socket).await.unwrap();
    let mut answer = Vec::new();
    let _ = more.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    assert_eq!(*served.shed.lock().unwrap(), ["admin_connections"]);
}

#[tokio::test]
async fn the_end_takes_the_socket_away() {
    let served = served(detached("info"));
    served.get("/status").await;
    served.task.abort();
    let Served { _folder, socket, task, .. } = served;
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(!socket.exists());
}

#[tokio::test]
async fn what_is_under_a_path_is_answered_by_what_follows() {
    let served = served(detached("info"));
    assert_eq!(served.ask("GET", "/things/0a", "").await, (200, "0a".to_owned()));
    assert_eq!(served.ask("POST", "/things/0a", "").await.0, 405);
    assert_eq!(served.ask("GET", "/things", "").await.0, 404);
}

#[tokio::test]
async fn what_takes_a_while_holds_up_nobody_and_is_done_although_the_caller_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let (begun, done) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    let (begins, goes, dones) = (Arc::clone(&begun), Arc::clone(&go_on), Arc::clone(&done));
    let routes = Routes::new(Log::none()).get("/status", || http::json(&json!({ "ready": true })));
    let routes = routes.post_later("/step", move || {
        let (begins, goes, dones) = (Arc::clone(&begins), Arc::clone(&goes), Arc::clone(&dones));
        async move {
            begins.add_permits(1);
            goes.acquire().await.unwrap().forget();
            dones.fetch_add(1, Ordering::SeqCst);
            http::text(StatusCode::OK, "taken\n")
        }
    });
    let task = tokio::spawn(serve(bind(&socket).unwrap(), routes, |_| {}));
    let served = Served { _folder: folder, socket, drained: Arc::default(), shed: Arc::default(), task };

    let mut gone = UnixStream::connect(&served.socket).await.unwrap();
    gone.write_all(b"POST /step HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    begun.acquire().await.unwrap().forget();
    assert_eq!(served.get("/status").await["ready"], true);
    drop(gone);
    go_on.add_permits(2);
    assert_eq!(served.ask("POST", "/step", "").await, (200, "taken\n".to_owned()));
    let both = async {
        while done.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), both).await.unwrap();
    assert_eq!(served.ask("GET", "/step", "").await.0, 405);
    served.task.abort();
}
