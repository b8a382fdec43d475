//! A document as a tree that remembers where each value stands. Made of YAML (with places) or JSON (without);
//! called by `documents` and `from_json`. Must never resolve an anchor, merge a key or run a tag.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::MergeKeyPolicy;
use serde_saphyr::{Error, MessageFormatter, Spanned};

use super::{MAX_TEXT_BYTES, ParseError};

/// Nesting of one document: a policy needs 8.
const MAX_DEPTH: usize = 16;
/// Values in one document.
const MAX_NODES: usize = 100_000;

/// Line and column, from 1; zeros where they are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) place: Place,
    pub(crate) text: String,
}

impl Value {
    /// For "is X where Y is needed".
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Int(_) => "a number",
            Value::Float(_) => "a fraction or too large a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

/// Reads one YAML document that begins on `first_line` of `file`.
pub(crate) fn from_yaml(file: &str, first_line: usize, text: &str) -> Result<Node, ParseError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_documents: 1,
            max_aliases: 0,
            max_anchors: 0,
        },
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Tree<true>>(text, options)
        .map(|tree| tree.0)
        .map_err(|error| not_yaml(file, first_line, &error))
}

/// Reads JSON.
pub(crate) fn from_json(file: &str, text: &str) -> Result<Node, ParseError> {
    let error = |line, column, message| ParseError { file: file.into(), line, column, field: String::new(), message };
    if text.len() > MAX_TEXT_BYTES {
        return Err(error(0, 0, format!("is longer than {MAX_TEXT_BYTES} bytes")));
    }
    serde_json::from_str::<Tree<false>>(text)
        .map(|tree| tree.0)
        .map_err(|e| error(e.line(), e.column(), clip_to(200, &e.to_string())))
}

fn not_yaml(file: &str, first_line: usize, error: &Error) -> ParseError {
    let error = error.without_snippet();
    let (line, column) = match error.location() {
        Some(at) if at.line() > 0 => {
            (usize::try_from(at.line()).unwrap_or(usize::MAX), usize::try_from(at.column()).unwrap_or(usize::MAX))
        }
        _ => (1, 1),
    };
    let (field, message): (_, Cow<'_, str>) = match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => (clip(key), "is given twice".into()),
        Error::Budget { breach, .. } => (String::new(), budget(breach)),
        Error::MergeKeyNotAllowed { .. } => (String::new(), "merge keys (<<) are not accepted".into()),
        other => (String::new(), serde_saphyr::UserMessageFormatter.format_message(other)),
    };
    // The commonest slip, and the scanner's words for it help nobody.
    let message = match message.contains("scanning an anchor or alias") {
        true => NO_ANCHORS.into(),
        false => message,
    };
    ParseError {
        file: file.into(),
        line: line.saturating_add(first_line - 1),
        column,
        field,
        message: clip_to(200, &message),
    }
}

const NO_ANCHORS: &str = "anchors (&) and aliases (*) are not accepted; is a \"*\" without quotes?";

fn budget(breach: &BudgetBreach) -> Cow<'static, str> {
    match breach {
        BudgetBreach::Anchors { .. } | BudgetBreach::Aliases { .. } => NO_ANCHORS.into(),
        BudgetBreach::Depth { .. } => format!("is nested deeper than {MAX_DEPTH}").into(),
        BudgetBreach::Nodes { .. } => format!("holds more than {MAX_NODES} values").into(),
        other => clip(&format!("is beyond its bounds: {other:?}")).into(),
    }
}

/// At most 80 characters of a text that someone else wrote, on one line.
pub(crate) fn clip(text: &str) -> String {
    clip_to(80, text)
}

fn clip_to(most: usize, text: &str) -> String {
    let mut clipped: String = text
        .chars()
        .take(most)
        .flat_map(|c| {
            let escape = c.is_control();
            let plain = (!escape).then_some(c);
            plain.into_iter().chain(c.escape_default().filter(move |_| escape))
        })
        .collect();
    if text.chars().nth(most).is_some() {
        clipped.push_str("...");
    }
    clipped
}

/// A `Node` on its way in, with places (`true`, YAML only) or without.
struct Tree<const PLACES: bool>(Node);
struct TreeKey<const PLACES: bool>(Key);
struct TreeValue<const PLACES: bool>(Value);

fn place<T>(spanned: &Spanned<T>) -> Place {
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Place { line: count(spanned.referenced.line()), column: count(spanned.referenced.column()) }
}

impl<'de> Deserialize<'de> for Tree<true> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<TreeValue<true>>::deserialize(deserializer)?;
        let place = place(&spanned);
        let value = spanned.value.0;
        Ok(Self(Node { place, value }))
    }
}

impl<'de> Deserialize<'de> for Tree<false> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = TreeValue::<false>::deserialize(deserializer)?.0;
        let place = Place::default();
        Ok(Self(Node { place, value }))
    }
}

impl<'de> Deserialize<'de> for TreeKey<true> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        let place = place(&spanned);
        let text = spanned.value;
        Ok(Self(Key { place, text }))
    }
}

impl<'de> Deserialize<'de> for TreeKey<false> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let place = Place::default();
        Ok(Self(Key { place, text }))
    }
}

impl<'de, const PLACES: bool> Deserialize<'de> for TreeValue<PLACES>
where
    Tree<PLACES>: Deserialize<'de>,
    TreeKey<PLACES>: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor::<PLACES>).map(Self)
    }
}

struct ValueVisitor<const PLACES: bool>;

impl<'de, const PLACES: bool> Visitor<'de> for ValueVisitor<PLACES>
where
    Tree<PLACES>: Deserialize<'de>,
    TreeKey<PLACES>: Deserialize<'de>,
{
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Tree(node)) = items.next_element()? {
            bounded(list.len())?;
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some((TreeKey(key), Tree(node))) = fields.next_entry()? {
            bounded(map.len())?;
            map.push((key, node));
        }
        Ok(Value::Map(map))
    }
}

fn bounded<E: serde::de::Error>(len: usize) -> Result<(), E> {
    if len >= MAX_NODES {
        return Err(E::custom(format!("holds more than {MAX_NODES} values")));
    }
    Ok(())
}
