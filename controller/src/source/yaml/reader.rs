//! One document read strictly, and everything in it that has a place: what `source::yaml` builds its objects with.
//!
//! Called by `source::yaml` only. Every problem it makes names file, line, column and field.

use std::sync::Arc;

use countersign_policy::Document;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Segment, Track};
use serde_saphyr::{MergeKeyPolicy, Options, Spanned, UserMessageFormatter};

use super::raw;
use crate::model::{Labels, ObjectName, Place, Problem};

/// Kubernetes' longest object name.
const MAX_NAME_BYTES: usize = 253;
/// Kubernetes' longest label key: 253 of prefix, a slash, 63 of name; values are shorter.
const MAX_LABEL_BYTES: usize = 317;
/// Of one object.
const MAX_LABELS: usize = 64;
/// Characters of the parser's own words about a mistake.
const MAX_MESSAGE: usize = 300;

/// One document on its way to an object.
pub(super) struct Reader<'a> {
    pub(super) file: &'a Arc<str>,
    pub(super) document: &'a Document<'a>,
    /// Lines of the file before the document.
    pub(super) before: u32,
}

impl Reader<'_> {
    pub(super) fn namespaced(&self, metadata: raw::Metadata) -> Result<(Place, ObjectName), Problem> {
        let place = self.place(&metadata.name);
        let Some(namespace) = metadata.namespace else {
            return Err(Problem::at(&place, "metadata.namespace", "is missing"));
        };
        self.check_name("metadata.namespace", &namespace)?;
        self.check_name("metadata.name", &metadata.name)?;
        self.check_labels("metadata.labels", &metadata.labels)?;
        let name = ObjectName { namespace: namespace.value.into(), name: metadata.name.value.into() };
        Ok((place, name))
    }

    pub(super) fn cluster_wide(&self, metadata: raw::Metadata) -> Result<(Place, ObjectName), Problem> {
        let place = self.place(&metadata.name);
        if let Some(namespace) = &metadata.namespace {
            let message = format!("a {} lives in no namespace", self.document.kind);
            return Err(self.problem(namespace, "metadata.namespace", message));
        }
        self.check_name("metadata.name", &metadata.name)?;
        self.check_labels("metadata.labels", &metadata.labels)?;
        let name = ObjectName { namespace: "".into(), name: metadata.name.value.into() };
        Ok((place, name))
    }

    pub(super) fn check_name(&self, field: &str, spanned: &Spanned<String>) -> Result<(), Problem> {
        let name = spanned.value.as_str();
        let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
            && name.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'));
        if fits {
            return Ok(());
        }
        let message = format!(
            "{:?} is not a name: 1 to 253 of a-z 0-9 - . that begins and ends with a letter or digit",
            clip(name)
        );
        Err(self.problem(spanned, field, message))
    }

    pub(super) fn check_labels(&self, field: &str, labels: &Labels) -> Result<(), Problem> {
        if labels.len() > MAX_LABELS {
            return Err(self.problem_at_start(field, format!("holds more than {MAX_LABELS}")));
        }
        match labels.iter().find(|(k, v)| k.is_empty() || k.len() > MAX_LABEL_BYTES || v.len() > MAX_LABEL_BYTES) {
            Some((key, _)) => {
                let message = format!("{:?}: key or value is empty or too long", clip(key));
                Err(self.problem_at_start(field, message))
            }
            None => Ok(()),
        }
    }

    /// Reads the document into its raw form.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let mut track = Track::new();
        let read = serde_saphyr::with_deserializer_from_str_with_options(self.document.text, options(), |yaml| {
            T::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track))
        });
        read.map_err(|error| {
            let place = match error.location() {
                Some(location) => self.offset(location.line(), location.column()),
                None => self.start(),
            };
            Problem::at(&place, path(&track.path()), message(&error))
        })
    }

    pub(super) fn problem<T>(
        &self,
        value: &Spanned<T>,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Problem {
        Problem::at(&self.place(value), field, message)
    }

    pub(super) fn problem_at_start(&self, field: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem::at(&self.start(), field, message)
    }

    pub(super) fn place<T>(&self, value: &Spanned<T>) -> Place {
        self.offset(value.referenced.line(), value.referenced.column())
    }

    /// The first line of the document that says something.
    pub(super) fn start(&self) -> Place {
        let says = |line: &str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#') && line != "---"
        };
        let line = self.document.text.lines().position(says).unwrap_or(0);
        self.offset(line as u64 + 1, 1)
    }

    fn offset(&self, line: u64, column: u64) -> Place {
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Place { file: Arc::clone(self.file), line: self.before.saturating_add(number(line)), column: number(column) }
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        merge_keys: MergeKeyPolicy::Error,
        reject_unsupported_tags: true,
        budget: serde_saphyr::budget! {
            max_aliases: 0,
            max_anchors: 0,
            max_depth: 16,
            max_nodes: 20_000,
        },
    }
}

/// The error alone, as much of it as a line of a log may hold: it quotes what it found. The place is told apart from it.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.render_with_formatter(&UserMessageFormatter);
    let text = text.lines().next().unwrap_or_default();
    let text = text.rfind(" at line ").map_or(text, |at| &text[..at]);
    text.chars().take(MAX_MESSAGE).collect()
}

/// Like `spec.ports[0].port`. The segment `value` that `Spanned` adds is left out.
fn path(path: &serde_path_to_error::Path) -> String {
    let mut segments: Vec<&Segment> = path.iter().collect();
    if let [.., before, Segment::Map { key }] = segments.as_slice()
        && key == "value"
        && !matches!(before, Segment::Map { key } if key == "labels" || key == "selector")
    {
        segments.pop();
    }
    let mut text = String::new();
    for segment in segments {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(&clip(key));
            }
            Segment::Unknown => {}
        }
    }
    text
}

/// A peer's or a person's text, short enough for one line of a log.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
