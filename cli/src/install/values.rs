//! The values: the chart's defaults, then files, then `--set`; checked by the chart's own schema.
//!
//! Called by `install`. It must never pass on a value that the chart would refuse.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::schema;

/// The chart's values, each with its comment.
pub const DEFAULTS: &str = include_str!("../../../manifests/countersign/values.yaml");
const SCHEMA: &str = include_str!("../../../manifests/countersign/values.schema.json");

/// All values, checked.
pub fn read(files: &[PathBuf], sets: &[String]) -> Result<Value> {
    let mut values: Value = serde_saphyr::from_str(DEFAULTS).context("the chart's values")?;
    // `kubectl apply` makes the namespace like any other object; Helm cannot.
    set(&mut values, "namespace.create=true")?;
    for file in files {
        merge(&mut values, from_file(file)?);
    }
    for text in sets {
        set(&mut values, text).with_context(|| format!("--set {text}"))?;
    }
    let schema: Value = serde_json::from_str(SCHEMA).context("the chart's schema")?;
    let problems = schema::check(&schema, &values)?;
    if !problems.is_empty() {
        bail!("bad values:\n  {}", problems.join("\n  "));
    }
    Ok(values)
}

/// A namespace's name (RFC 1123 label).
pub fn name(text: &str) -> Result<()> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = text.chars().all(|c| word(c) || c == '-');
    if text.len() > 63 || !inner || !text.starts_with(word) || !text.ends_with(word) {
        bail!("{text:?} is no name of a namespace: at most 63 of a-z, 0-9 and -, the first and last not -");
    }
    Ok(())
}

fn from_file(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let values: Value = serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?;
    if !values.is_object() && !values.is_null() {
        bail!("{}: want NAME: VALUE at the top", file.display());
    }
    Ok(values)
}

/// Maps are merged, all else is replaced, and null takes a default away: as Helm does it.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                match into.get_mut(&key) {
                    _ if value.is_null() => {
                        into.remove(&key);
                    }
                    Some(there) => merge(there, value),
                    None => {
                        into.insert(key, value);
                    }
                }
            }
        }
        // A file with nothing in it.
        (_, Value::Null) => {}
        (into, from) => *into = from,
    }
}

/// `NAME=VALUE`. What the default is says how VALUE is read: text as it stands, a list by commas or as JSON, the rest as JSON.
fn set(values: &mut Value, text: &str) -> Result<()> {
    let (name, value) = text.split_once('=').context("want NAME=VALUE")?;
    let mut at = values;
    for key in name.split('.') {
        let unknown = || format!("there is no value {name}; `countersign install --show-values` names all");
        // Below a free map (resources, nodeSelector) a name may be new.
        let Value::Object(fields) = at else { bail!(unknown()) };
        at = fields.entry(key).or_insert(Value::Null);
    }
    let json = || serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    *at = match at {
        Value::String(_) => Value::from(value),
        Value::Array(_) if !value.starts_with('[') => {
            value.split(',').filter(|item| !item.is_empty()).map(Value::from).collect()
        }
        _ => json(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(sets: &[&str]) -> Result<Value> {
        read(&[], &sets.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    fn refused(sets: &[&str]) -> String {
        format!("{:#}", with(sets).unwrap_err())
    }

    #[test]
    fn set_reads_a_value_by_the_type_of_its_default() {
        let values = with(&["image.tag=1.10", "ca.replicas=3", "mesh.podRanges=10.0.0.0/8,fd00::/8"]).unwrap();
        assert_eq!(values["image"]["tag"], "1.10");
        assert_eq!(values["ca"]["replicas"], 3);
        assert_eq!(values["mesh"]["podRanges"], json!(["10.0.0.0/8", "fd00::/8"]));
        assert_eq!(with(&["ca.resources.limits.cpu=2"]).unwrap()["ca"]["resources"]["limits"]["cpu"], 2);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(refused(&["mesh.trustdomain=x"]).contains("mesh.trustdomain"));
        assert!(refused(&["mesh=x"]).contains("mesh"));
        assert!(refused(&["nonsense"]).contains("NAME=VALUE"));
    }

    #[test]
    fn a_bad_value_is_refused_with_its_name() {
        for (text, name) in [
            ("ca.replicas=0", "ca.replicas"),
            ("ca.replicas=many", "ca.replicas"),
            ("mesh.podRanges=10.0.0.0", "mesh.podRanges[0]"),
            ("mesh.trustDomain=Upper", "mesh.trustDomain"),
            ("image.pullPolicy=Sometimes", "image.pullPolicy"),
            ("image.tag=a\" x", "image.tag"),
            ("networkPolicies.apiServerPorts=[]", "networkPolicies.apiServerPorts"),
        ] {
            assert!(refused(&[text]).contains(name), "{text}: {}", refused(&[text]));
        }
    }

    #[test]
    fn files_are_merged_and_set_wins() {
        let folder = std::env::temp_dir().join(format!("countersign-values-{}", std::process::id()));
        std::fs::write(&folder, "ca: {replicas: 3, leafTTL: 2h}\n").unwrap();
        let values = read(std::slice::from_ref(&folder), &["ca.replicas=4".to_owned()]).unwrap();
        std::fs::remove_file(&folder).unwrap();
        assert_eq!((&values["ca"]["replicas"], &values["ca"]["leafTTL"]), (&json!(4), &json!("2h")));
        assert_eq!(values["ca"]["issuerTTL"], "30d");
    }
}
