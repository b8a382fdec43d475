//! The probes and HTTP hooks of a pod, turned to the sidecar: the kubelet, which has no identity, asks it on its health port, and
//! it asks the app what the pod's spec asked.
//!
//! Called by `review`. What is taken out goes to the sidecar as [`api::Probes`] and to the status annotation as it was. It must never
//! change when or how often the kubelet asks, nor touch what does not come over the pod's network (exec, sleep, another host).

use std::collections::BTreeMap;
use std::fmt;

use countersign_api::ports;
use countersign_api::probes::{self as api, Ask, Kind, MAX_HEADERS, MAX_PROBES, MAX_TEXT, MAX_TIMEOUT_SECONDS, Probe};
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use crate::pod::{List, Pod, Problem, is_sidecar, name};
use crate::settings::OWN_PORTS;

/// How a probe asks; a probe has exactly one.
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
/// A postStart hook has no bound in Kubernetes; the sidecar needs one.
const POST_START_SECONDS: u32 = 300;
/// `terminationGracePeriodSeconds`, where the pod has none.
const GRACE_SECONDS: u64 = 30;

/// The handlers as they stood in the pod, by container and kind: what [`give_back`] needs.
pub type Originals = BTreeMap<String, BTreeMap<Kind, Value>>;

/// What was taken out of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// For the sidecar.
    pub probes: api::Probes,
    /// For whoever undoes it.
    pub originals: Originals,
    /// By which its hooks are called; none if it has none.
    pub token: Option<Token>,
}

/// What the paths of a pod's hooks end in: a hook does something, and is not for everybody who reaches the health port. Who may read
/// the pod may read it; it is never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// The system gives no random numbers.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandom;

impl Token {
    /// 128 random bits.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn random() -> Result<Self, NoRandom> {
        let mut bytes = [0; api::TOKEN_LETTERS / 2];
        crate::tls::fill_random(&mut bytes).ok_or(NoRandom)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// 32 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One that was made before, if it can be one.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        api::is_token(text).then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Where each kind stands in a container.
const PLACES: [(Kind, &[&str]); 5] = [
    (Kind::Liveness, &["livenessProbe"]),
    (Kind::Readiness, &["readinessProbe"]),
    (Kind::Startup, &["startupProbe"]),
    (Kind::PostStart, &["lifecycle", "postStart"]),
    (Kind::PreStop, &["lifecycle", "preStop"]),
];

/// Turns all of them to the sidecar, its hooks by `token`; what cannot be turned goes to `problems`.
pub fn take(pod: &mut Pod, token: &Token, problems: &mut Vec<Problem>) -> Taken {
    let grace = pod.spec().get("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE_SECONDS);
    let mut taken = Taken::default();
    for list in List::BOTH {
        if pod.list(list.key()).is_empty() {
            continue;
        }
        for (i, container) in pod.list_mut(list.key()).iter_mut().enumerate() {
            // Other init containers have neither probes nor hooks.
            if list == List::Init && !is_sidecar(container) {
                continue;
            }
            for (kind, place) in PLACES {
                let field = format!("{}.{}", list.path(i), place.join("."));
                match take_one(container, kind, place, grace, token) {
                    Ok(None) => {}
                    Ok(Some((ask, original))) => {
                        let name = name(container).to_owned();
                        if ask.token.is_some() {
                            taken.token = Some(token.clone());
                        }
                        taken.probes.entry(name.clone()).or_default().insert(kind, ask);
                        taken.originals.entry(name).or_default().insert(kind, original);
                    }
                    Err((key, problem)) => problems.push(Problem::new(format!("{field}.{key}"), problem)),
                }
            }
        }
    }
    let count = taken.probes.values().map(BTreeMap::len).sum::<usize>();
    if count > MAX_PROBES || json!(taken.probes).to_string().len() > MAX_TEXT {
        let problem =
            format!("have {count} probes and hooks; a sidecar takes {MAX_PROBES}, of {MAX_TEXT} bytes together");
        problems.push(Problem::new("spec.containers", problem));
    }
    taken
}

type Bad = (String, String);

fn take_one(
    container: &mut Value,
    kind: Kind,
    place: &[&str],
    grace: u64,
    token: &Token,
) -> Result<Option<(Probe, Value)>, Bad> {
    let owner = name(container).to_owned();
    let Some(probe) = at(container, place) else { return Ok(None) };
    let hook = kind.is_hook();
    let token = hook.then(|| token.0.clone());
    let Some(handler) = HANDLERS.into_iter().find(|handler| probe.get(*handler).is_some_and(Value::is_object)) else {
        return Ok(None);
    };
    // The kubelet itself cannot do another hook than HTTP over the network.
    let elsewhere = probe[handler].get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty());
    if elsewhere || (hook && handler != "httpGet") {
        return Ok(None);
    }
    let ask =
        ask(container, handler, &probe[handler]).map_err(|(key, problem)| (format!("{handler}.{key}"), problem))?;
    let timeout_seconds = match kind {
        Kind::PostStart => POST_START_SECONDS,
        Kind::PreStop => u32::try_from(grace).unwrap_or(MAX_TIMEOUT_SECONDS).clamp(1, MAX_TIMEOUT_SECONDS),
        _ => timeout(probe)?,
    };
    let original = json!({ handler: probe[handler] });
    if let Some(Value::Object(probe)) = at_mut(container, place) {
        probe.remove(handler);
        probe.insert("httpGet".to_owned(), turned(&owner, kind, token.as_deref()));
    }
    Ok(Some((Probe { timeout_seconds, ask, token }, original)))
}

/// What the kubelet asks instead. The scheme is spelled, as the API server would.
fn turned(container: &str, kind: Kind, token: Option<&str>) -> Value {
    json!({ "path": api::path(container, kind, token), "port": ports::PROXY_HEALTH, "scheme": "HTTP" })
}

fn timeout(probe: &Value) -> Result<u32, Bad> {
    match probe.get("timeoutSeconds") {
        None | Some(Value::Null) => Ok(1),
        Some(value) => match value.as_u64().and_then(|seconds| u32::try_from(seconds).ok()) {
            // The API server reads 0 as "not said".
            Some(0) => Ok(1),
            Some(seconds) if seconds > MAX_TIMEOUT_SECONDS => Err((
                "timeoutSeconds".to_owned(),
                format!("{seconds} is more than a sidecar waits, {MAX_TIMEOUT_SECONDS}"),
            )),
            Some(seconds) => Ok(seconds),
            None => Err(("timeoutSeconds".to_owned(), format!("{value} is not a number of seconds"))),
        },
    }
}

fn ask(container: &Value, handler: &str, action: &Value) -> Result<Ask, Bad> {
    let port = port(container, action.get("port").unwrap_or(&Value::Null)).map_err(|why| ("port".to_owned(), why))?;
    let text = |key: &str| match action.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err((key.to_owned(), "is not a string".to_owned())),
    };
    match handler {
        "tcpSocket" => Ok(Ask::Tcp { port }),
        "grpc" => Ok(Ask::Grpc { port, service: text("service")? }),
        _ => {
            let https = match text("scheme")?.as_str() {
                "" | "HTTP" => false,
                "HTTPS" => true,
                other => return Err(("scheme".to_owned(), format!("{other:?} is neither HTTP nor HTTPS"))),
            };
            Ok(Ask::Http { port, path: text("path")?, https, headers: headers(action)? })
        }
    }
}

fn headers(action: &Value) -> Result<Vec<(String, String)>, Bad> {
    let list = action.get("httpHeaders").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if list.len() > MAX_HEADERS {
        return Err(("httpHeaders".to_owned(), format!("are more than a sidecar sends, {MAX_HEADERS}")));
    }
    let one = |(i, header): (usize, &Value)| {
        let text = |key: &str| header.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (name, value) = (text("name"), text("value"));
        let bad = |key: &str, what: &str| Err((format!("httpHeaders[{i}].{key}"), what.to_owned()));
        if HeaderName::try_from(&name).is_err() {
            return bad("name", "is missing, or is no name of a header");
        }
        if HeaderValue::try_from(&value).is_err() {
            return bad("value", "cannot be the value of a header");
        }
        Ok((name, value))
    };
    list.iter().enumerate().map(one).collect()
}

/// As the kubelet finds it: a name among the container's own ports, else the number that the name spells.
fn port(container: &Value, port: &Value) -> Result<u16, String> {
    let number = match port {
        Value::String(named) => {
            let ports = container.get("ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let found = ports.iter().find(|port| port.get("name").and_then(Value::as_str) == Some(named));
            let found = found.and_then(|port| port.get("containerPort")).and_then(Value::as_u64);
            found.or_else(|| named.parse().ok()).ok_or_else(|| format!("{named:?} is no port of this container"))?
        }
        other => other.as_u64().unwrap_or(0),
    };
    match u16::try_from(number) {
        Ok(port) if OWN_PORTS.contains(&port) => Err(format!("{port} is a port of the sidecar itself")),
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{port} is not a port (1-65535)")),
    }
}

/// Undoes [`take`]: what still stands as we wrote it becomes what it was. What somebody changed since stays as it is.
/// `token`: by which its hooks were called.
pub fn give_back(pod: &mut Pod, originals: &Originals, token: Option<&Token>) {
    for list in List::BOTH {
        if pod.list(list.key()).is_empty() {
            continue;
        }
        for container in pod.list_mut(list.key()) {
            let owner = name(container).to_owned();
            let Some(kinds) = originals.get(&owner) else { continue };
            for (kind, place) in PLACES {
                let (Some(Value::Object(original)), Some(Value::Object(probe))) =
                    (kinds.get(&kind), at_mut(container, place))
                else {
                    continue;
                };
                if is_turned(probe, &owner, kind, token) {
                    probe.remove("httpGet");
                    probe.extend(original.iter().map(|(key, value)| (key.clone(), value.clone())));
                }
            }
        }
    }
}

fn is_turned(probe: &Map<String, Value>, container: &str, kind: Kind, token: Option<&Token>) -> bool {
    let ours = turned(container, kind, token.filter(|_| kind.is_hook()).map(|token| token.0.as_str()));
    probe.get("httpGet").is_some_and(|get| get.get("path") == ours.get("path") && get.get("port") == ours.get("port"))
}

fn at<'a>(container: &'a Value, place: &[&str]) -> Option<&'a Value> {
    place.iter().try_fold(container, |value, key| value.get(key)).filter(|value| value.is_object())
}

fn at_mut<'a>(container: &'a mut Value, place: &[&str]) -> Option<&'a mut Value> {
    place.iter().try_fold(container, |value, key| value.get_mut(key))
}

#[cfg(test)]
mod tests;
