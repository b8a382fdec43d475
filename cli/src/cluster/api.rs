//! The API server, as the commands ask it: paths and JSON, no type for each kind.
//!
//! Called by `check` and `uninstall`. Only here is `kube` named. Every call is bounded in time. It must never take "not permitted" or "no answer"
//! for "there is none".

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use http::{Method, Request, StatusCode};
use kube::client::Body;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use serde_json::Value;

/// One call ends at the latest after this.
const LIMIT: Duration = Duration::from_secs(20);
/// Objects in one page of a list.
const PAGE: usize = 500;
/// Of an answer that is quoted.
const QUOTED: usize = 400;

/// Which cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClusterArgs {
    /// The kubeconfig's context [default: the current one, or the pod's own account]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not reached, or too slow.
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
    /// RBAC.
    #[error("not permitted: {0}")]
    Forbidden(String),
    /// An admission webhook, validation, a conflict: what the API server says.
    #[error("refused ({code}): {message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
}

/// An answer: its body, and the server's clock.
pub struct Answer {
    /// `Null` where there is no such object.
    pub body: Value,
    /// The header `Date`.
    pub date: Option<String>,
}

/// The API server.
#[derive(Clone)]
pub struct Api(Client);

impl Api {
    /// With the kubeconfig, or in a pod with its account. Asks nothing yet.
    pub async fn connect(args: &ClusterArgs) -> Result<Self> {
        let mut config = match &args.context {
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
                Config::from_kubeconfig(&options).await.with_context(|| format!("--context {context}"))?
            }
            // Its own text holds all that its sources would say again.
            None => Config::infer()
                .await
                .map_err(|error| anyhow!("no cluster: no kubeconfig, and not in a pod: {error}"))?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        // Whoever waits at the terminal wants to know at once.
        config.default_retry = false;
        Ok(Self(Client::try_from(config).context("no client for the API server")?))
    }

    /// An object, or `None`.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, CallError> {
        Ok(Some(self.call(Method::GET, path, None).await?.body).filter(|body| !body.is_null()))
    }

    /// The answer with the server's clock.
    pub async fn get_with_date(&self, path: &str) -> Result<Answer, CallError> {
        self.call(Method::GET, path, None).await
    }

    /// What a process answers through the API server's proxy, as text.
    pub async fn text(&self, path: &str) -> Result<String, CallError> {
        let said = self.said(Method::GET, path, None).await?;
        match said.status {
            status if status.is_success() => Ok(said.text),
            _ => Err(said.error()),
        }
    }

    /// All objects of a collection; none where the kind itself is not there.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, CallError> {
        let mut all = Vec::new();
        let mut next = String::new();
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let page = self.call(Method::GET, &format!("{path}{joint}limit={PAGE}{next}"), None).await?.body;
            all.extend(page["items"].as_array().cloned().unwrap_or_default());
            match page["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => next = format!("&continue={token}"),
                None => return Ok(all),
            }
        }
    }

    /// Makes an object (a review, or one that is only tried).
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, CallError> {
        Ok(self.call(Method::POST, path, Some(object)).await?.body)
    }

    /// Removes an object; false where there was none.
    pub async fn delete(&self, path: &str) -> Result<bool, CallError> {
        let options =
            serde_json::json!({ "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background" });
        Ok(!self.call(Method::DELETE, path, Some(&options)).await?.body.is_null())
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, CallError> {
        let said = self.said(method, path, body).await?;
        match said.status {
            StatusCode::NOT_FOUND => Ok(Answer { body: Value::Null, date: said.date }),
            status if status.is_success() => {
                let body = said.json();
                let body = body.map_err(|error| CallError::Unavailable(format!("its answer is no JSON: {error}")))?;
                Ok(Answer { body, date: said.date })
            }
            _ => Err(said.error()),
        }
    }

    /// Whatever comes back, in time.
    async fn said(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Said, CallError> {
        match tokio::time::timeout(LIMIT, self.send(method, path, body)).await {
            Ok(said) => said,
            Err(_) => Err(CallError::Unavailable(format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Said, CallError> {
        let content = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("Content-Type", "application/json");
        let request = request.body(Body::from(content)).map_err(|error| refused(0, &error.to_string()))?;
        let response = self.0.send(request).await.map_err(|error| CallError::Unavailable(chain(&error)))?;
        let status = response.status();
        let date = response.headers().get("date").and_then(|date| date.to_str().ok()).map(str::to_owned);
        let bytes =
            response.into_body().collect_bytes().await.map_err(|error| CallError::Unavailable(chain(&error)))?;
        Ok(Said { status, date, text: String::from_utf8_lossy(&bytes).into_owned() })
    }
}

/// What came back, whatever it was.
struct Said {
    status: StatusCode,
    date: Option<String>,
    text: String,
}

impl Said {
    fn json(&self) -> serde_json::Result<Value> {
        serde_json::from_str(&self.text)
    }

    /// What it means where it is no success.
    fn error(&self) -> CallError {
        let said = self.json().ok().and_then(|status| status["message"].as_str().map(str::to_owned));
        let message: String = said.unwrap_or_else(|| self.text.clone()).chars().take(QUOTED).collect();
        match self.status {
            StatusCode::UNAUTHORIZED => CallError::Forbidden(message),
            // An admission webhook's "no" is a 403 too, and says whose it is.
            StatusCode::FORBIDDEN if !self.text.contains("denied the request") => CallError::Forbidden(message),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                CallError::Unavailable(format!("{} {message}", self.status.as_u16()))
            }
            status => refused(status.as_u16(), &message),
        }
    }
}

fn refused(code: u16, message: &str) -> CallError {
    CallError::Refused { code, message: message.to_owned() }
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text.chars().take(QUOTED).collect()
}

#[cfg(test)]
pub mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use super::*;

    /// An API server with these objects: each path, without its query, and what is there. Nothing is anywhere else.
    pub fn holding(objects: Vec<(String, Value)>) -> Api {
        answering(move |path, _| {
            let found = objects.iter().find(|(at, _)| at == path);
            found.map_or((StatusCode::NOT_FOUND, Value::Null), |(_, object)| (StatusCode::OK, object.clone()))
        })
    }

    /// An API server that answers a path and a body (`Null` where there is none) with a status and a body.
    pub fn answering(answer: impl Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync + 'static) -> Api {
        let answer = Arc::new(answer);
        let serve = move |request: Request<Body>| {
            let answer = Arc::clone(&answer);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect_bytes().await.unwrap();
                let (status, body) = answer(&path, &serde_json::from_slice(&body).unwrap_or(Value::Null));
                let mut response = http::Response::new(Body::from(body.to_string().into_bytes()));
                *response.status_mut() = status;
                Ok::<_, Infallible>(response)
            }
        };
        Api(Client::new(tower::service_fn(serve), "default"))
    }
}
