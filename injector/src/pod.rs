//! A pod as it came: raw JSON, so that a field nobody here knows of passes untouched, and the few places where we look, checked
//! for their shape once.
//!
//! Used by every step of `review`. It must never drop or reorder what it does not know.

use std::fmt;

use serde_json::{Map, Value};

/// What is wrong with one field of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, e.g. `spec.containers[0].ports[1].containerPort`.
    pub field: String,
    /// A sentence without its subject.
    pub problem: String,
}

impl Problem {
    /// `field`: `problem`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// Why a pod is refused: all that is wrong with it, each by its field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal(pub Vec<Problem>);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// `Err` if there is any.
pub(crate) fn none(problems: Vec<Problem>) -> Result<(), Refusal> {
    if problems.is_empty() { Ok(()) } else { Err(Refusal(problems)) }
}

/// Which of the pod's lists a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// `spec.initContainers`, native sidecars among them.
    Init,
    /// `spec.containers`.
    App,
}

impl List {
    /// Both, in the order in which the kubelet starts them.
    pub const BOTH: [Self; 2] = [Self::Init, Self::App];

    /// The key in `spec`.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::App => "containers",
        }
    }

    /// Path of the container at `index`.
    #[must_use]
    pub fn path(self, index: usize) -> String {
        format!("spec.{}[{index}]", self.key())
    }
}

/// A pod, or a pod template, whose lists are lists and whose containers have names.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod(Value);

impl Pod {
    /// Checks the shape of what we look at.
    ///
    /// # Errors
    /// Where it is no pod.
    pub fn read(value: &Value) -> Result<Self, Refusal> {
        let mut problems = Vec::new();
        let absent = Value::Null;
        let object = |value: &Value, field: &str, problems: &mut Vec<Problem>| match value {
            Value::Object(_) | Value::Null => true,
            _ => {
                problems.push(Problem::new(field, "is not an object"));
                false
            }
        };
        if !value.is_object() || !value.get("spec").is_some_and(Value::is_object) {
            return Err(Problem::new("spec", "is missing, or is not an object: this is no pod").into());
        }
        let metadata = value.get("metadata").unwrap_or(&absent);
        if object(metadata, "metadata", &mut problems) {
            for key in ["labels", "annotations"] {
                let field = format!("metadata.{key}");
                let map = metadata.get(key).unwrap_or(&absent);
                if object(map, &field, &mut problems) {
                    let bad = map.as_object().into_iter().flatten().filter(|(_, value)| !value.is_string());
                    problems.extend(bad.map(|(name, _)| Problem::new(format!("{field}[{name:?}]"), "is not a string")));
                }
            }
        }
        let spec = &value["spec"];
        for key in ["initContainers", "containers", "volumes"] {
            match spec.get(key).unwrap_or(&absent) {
                Value::Null => {}
                Value::Array(list) => problems.extend(list.iter().enumerate().filter_map(|(i, entry)| {
                    let named = entry.get("name").is_some_and(Value::is_string);
                    (!named).then(|| Problem::new(format!("spec.{key}[{i}].name"), "is missing, or is not a string"))
                })),
                _ => problems.push(Problem::new(format!("spec.{key}"), "is not a list")),
            }
        }
        none(problems)?;
        Ok(Self(value.clone()))
    }

    /// The pod itself.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The pod itself, for good.
    #[must_use]
    pub fn into_value(self) -> Value {
        self.0
    }

    /// `spec`.
    #[must_use]
    pub fn spec(&self) -> &Value {
        &self.0["spec"]
    }

    /// One of the pod's labels.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.0.get("metadata")?.get("labels")?.get(key)?.as_str()
    }

    /// All annotations.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.get("metadata").and_then(|metadata| metadata.get("annotations")).and_then(Value::as_object);
        all.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// Whether `spec` says true to `key`.
    #[must_use]
    pub fn says(&self, key: &str) -> bool {
        self.spec().get(key) == Some(&Value::Bool(true))
    }

    /// The entries of one of the lists.
    #[must_use]
    pub fn list(&self, key: &str) -> &[Value] {
        self.spec().get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// All containers: where each stands, and itself.
    pub fn containers(&self) -> impl Iterator<Item = (List, usize, &Value)> {
        let each =
            |list: List| self.list(list.key()).iter().enumerate().map(move |(i, container)| (list, i, container));
        each(List::Init).chain(each(List::App))
    }

    /// One of the lists of `spec`, to be changed; made where it is missing.
    pub(crate) fn list_mut(&mut self, key: &str) -> &mut Vec<Value> {
        array(entry(object(entry(object(&mut self.0), "spec")), key))
    }

    /// Takes a list away that has become empty: it was not there before us.
    pub(crate) fn drop_if_empty(&mut self, key: &str) {
        let spec = object(entry(object(&mut self.0), "spec"));
        if spec.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty) {
            spec.remove(key);
        }
    }

    /// Sets a label or an annotation (`map`: which), or takes it away.
    pub(crate) fn set(&mut self, map: &str, key: &str, value: Option<String>) {
        let root = object(&mut self.0);
        if value.is_none() && root.get("metadata").and_then(|m| m.get(map)).is_none() {
            return;
        }
        let metadata = object(entry(root, "metadata"));
        let entries = object(entry(metadata, map));
        match value {
            Some(value) => _ = entries.insert(key.to_owned(), Value::String(value)),
            None => _ = entries.remove(key),
        }
        if entries.is_empty() {
            metadata.remove(map);
        }
        if metadata.is_empty() {
            root.remove("metadata");
        }
    }
}

/// A container's name.
pub(crate) fn name(container: &Value) -> &str {
    container.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Whether an init container is a native sidecar.
pub(crate) fn is_sidecar(container: &Value) -> bool {
    container.get("restartPolicy").and_then(Value::as_str) == Some("Always")
}

fn entry<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Value {
    map.entry(key.to_owned()).or_insert(Value::Null)
}

/// `Pod::read` has seen that it is one, or absent.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("just made one"),
    }
}

/// The same for a list.
fn array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("just made one"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_pod_is_refused_by_the_field() {
        let field = |value| Pod::read(&value).unwrap_err().0[0].field.clone();
        assert_eq!(field(json!(1)), "spec");
        assert_eq!(field(json!({ "spec": [] })), "spec");
        assert_eq!(field(json!({ "metadata": 1, "spec": {} })), "metadata");
        assert_eq!(field(json!({ "metadata": { "labels": [] }, "spec": {} })), "metadata.labels");
        assert_eq!(
            field(json!({ "metadata": { "annotations": { "a/b": true } }, "spec": {} })),
            "metadata.annotations[\"a/b\"]"
        );
        assert_eq!(field(json!({ "spec": { "containers": {} } })), "spec.containers");
        assert_eq!(field(json!({ "spec": { "containers": [1] } })), "spec.containers[0].name");
        assert_eq!(field(json!({ "spec": { "volumes": [{ "name": 1 }] } })), "spec.volumes[0].name");
    }

    #[test]
    fn what_is_null_is_absent() {
        let null = json!({ "metadata": null, "spec": { "initContainers": null, "containers": [{ "name": "a" }] } });
        let pod = Pod::read(&null).unwrap();
        assert_eq!((pod.containers().count(), pod.annotations().count(), pod.label("a")), (1, 0, None));
    }
}
