//! Text to policies, strictly.

use crate::model::Policy;

/// Where a text is wrong, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {field}: {message}")]
pub struct ParseError {
    /// As the caller named it.
    pub file: String,
    /// From 1; 0 where it is not known.
    pub line: usize,
    /// From 1, in characters; 0 where it is not known.
    pub column: usize,
    /// Like `spec.rules[0].to[0].ports[1]`; empty where the text is not even YAML.
    pub field: String,
    /// One line for people.
    pub message: String,
}

impl ParseError {
    pub(crate) fn unbuilt() -> Self {
        Self {
            file: String::new(),
            line: 0,
            column: 0,
            field: String::new(),
            message: "reading is not built yet".into(),
        }
    }
}

/// One document of a multi-document text, its kind known, its content not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document<'a> {
    /// Line of the file on which `text` begins, from 1.
    pub first_line: usize,
    /// As written; empty if absent.
    pub api_version: String,
    /// As written; empty if absent.
    pub kind: String,
    /// The document alone.
    pub text: &'a str,
}

/// Splits a text into its documents (empty ones left out), so that the caller can sort them by kind.
pub fn documents<'a>(file: &str, text: &'a str) -> Result<Vec<Document<'a>>, ParseError> {
    let _ = (file, text);
    Err(ParseError::unbuilt())
}

/// Reads one document that is an AuthorizationPolicy.
pub fn parse_document(file: &str, document: &Document<'_>) -> Result<Policy, ParseError> {
    let _ = (file, document);
    Err(ParseError::unbuilt())
}

/// Reads a text of AuthorizationPolicy documents; any other kind is an error.
pub fn parse(file: &str, text: &str) -> Result<Vec<Policy>, ParseError> {
    let _ = (file, text);
    Err(ParseError::unbuilt())
}
