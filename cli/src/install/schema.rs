//! Checks values against the chart's schema: the keywords of JSON Schema (draft 7) that it uses.
//!
//! Called by `values`. It must never pass over a keyword that it does not know: that is an error, and so is a pattern that does not compile.

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde_json::{Map, Value};

/// Keywords that say nothing about a value.
const SILENT: &[&str] = &["$schema", "title", "description"];

/// Every problem of `value`, each with the name of what is bad.
pub fn check(schema: &Value, value: &Value) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    visit(schema, value, "", &mut problems)?;
    Ok(problems)
}

fn visit(schema: &Value, value: &Value, name: &str, problems: &mut Vec<String>) -> Result<()> {
    let rules = schema.as_object().context("a schema that is no object")?;
    for (keyword, rule) in rules {
        let said = keyword_says(rules, keyword, rule, value).with_context(|| format!("{name}: {keyword}"))?;
        problems.extend(said.map(|problem| format!("{name}: {problem}")));
    }
    if let (Some(schema), Some(items)) = (rules.get("items"), value.as_array()) {
        for (at, item) in items.iter().enumerate() {
            visit(schema, item, &format!("{name}[{at}]"), problems)?;
        }
    }
    fields(rules, value, name, problems)
}

/// `properties`, `additionalProperties`, `required`.
fn fields(rules: &Map<String, Value>, value: &Value, name: &str, problems: &mut Vec<String>) -> Result<()> {
    let Some(fields) = value.as_object() else { return Ok(()) };
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    for (key, field) in fields {
        match rules.get("properties").and_then(|known| known.get(key)).or(rules.get("additionalProperties")) {
            Some(Value::Bool(false)) => problems.push(format!("{}: there is no such value", below(key))),
            Some(schema @ Value::Object(_)) => visit(schema, field, &below(key), problems)?,
            _ => {}
        }
    }
    for key in rules.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(key) {
            problems.push(format!("{}: is missing", below(key)));
        }
    }
    Ok(())
}

/// What one keyword has against a value.
fn keyword_says(rules: &Map<String, Value>, keyword: &str, rule: &Value, value: &Value) -> Result<Option<String>> {
    let length = value.as_array().map(Vec::len);
    let bound = || rule.as_u64().context("no number");
    Ok(match keyword {
        "type" => (!is_type(rule, value)).then(|| format!("{value} is not of the type {}", types(rule))),
        "enum" => {
            let known = rule.as_array().context("no list")?;
            (!known.contains(value)).then(|| format!("{value} is none of {rule}"))
        }
        "pattern" => {
            let pattern = Regex::new(rule.as_str().context("no text")?)?;
            value
                .as_str()
                .filter(|text| !pattern.is_match(text))
                .map(|text| format!("{text:?} does not match {pattern}"))
        }
        "maxLength" => {
            let most = bound()?;
            let length = value.as_str().map_or(0, |text| text.chars().count() as u64);
            (length > most).then(|| format!("longer than {most}"))
        }
        "minimum" => value
            .as_i64()
            .zip(rule.as_i64())
            .filter(|(n, least)| n < least)
            .map(|(n, least)| format!("{n} is less than {least}")),
        "maximum" => value
            .as_i64()
            .zip(rule.as_i64())
            .filter(|(n, most)| n > most)
            .map(|(n, most)| format!("{n} is more than {most}")),
        "minItems" => {
            let least = bound()?;
            length.filter(|length| (*length as u64) < least).map(|_| format!("fewer than {least} items"))
        }
        "maxItems" => {
            let most = bound()?;
            length.filter(|length| *length as u64 > most).map(|_| format!("more than {most} items"))
        }
        "uniqueItems" => {
            let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let twice = items.iter().enumerate().find(|(at, item)| items[..*at].contains(item));
            twice.map(|(_, item)| format!("{item} stands twice"))
        }
        "properties" | "required" | "items" => None,
        "additionalProperties" if rules.contains_key("properties") || rule.is_object() => None,
        silent if SILENT.contains(&silent) => None,
        unknown => bail!("a keyword that we do not know: {unknown}"),
    })
}

fn types(rule: &Value) -> String {
    match rule {
        Value::Array(names) => names.iter().map(types).collect::<Vec<_>>().join(" or "),
        name => name.as_str().unwrap_or_default().to_owned(),
    }
}

fn is_type(rule: &Value, value: &Value) -> bool {
    match rule {
        Value::Array(names) => names.iter().any(|name| is_type(name, value)),
        name => match name.as_str().unwrap_or_default() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_keyword_refuses_what_it_is_for() {
        for (schema, bad, good) in [
            (json!({ "type": "integer" }), json!("1"), json!(1)),
            (json!({ "type": ["string", "integer"] }), json!(true), json!(1)),
            (json!({ "enum": ["a"] }), json!("b"), json!("a")),
            (json!({ "pattern": "^a+$" }), json!("b"), json!("aa")),
            (json!({ "maxLength": 1 }), json!("ab"), json!("a")),
            (json!({ "minimum": 1 }), json!(0), json!(1)),
            (json!({ "maximum": 1 }), json!(2), json!(1)),
            (json!({ "minItems": 1 }), json!([]), json!([1])),
            (json!({ "maxItems": 1 }), json!([1, 2]), json!([1])),
            (json!({ "uniqueItems": true }), json!([1, 1]), json!([1, 2])),
            (json!({ "items": { "type": "string" } }), json!([1]), json!(["a"])),
            (json!({ "required": ["a"] }), json!({}), json!({ "a": 1 })),
            (json!({ "properties": { "a": {} }, "additionalProperties": false }), json!({ "b": 1 }), json!({ "a": 1 })),
            (json!({ "additionalProperties": { "type": "string" } }), json!({ "b": 1 }), json!({ "b": "1" })),
        ] {
            assert_eq!(check(&schema, &bad).unwrap().len(), 1, "{schema} {bad}");
            assert!(check(&schema, &good).unwrap().is_empty(), "{schema} {good}");
        }
    }

    #[test]
    fn an_unknown_keyword_is_an_error_and_not_passed_over() {
        assert!(check(&json!({ "const": 1 }), &json!(2)).is_err());
        assert!(check(&json!({ "pattern": "(" }), &json!("a")).is_err());
    }
}
