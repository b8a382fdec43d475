//! Text to policies, strictly: what is not understood is an error that names file, line, column and field.
//! Called by the controller and `countersign policy check` (YAML) and through `Policy::from_json` by the proxy.
//! Must never guess, default a misspelt word, or leave anything unread.
//!
//! A text is split into documents, each document becomes a tree that remembers places (`node`), the tree is read
//! with a path at hand (`cursor`), and `read` says what an AuthorizationPolicy may hold.

mod cursor;
mod documents;
mod grammar;
mod node;
mod read;

use std::fmt;

use crate::model::{API_VERSION, KIND, Policy};
pub use documents::{Document, documents};
pub(crate) use node::clip;

/// Bytes of one text.
pub const MAX_TEXT_BYTES: usize = 4 * 1024 * 1024;
/// Documents in one text.
pub const MAX_DOCUMENTS: usize = 4096;
/// Rules in a policy.
pub const MAX_RULES: usize = 1024;
/// Entries in any list inside a rule, and labels in a selector.
pub const MAX_ENTRIES: usize = 4096;

/// Where a text is wrong, and what is wrong with it. Displayed like
/// `rules.yaml:12:7: spec.rules[0].to[0].ports[1]: 70000 is not a port (1-65535)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// As the caller named it.
    pub file: String,
    /// From 1; 0 where it is not known (JSON from the stream).
    pub line: usize,
    /// From 1, in characters; 0 where it is not known.
    pub column: usize,
    /// Like `spec.rules[0].to[0].ports[1]`; empty where the text is not even YAML.
    pub field: String,
    /// One line for people. Quotes at most 80 characters of the text, control characters escaped.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.message)
    }
}

impl std::error::Error for ParseError {}

impl ParseError {
    /// About a policy that came as JSON, as a whole.
    pub(crate) fn about_json(message: String) -> Self {
        Self { file: JSON.into(), line: 0, column: 0, field: String::new(), message }
    }
}

/// Stands for the file's name where a policy came over the stream.
const JSON: &str = "json";

/// Reads a text of AuthorizationPolicy documents. Empty documents are skipped; any other kind, and a name that is
/// given twice, is an error. Nothing is returned unless everything is right.
pub fn parse(file: &str, text: &str) -> Result<Vec<Policy>, ParseError> {
    let mut seen = std::collections::HashMap::new();
    let mut policies = Vec::new();
    for document in documents(file, text)? {
        let policy = parse_document(file, &document)?;
        let name = (policy.namespace().to_owned(), policy.name().to_owned());
        if let Some(line) = seen.insert(name, document.first_line) {
            return Err(document
                .root(file)
                .error(format!("{policy} is already defined by the document at line {line}")));
        }
        policies.push(policy);
    }
    Ok(policies)
}

/// Reads one document that is an AuthorizationPolicy.
pub fn parse_document(file: &str, document: &Document<'_>) -> Result<Policy, ParseError> {
    read::policy(document.root(file))
}

impl Document<'_> {
    /// Whether `apiVersion` and `kind` are those of an AuthorizationPolicy.
    pub fn is_policy(&self) -> bool {
        self.api_version == API_VERSION && self.kind == KIND
    }
}

impl Policy {
    /// Reads what `to_json` wrote, exactly as strictly as the text that a person writes.
    pub fn from_json(json: &str) -> Result<Self, ParseError> {
        let root = node::from_json(JSON, json)?;
        read::policy(cursor::Cursor::new(JSON, 1, &root))
    }
}

#[cfg(test)]
mod tests;
