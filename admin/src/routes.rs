//! What the admin socket answers: `GET|PUT /log`, and the routes that the process adds (`GET /status`, `GET /config_dump`,
//! `POST /drain`).
//!
//! Each process fills [`Routes`] and starts [`serve`]; `countersign status` and preStop hooks call it. Whoever may open the
//! socket sees what the process knows: a route must never show a key or a token.

use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request};

use crate::accept::{self, Budget};
use crate::http::{self, Answer, StatusCode};
use crate::log::{self, Log, LogError, MAX_FILTER};
use crate::socket::AdminSocket;

/// Most connections at once; one more is closed. They are people and their scripts.
pub const CONNECTIONS: usize = 16;
const LOG: &str = "/log";

/// The paths of one process.
pub struct Routes {
    log: Log,
    routes: Vec<Route>,
    under: Vec<Under>,
}

struct Route {
    method: Method,
    path: &'static str,
    answer: Box<dyn Fn() -> Pending + Send + Sync>,
}

/// An answer that may take a while.
type Pending = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Answers for every path that begins so, by what follows.
struct Under {
    path: &'static str,
    answer: Box<dyn Fn(&str) -> Answer + Send + Sync>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.routes.iter().map(|route| (&route.method, route.path))).finish()
    }
}

impl Routes {
    /// `GET|PUT /log`, which every process has.
    pub fn new(log: Log) -> Self {
        Self { log, routes: Vec::new(), under: Vec::new() }
    }

    /// And this, which changes nothing.
    #[must_use]
    pub fn get(self, path: &'static str, answer: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        self.with(Method::GET, path, answer)
    }

    /// And whatever begins with `path` (which ends with `/`), which changes nothing; the answer is made of what follows.
    #[must_use]
    pub fn get_under(mut self, path: &'static str, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        self.under.push(Under { path, answer: Box::new(answer) });
        self
    }

    /// And this, which changes nothing and takes a while. It ends where the caller goes away.
    #[must_use]
    pub fn get_later<F>(mut self, path: &'static str, answer: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        self.routes.push(Route { method: Method::GET, path, answer: Box::new(move || Box::pin(answer())) });
        self
    }

    /// And this, which does something; a body is not read.
    #[must_use]
    pub fn post(self, path: &'static str, answer: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        self.with(Method::POST, path, answer)
    }

    /// And this, which does something that takes a while; a body is not read. It runs to its end although the caller goes away.
    #[must_use]
    pub fn post_later<F>(mut self, path: &'static str, answer: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let answer = move || -> Pending {
            let task = tokio::spawn(answer());
            Box::pin(async move {
                let failed = |error| http::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
                task.await.unwrap_or_else(failed)
            })
        };
        self.routes.push(Route { method: Method::POST, path, answer: Box::new(answer) });
        self
    }

    fn with(mut self, method: Method, path: &'static str, answer: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        let answer = move || -> Pending { Box::pin(ready(answer())) };
        self.routes.push(Route { method, path, answer: Box::new(answer) });
        self
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        if request.uri().path() == LOG {
            return match *request.method() {
                Method::GET => log::as_json(&self.log.filter()),
                Method::PUT => self.change_log(request).await,
                _ => http::only("GET, PUT"),
            };
        }
        let path = request.uri().path();
        if let Some((under, rest)) = self.under.iter().find_map(|under| Some((under, path.strip_prefix(under.path)?))) {
            return if *request.method() == Method::GET { (under.answer)(rest) } else { http::only("GET") };
        }
        let here: Vec<&Route> = self.routes.iter().filter(|route| route.path == path).collect();
        match here.iter().find(|route| route.method == *request.method()) {
            Some(route) => (route.answer)().await,
            None if here.is_empty() => self.not_found(),
            None => http::only(&here.iter().map(|route| route.method.as_str()).collect::<Vec<_>>().join(", ")),
        }
    }

    /// The body is the filter itself.
    async fn change_log(&self, request: Request<Incoming>) -> Answer {
        if !self.log.is_ours() {
            return refusal(&LogError::NotOurs);
        }
        let filter = match http::body(request, MAX_FILTER).await {
            Ok(filter) => filter,
            Err(answer) => return answer,
        };
        match self.log.change(filter.trim()) {
            Ok(()) => {
                tracing::info!(filter = filter.trim(), "log: another filter");
                log::as_json(&self.log.filter())
            }
            Err(error) => refusal(&error),
        }
    }

    fn not_found(&self) -> Answer {
        let paths: Vec<_> = self.routes.iter().map(|route| route.path).chain([LOG]).collect();
        http::text(StatusCode::NOT_FOUND, format!("here are {}\n", paths.join(" ")))
    }
}

fn refusal(error: &LogError) -> Answer {
    http::text(StatusCode::BAD_REQUEST, format!("{error}\n"))
}

/// Serves until dropped; then the socket's file is gone. `shed` is told of each connection over the budget, by the word
/// `admin_connections`.
pub async fn serve(socket: AdminSocket, routes: Routes, shed: impl Fn(&'static str)) {
    let routes = Arc::new(routes);
    let handle = move |request| Arc::clone(&routes).answer(request);
    let accept = || async { socket.accept().await.map(|stream| (stream, None)) };
    let budget = Budget { most: CONNECTIONS, each: CONNECTIONS, life: http::LIFE };
    accept::serve(accept, budget, || shed("admin_connections"), handle).await;
}

#[cfg(test)]
mod tests;
