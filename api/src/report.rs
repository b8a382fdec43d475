//! The signed report of a rotation: what CA and `countersign` must agree on. The CA signs, `countersign ca report verify` checks.

use serde_json::Value;

/// `format` of a report of this version.
pub const FORMAT: &str = "countersign-rotation-report/1";
/// `algorithm` of its signature, over [`canonical`] of `report`: ASN.1, by the key of the first certificate of `chain`.
pub const ALGORITHM: &str = "ECDSA-P256-SHA256";

/// JSON in the one form that is signed: no space, and the keys of every object sorted by their bytes.
#[must_use]
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            let member =
                |(key, value): &(&String, &Value)| format!("{}:{}", Value::from(key.as_str()), canonical(value));
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        simple => simple.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_in_which_keys_were_written_does_not_matter() {
        let value = json!({ "b": [1, { "z": null, "a": "x\"y" }], "a": true });
        assert_eq!(canonical(&value), r#"{"a":true,"b":[1,{"a":"x\"y","z":null}]}"#);
    }
}
