//! JSON values as YAML text that every reader takes for the same: YAML 1.1 (kubectl's) and 1.2 alike.
//!
//! Called by `offline`. A string is written bare only where no reader could take it for anything else; keys come sorted, as
//! kubectl prints them.

use serde_json::Value;

/// A document, without its marker line.
pub(crate) fn document(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut text),
        Value::Array(list) if !list.is_empty() => block(value, 0, &mut text),
        _ => {
            scalar(value, 0, &mut text);
            text.push('\n');
        }
    }
    text
}

/// A list or an object that is not empty, each entry on lines of its own.
fn block(value: &Value, indent: usize, text: &mut String) {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (i, (key, value)) in map.iter().enumerate() {
                // The first line of an object in a list stands behind the dash.
                if i > 0 || !text.ends_with("- ") {
                    text.push_str(&margin);
                }
                string(key, text);
                text.push(':');
                match value {
                    Value::Object(map) if !map.is_empty() => {
                        text.push('\n');
                        block(value, indent + 2, text);
                    }
                    Value::Array(list) if !list.is_empty() => {
                        text.push('\n');
                        block(value, indent, text);
                    }
                    _ => {
                        text.push(' ');
                        scalar(value, indent + 2, text);
                        text.push('\n');
                    }
                }
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                if i > 0 || !text.ends_with("- ") {
                    text.push_str(&margin);
                }
                text.push_str("- ");
                match value {
                    Value::Object(map) if !map.is_empty() => block(value, indent + 2, text),
                    Value::Array(list) if !list.is_empty() => block(value, indent + 2, text),
                    _ => {
                        scalar(value, indent + 2, text);
                        text.push('\n');
                    }
                }
            }
        }
        _ => {}
    }
}

/// What stands on one line; or a text of several, whose lines come below, indented.
fn scalar(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::String(s) if is_literal(s) => {
            text.push_str(if s.ends_with('\n') { "|" } else { "|-" });
            for line in s.strip_suffix('\n').unwrap_or(s).split('\n') {
                text.push('\n');
                if !line.is_empty() {
                    text.push_str(&" ".repeat(indent));
                    text.push_str(line);
                }
            }
        }
        Value::String(s) => string(s, text),
        Value::Object(_) => text.push_str("{}"),
        Value::Array(_) => text.push_str("[]"),
        other => text.push_str(&other.to_string()),
    }
}

/// A literal block keeps it as it is: text of several lines with nothing odd in it.
fn is_literal(s: &str) -> bool {
    let body = s.strip_suffix('\n').unwrap_or(s);
    let printable =
        |c: char| c == '\n' || matches!(c, ' '..='~') || matches!(c, '\u{a1}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}');
    body.contains('\n') && !body.ends_with('\n') && !body.starts_with([' ', '\n']) && body.chars().all(printable)
}

fn string(s: &str, text: &mut String) {
    if is_plain(s) {
        text.push_str(s);
    } else {
        // A JSON string is a YAML string, but for characters that YAML wants escaped and JSON does not.
        for c in Value::from(s).to_string().chars() {
            match c {
                ' '..='~'
                | '\u{a1}'..='\u{2027}'
                | '\u{202a}'..='\u{d7ff}'
                | '\u{e000}'..='\u{fefe}'
                | '\u{1_0000}'.. => {
                    text.push(c);
                }
                other => text.push_str(&format!("\\u{:04x}", u32::from(other))),
            }
        }
    }
}

/// Letters first, so it is no number; no sign that YAML gives a meaning to; none of the words that YAML 1.1 or 1.2 takes for something else.
fn is_plain(s: &str) -> bool {
    const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan"];
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && s.chars().all(fits)
        && !WORDS.contains(&s.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn it_looks_as_people_write_it() {
        let value = json!({
            "a": [{ "name": "x", "args": ["-c", "echo 1\nexit\n"] }, [1, [2]], {}, []],
            "b": { "c": null, "on": "yes", "n": 1.5 },
        });
        let expected = "a:\n- args:\n  - \"-c\"\n  - |\n    echo 1\n    exit\n  name: x\n- - 1\n  - - 2\n- {}\n- []\nb:\n  c: null\n  \"n\": 1.5\n  \"on\": \"yes\"\n";
        assert_eq!(document(&value), expected);
        assert_eq!(document(&json!("x")), "x\n");
    }

    #[test]
    fn no_string_becomes_something_else() {
        for s in [
            "yes",
            "No",
            "1e3",
            "0x10",
            "010",
            ".5",
            "~",
            "null",
            "NaN",
            ".inf",
            "1:30",
            "-",
            "- a",
            "a: b",
            "a #b",
            "",
            " a",
            "2001-01-01",
            "<<",
            "=",
            "@a",
            "%a",
            "`a",
        ] {
            assert_eq!(document(&json!({ "k": s })), format!("k: {}\n", json!(s)), "quoted");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-zA-Z0-9 :#\n\t\"'\\\\{}|>%@`&*!-]{0,12}".prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z/]{1,6}|.{1,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(value in value()) {
            let text = document(&value);
            let back: Value = serde_saphyr::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            prop_assert_eq!(back, value, "{}", text);
        }
    }
}
