//! Injection into files: `countersign inject` and `uninject`. The same review as at admission, for every pod and every template of
//! one in a text of several YAML documents.
//!
//! Documents without a pod pass byte by byte; of the others what they say is kept, not how it was laid out. It must never write
//! anything if one document cannot be done.

use std::fmt;

use serde_json::Value;

use crate::mesh::Mesh;
use crate::pod::{Pod, Problem, Refusal};
use crate::probes::Token;
use crate::review::{Namespace, Reviewed, review};
use crate::{restore, yaml};

/// Lists in lists in lists: nobody means that.
const DEEPEST_LIST: usize = 4;

/// Which way.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// Sidecars in; and by which the hooks of a pod that was never injected are called, if it has any.
    Inject(&'a Mesh, &'a Token),
    /// Sidecars out.
    Uninject,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// The new text.
    pub text: String,
    /// What should be known, each with its document.
    pub notes: Vec<String>,
    /// Pods and templates that were changed.
    pub changed: usize,
}

/// Why nothing was written. Displayed like `app.yaml:12: Deployment shop/web: spec.template.spec.containers[0].name: ...`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct OfflineError {
    /// The file's name.
    pub file: String,
    /// Line on which it is, or on which its document begins, from 1.
    pub line: usize,
    /// Kind and name of the object, if it could be read.
    pub object: Option<String>,
    /// All that is wrong, each by its field.
    pub refusal: Refusal,
}

impl fmt::Display for OfflineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        write!(f, "{}", self.refusal)
    }
}

/// Does it to a whole text.
///
/// # Errors
/// The first document with which something is wrong.
pub fn run(task: Task<'_>, file: &str, text: &str) -> Result<Done, OfflineError> {
    let mut done = Done { text: String::with_capacity(text.len()), notes: Vec::new(), changed: 0 };
    for (line, document) in documents(text) {
        let error = |line, object, refusal| OfflineError { file: file.to_owned(), line, object, refusal };
        let mut value = parse(document).map_err(|(at, problem)| error(line + at - 1, None, problem.into()))?;
        let before = done.changed;
        let mut object = Object { task, done: &mut done, file, path: String::new() };
        object.visit(&mut value, 0).map_err(|refusal| error(line + first(document), Some(title(&value)), refusal))?;
        if done.changed == before {
            done.text.push_str(document);
            continue;
        }
        if document.starts_with("---") {
            done.text.push_str("---\n");
        }
        done.text.push_str(&yaml::document(&value));
    }
    Ok(done)
}

/// A value as YAML, keys sorted.
#[must_use]
pub fn to_yaml(value: &Value) -> String {
    yaml::document(value)
}

/// Reads one document as kubectl does, which still takes `0644` for octal.
///
/// # Errors
/// The line within the document, from 1, and what is wrong.
pub fn parse(document: &str) -> Result<Value, (usize, Problem)> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true, legacy_octal_numbers: true };
    // Nothing but comments.
    let says = |line: &str| !matches!(line.trim(), "" | "---" | "...") && !line.trim_start().starts_with('#');
    if !document.lines().any(says) {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let line = error.location().and_then(|location| usize::try_from(location.line()).ok()).unwrap_or(1).max(1);
        (line, Problem::new("YAML", error.render_with_formatter(&serde_saphyr::UserMessageFormatter)))
    })
}

/// The documents with the line on which each begins, from 1; each but the first begins with its marker line.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut starts = vec![(1, 0)];
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > 0 {
            starts.push((number + 1, offset));
        }
        offset += line.len();
    }
    let ends = starts.iter().skip(1).map(|(_, offset)| *offset).chain([text.len()]);
    starts.iter().zip(ends).map(|((line, start), end)| (*line, &text[*start..end])).collect()
}

/// Lines before the first that says something.
fn first(document: &str) -> usize {
    let says = |line: &str| !matches!(line.trim(), "" | "---") && !line.trim_start().starts_with('#');
    document.lines().position(says).unwrap_or(0)
}

/// One object of a document, and where it is.
struct Object<'a> {
    task: Task<'a>,
    done: &'a mut Done,
    file: &'a str,
    path: String,
}

impl Object<'_> {
    /// Itself, or what is in it.
    fn visit(&mut self, object: &mut Value, depth: usize) -> Result<(), Refusal> {
        if is_list(object) {
            let outer = self.path.clone();
            if depth == DEEPEST_LIST {
                return Err(Problem::new(outer + "items", "are lists of lists").into());
            }
            let items = object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten();
            for (i, item) in items.enumerate() {
                self.path = format!("{outer}items[{i}].");
                self.visit(item, depth + 1)?;
            }
            return Ok(());
        }
        let Some(place) = template(object) else { return Ok(()) };
        let title = title(object);
        let prefix = place.iter().fold(self.path.clone(), |path, key| path + key + ".");
        let pod = place.iter().try_fold(object, |value, key| value.get_mut(key));
        let Some(pod) = pod else {
            let field = prefix.trim_end_matches('.').to_owned();
            return Err(Problem::new(field, "is missing").into());
        };
        let located = |refusal: Refusal| {
            Refusal(refusal.0.into_iter().map(|p| Problem { field: format!("{prefix}{}", p.field), ..p }).collect())
        };
        let (after, notes) = self.one(pod).map_err(located)?;
        let notes = notes.into_iter().map(|note| format!("{}: {title}: {note}", self.file));
        self.done.notes.extend(notes);
        if let Some(after) = after {
            *pod = after;
            self.done.changed += 1;
        }
        Ok(())
    }

    /// The pod as it shall be, if that is another; and notes.
    fn one(&self, pod: &Value) -> Result<(Option<Value>, Vec<String>), Refusal> {
        match self.task {
            Task::Inject(mesh, fresh) => match review(mesh, Namespace::Asked, fresh, pod)? {
                Reviewed::Skipped(why) => {
                    let note = why.warning().map_or_else(|| format!("left out ({})", why.label()), str::to_owned);
                    Ok((None, vec![note]))
                }
                Reviewed::Injected { pod: after, patch, warnings } => {
                    Ok(((!patch.is_empty()).then_some(after), warnings))
                }
            },
            Task::Uninject => {
                let mut pod = Pod::read(pod)?;
                let changed = restore::uninject(&mut pod)?;
                Ok((changed.then(|| pod.into_value()), Vec::new()))
            }
        }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn is_list(object: &Value) -> bool {
    text(object, "/kind").ends_with("List") && object.get("items").is_some_and(Value::is_array)
}

/// Where an object of Kubernetes has its pod.
fn template(object: &Value) -> Option<&'static [&'static str]> {
    match (text(object, "/apiVersion"), text(object, "/kind")) {
        ("v1", "Pod") => Some(&[]),
        ("v1", "PodTemplate") => Some(&["template"]),
        ("v1", "ReplicationController")
        | ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job") => Some(&["spec", "template"]),
        ("batch/v1", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// Kind and name, for people.
fn title(object: &Value) -> String {
    let name = match (text(object, "/metadata/namespace"), text(object, "/metadata/name")) {
        ("", "") => text(object, "/metadata/generateName").to_owned(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    format!("{} {name}", text(object, "/kind")).trim().to_owned()
}

#[cfg(test)]
mod tests;
