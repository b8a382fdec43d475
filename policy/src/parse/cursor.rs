//! A value of the tree together with its path, so that every error can say where. Called by `read` alone.
//! Must never let a field pass that nobody asked for.

use super::node::{Key, Node, Place, Value, clip};
use super::{MAX_ENTRIES, ParseError};

/// A value and how to get there.
pub(super) struct Cursor<'a> {
    file: &'a str,
    first_line: usize,
    path: String,
    node: &'a Node,
}

/// The fields of a map, all of them known, none twice.
pub(super) struct Fields<'a> {
    map: Cursor<'a>,
    fields: &'a [(Key, Node)],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a str, first_line: usize, root: &'a Node) -> Self {
        Self { file, first_line, path: String::new(), node: root }
    }

    /// An error about this value.
    pub(super) fn error(&self, message: impl Into<String>) -> ParseError {
        self.error_at(self.node.place, self.path.clone(), message.into())
    }

    /// An error about text that stands here, quoted.
    pub(super) fn refuse(&self, text: &str, why: &str) -> ParseError {
        self.error(format!("\"{}\" {why}", clip(text)))
    }

    fn error_at(&self, place: Place, field: String, message: String) -> ParseError {
        let line = match place.line {
            0 => 0,
            line => line + self.first_line - 1,
        };
        ParseError { file: self.file.into(), line, column: place.column, field, message }
    }

    fn needed(&self, what: &str) -> ParseError {
        match &self.node.value {
            Value::Null => self.error(format!("has no value where {what} is needed")),
            other => self.error(format!("is {} where {what} is needed", other.what())),
        }
    }

    fn child(&self, step: &str) -> String {
        match self.path.as_str() {
            "" => clip(step),
            path => format!("{path}.{}", clip(step)),
        }
    }

    /// The map's fields, if it has no other than these.
    pub(super) fn fields(self, known: &[&str]) -> Result<Fields<'a>, ParseError> {
        let fields = self.map()?;
        if let Some((key, _)) = fields.iter().find(|(key, _)| !known.contains(&key.text.as_str())) {
            let message = format!("unknown field (known here: {})", known.join(", "));
            return Err(self.error_at(key.place, self.child(&key.text), message));
        }
        Ok(Fields { map: self, fields })
    }

    /// Text to text, as labels are.
    pub(super) fn entries(&self) -> Result<impl Iterator<Item = (&'a str, Cursor<'a>)>, ParseError> {
        let fields = self.map()?;
        if fields.len() > MAX_ENTRIES {
            return Err(self.error(format!("has more than {MAX_ENTRIES} entries")));
        }
        Ok(fields.iter().map(|(key, node)| {
            let path = format!("{}[{}]", self.path, clip(&key.text));
            let (file, first_line) = (self.file, self.first_line);
            (key.text.as_str(), Cursor { file, first_line, path, node })
        }))
    }

    fn map(&self) -> Result<&'a [(Key, Node)], ParseError> {
        let Value::Map(fields) = &self.node.value else {
            return Err(self.needed("a map"));
        };
        let mut seen = std::collections::HashSet::new();
        match fields.iter().find(|(key, _)| !seen.insert(&key.text)) {
            None => Ok(fields),
            Some((key, _)) => Err(self.error_at(key.place, self.child(&key.text), "is given twice".into())),
        }
    }

    /// The list's entries, at most `most`; an empty list is the caller's to judge.
    pub(super) fn list(&self, most: usize) -> Result<Vec<Cursor<'a>>, ParseError> {
        let Value::List(nodes) = &self.node.value else {
            return Err(self.needed("a list"));
        };
        if nodes.len() > most {
            return Err(self.error(format!("has more than {most} entries")));
        }
        let entry = |(i, node)| Cursor {
            file: self.file,
            first_line: self.first_line,
            path: format!("{}[{i}]", self.path),
            node,
        };
        Ok(nodes.iter().enumerate().map(entry).collect())
    }

    /// The entries of a list that must not be empty.
    pub(super) fn some(&self, most: usize) -> Result<Vec<Cursor<'a>>, ParseError> {
        let entries = self.list(most)?;
        if entries.is_empty() {
            return Err(self.error("is empty: an empty list matches nothing; leave the field out or fill it"));
        }
        Ok(entries)
    }

    pub(super) fn text(&self) -> Result<&'a str, ParseError> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                Err(self.error(format!("is {} where text is needed: put it in quotes", self.node.value.what())))
            }
            _ => Err(self.needed("text")),
        }
    }

    pub(super) fn whole_number(&self) -> Result<i128, ParseError> {
        match self.node.value {
            Value::Int(number) => Ok(number),
            _ => Err(self.needed("a whole number")),
        }
    }

    pub(super) fn truth(&self) -> Result<bool, ParseError> {
        match self.node.value {
            Value::Bool(truth) => Ok(truth),
            _ => Err(self.needed("true or false")),
        }
    }
}

impl<'a> Fields<'a> {
    pub(super) fn optional(&self, name: &str) -> Option<Cursor<'a>> {
        let (_, node) = self.fields.iter().find(|(key, _)| key.text == name)?;
        let Cursor { file, first_line, .. } = self.map;
        Some(Cursor { file, first_line, path: self.map.child(name), node })
    }

    pub(super) fn required(&self, name: &str) -> Result<Cursor<'a>, ParseError> {
        self.optional(name).ok_or_else(|| {
            let place = self.map.node.place;
            self.map.error_at(place, self.map.child(name), "is required".into())
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// An error about the map itself.
    pub(super) fn error(&self, message: impl Into<String>) -> ParseError {
        self.map.error(message)
    }
}
