//! Puts values into the rendered chart. Pure text: the comments, which give each permission's reason, stay.
//!
//! Called by `install`. The text has three things to fill: `${NAME}` is a value (a list or map alone
//! between quotes takes their place), a line that names an empty value is left out as Helm's `with` leaves it out, and a document that says
//! `# when: ${NAME}` is left out where that value is false. It must never leave a placeholder unfilled.

use serde_json::Value;

/// Why the text cannot be filled: a fault of ours, which a test would show.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The text names a value that there is none of.
    #[error("the manifest names the value {0}, which there is not")]
    Unknown(String),
    /// A placeholder without its end.
    #[error("the manifest has an open placeholder: {0}")]
    Open(String),
}

const NAMESPACE: &str = "namespace.name";
const BETWEEN: &str = "\n---\n";

/// The whole manifest: the namespace, the kinds, and then the rest as the chart orders it.
pub fn manifest(mesh: &str, crds: &[&str], values: &Value, namespace: &str) -> Result<String, RenderError> {
    let mut documents = Vec::new();
    for document in mesh.split(BETWEEN) {
        documents.extend(fill_document(document, values, namespace)?);
    }
    let first = usize::from(documents.first().is_some_and(|document| document.contains("\nkind: Namespace\n")));
    documents.splice(first..first, crds.iter().map(|crd| crd.trim_matches(['-', '\n']).to_owned()));
    Ok(format!("{}\n", documents.join(BETWEEN)))
}

fn fill_document(document: &str, values: &Value, namespace: &str) -> Result<Option<String>, RenderError> {
    let mut filled = Vec::new();
    for line in document.lines() {
        if let Some(condition) = line.strip_prefix("# when: ") {
            if fill(condition, values, namespace)?.as_deref() != Some("true") {
                return Ok(None);
            }
        } else {
            filled.extend(fill(line, values, namespace)?);
        }
    }
    let text = filled.join("\n");
    Ok((!text.trim().is_empty()).then(|| text.trim_matches('\n').to_owned()))
}

/// One line; `None` if it names an empty value.
fn fill(line: &str, values: &Value, namespace: &str) -> Result<Option<String>, RenderError> {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or_else(|| RenderError::Open(line.to_owned()))?;
        let value = if name == NAMESPACE { Value::from(namespace) } else { find(values, name)?.clone() };
        if is_empty(&value) {
            return Ok(None);
        }
        // A list or map alone between quotes: the quotes are part of the place.
        rest = match (before.strip_suffix('"'), after.strip_prefix('"')) {
            (Some(before), Some(after)) if value.is_array() || value.is_object() => {
                text.push_str(before);
                text.push_str(&value.to_string());
                after
            }
            _ => {
                text.push_str(before);
                text.push_str(&inside(&value));
                after
            }
        };
    }
    text.push_str(rest);
    Ok(Some(text))
}

/// A value as part of a longer text: a list is joined by commas.
fn inside(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(inside).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn find<'a>(values: &'a Value, name: &str) -> Result<&'a Value, RenderError> {
    name.split('.').try_fold(values, |at, key| at.get(key)).ok_or_else(|| RenderError::Unknown(name.to_owned()))
}

/// What Helm's `with` takes for nothing. `false` is a value here: it has `# when:`.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(line: &str) -> Option<String> {
        let values = json!({ "a": { "text": "x", "list": ["1", "2"], "none": [], "map": { "k": 1 }, "number": 7, "no": false } });
        fill(line, &values, "system").unwrap()
    }

    #[test]
    fn a_value_stands_in_its_place_by_its_type() {
        assert_eq!(one("image: \"${a.text}/y:${a.text}\"").unwrap(), "image: \"x/y:x\"");
        assert_eq!(one("tolerations: \"${a.list}\"").unwrap(), "tolerations: [\"1\",\"2\"]");
        assert_eq!(one("- --range=${a.list}").unwrap(), "- --range=1,2");
        assert_eq!(one("resources: \"${a.map}\" # why").unwrap(), "resources: {\"k\":1} # why");
        assert_eq!(one("replicas: ${a.number}").unwrap(), "replicas: 7");
        assert_eq!(one("namespace: ${namespace.name}").unwrap(), "namespace: system");
    }

    #[test]
    fn a_line_with_an_empty_value_goes_and_false_is_not_empty() {
        assert_eq!(one("- --range=${a.none}"), None);
        assert_eq!(one("flag: ${a.no}").unwrap(), "flag: false");
    }

    #[test]
    fn a_name_that_is_not_there_and_an_open_placeholder_are_errors() {
        assert!(matches!(fill("${b}", &json!({}), "s"), Err(RenderError::Unknown(name)) if name == "b"));
        assert!(matches!(fill("${b", &json!({}), "s"), Err(RenderError::Open(_))));
    }

    #[test]
    fn a_document_whose_condition_is_false_goes() {
        let text = manifest("# when: ${on}\na: 1\n---\nb: 2\n", &[], &json!({ "on": false }), "s").unwrap();
        assert_eq!(text, "b: 2\n");
    }
}
