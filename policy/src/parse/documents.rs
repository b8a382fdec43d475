//! One text into its YAML documents, so that the caller can sort them by kind. Called by `parse` and by the
//! controller, whose files hold several kinds. Must never see fewer documents than a YAML parser would.
//!
//! YAML forbids `---` and `...` at the start of a line everywhere but as document markers (also inside quotes and
//! block scalars), so lines are enough.

use super::cursor::Cursor;
use super::node::{self, Node, Value};
use super::{MAX_DOCUMENTS, MAX_TEXT_BYTES, ParseError};

/// One document of a text: well-formed YAML whose kind is known and whose content is not yet read.
#[derive(Debug, Clone)]
pub struct Document<'a> {
    /// Line of the file on which `text` begins, from 1.
    pub first_line: usize,
    /// `apiVersion` as written; empty if absent or no text.
    pub api_version: String,
    /// `kind` as written; empty if absent or no text.
    pub kind: String,
    /// The document alone, with its comments and its `---`.
    pub text: &'a str,
    root: Node,
}

impl Document<'_> {
    pub(super) fn root<'a>(&'a self, file: &'a str) -> Cursor<'a> {
        Cursor::new(file, self.first_line, &self.root)
    }
}

/// Splits a text into its documents; empty ones are left out. At most 4 MiB and 4096 documents; in each one no anchors,
/// aliases, merge keys or unknown tags, no key twice, and a bound on nesting and size.
pub fn documents<'a>(file: &str, text: &'a str) -> Result<Vec<Document<'a>>, ParseError> {
    let error =
        |line, message: String| ParseError { file: file.into(), line, column: 1, field: String::new(), message };
    if text.len() > MAX_TEXT_BYTES {
        return Err(error(1, format!("the text is longer than {MAX_TEXT_BYTES} bytes")));
    }
    let mut found = Vec::new();
    for (first_line, text) in split(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        let root = node::from_yaml(file, first_line, text)?;
        if root.value == Value::Null {
            continue;
        }
        if found.len() == MAX_DOCUMENTS {
            return Err(error(first_line, format!("the text holds more than {MAX_DOCUMENTS} documents")));
        }
        found.push(Document {
            first_line,
            api_version: top_level(&root, "apiVersion"),
            kind: top_level(&root, "kind"),
            text,
            root,
        });
    }
    Ok(found)
}

fn top_level(root: &Node, field: &str) -> String {
    let Value::Map(fields) = &root.value else {
        return String::new();
    };
    match fields.iter().find(|(key, _)| key.text == field) {
        Some((_, Node { value: Value::Text(text), .. })) => text.clone(),
        _ => String::new(),
    }
}

/// Chunks that hold one document each (or only comments), with the line on which each begins.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut inside = false;
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let end = text[at..].find(['\n', '\r']).map_or(text.len(), |i| at + i);
        let next = end + if text[end..].starts_with("\r\n") { 2 } else { 1 };
        let next = next.min(text.len());
        let content = &text[at..end];
        if is_marker(content, "...") {
            chunks.push((start_line, &text[start..next]));
            (start, start_line, inside) = (next, line + 1, false);
        } else if is_marker(content, "---") {
            if inside {
                chunks.push((start_line, &text[start..at]));
                (start, start_line) = (at, line);
            }
            inside = true;
        } else if !is_outside(content) {
            inside = true;
        }
        (at, line) = (next, line + 1);
    }
    chunks.push((start_line, &text[start..]));
    chunks
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// What may stand before a document's `---` without being part of another: blanks, comments, directives.
fn is_outside(line: &str) -> bool {
    let content = line.trim_start_matches([' ', '\t']);
    content.is_empty() || content.starts_with('#') || line.starts_with('%')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(usize, String)> {
        documents("t", text).unwrap().into_iter().map(|d| (d.first_line, d.kind)).collect()
    }

    fn expect(pairs: &[(usize, &str)]) -> Vec<(usize, String)> {
        pairs.iter().map(|(l, k)| (*l, k.to_string())).collect()
    }

    #[test]
    fn documents_are_split_at_their_markers() {
        assert_eq!(kinds("kind: A\n---\nkind: B\n"), expect(&[(1, "A"), (2, "B")]));
        assert_eq!(
            kinds("# head\n---\nkind: A\n---\n---\n# nothing\n---\nkind: B\n...\n# end\n"),
            expect(&[(1, "A"), (7, "B")])
        );
        assert_eq!(kinds("--- {kind: A}\n--- {kind: B}"), expect(&[(1, "A"), (2, "B")]));
        assert_eq!(kinds("kind: A\r\n---\r\nkind: B\r\n"), expect(&[(1, "A"), (2, "B")]));
        assert_eq!(kinds("kind: A\r---\rkind: B\r"), expect(&[(1, "A"), (2, "B")]));
        assert_eq!(kinds("\u{feff}kind: A\n"), expect(&[(1, "A")]));
        assert_eq!(kinds("%YAML 1.2\n---\nkind: A\n"), expect(&[(1, "A")]));
        assert_eq!(kinds(""), expect(&[]));
        assert_eq!(kinds("# only words\n"), expect(&[]));
    }

    #[test]
    fn what_only_looks_like_a_marker_splits_nothing() {
        let text = "kind: A\nnote: |\n  ---\n  ...\nother: a---\nmore: --- b\n";
        assert_eq!(kinds(text), expect(&[(1, "A")]));
        assert_eq!(documents("t", text).unwrap()[0].text, text);
    }

    #[test]
    fn a_kind_that_is_no_text_is_empty() {
        assert_eq!(kinds("kind: [A]\n"), expect(&[(1, "")]));
        assert_eq!(kinds("[A]\n"), expect(&[(1, "")]));
    }

    #[test]
    fn too_many_documents_are_refused() {
        let text = "--- {kind: A}\n".repeat(MAX_DOCUMENTS + 1);
        let error = documents("t", &text).unwrap_err();
        assert_eq!((error.line, error.message.as_str()), (4097, "the text holds more than 4096 documents"));
    }

    #[test]
    fn too_long_a_text_is_refused() {
        let text = "#".repeat(MAX_TEXT_BYTES + 1);
        assert!(documents("t", &text).unwrap_err().message.contains("longer than 4194304 bytes"));
    }
}
