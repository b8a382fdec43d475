//! What must be done to one JSON value so that it becomes another: a JSON patch (RFC 6902), as the API server applies it.
//!
//! Called by `review`, last. Applied to the first value it must always give the second; it is as small as is simple, so that
//! people can read it in an audit log.

use serde::Serialize;
use serde_json::Value;

/// One step; they are applied in order.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Op {
    /// Puts a value there; in a list, before what stands there.
    Add {
        /// JSON pointer.
        path: String,
        /// What.
        value: Value,
    },
    /// Puts another value there.
    Replace {
        /// JSON pointer.
        path: String,
        /// What.
        value: Value,
    },
    /// Takes it away.
    Remove {
        /// JSON pointer.
        path: String,
    },
}

/// The steps from `before` to `after`.
#[must_use]
pub fn between(before: &Value, after: &Value) -> Vec<Op> {
    let mut ops = Vec::new();
    step(before, after, "", &mut ops);
    ops
}

fn step(before: &Value, after: &Value, path: &str, ops: &mut Vec<Op>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            let at = |key: &str| format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
            let gone = old.keys().filter(|key| !new.contains_key(*key));
            ops.extend(gone.map(|key| Op::Remove { path: at(key) }));
            for (key, value) in new {
                match old.get(key) {
                    Some(was) => step(was, value, &at(key), ops),
                    None => ops.push(Op::Add { path: at(key), value: value.clone() }),
                }
            }
        }
        (Value::Array(old), Value::Array(new)) if only_added(old, new) => {
            // What stands left of `i` is as it will be, so what is kept stands at `i` by now.
            let mut old = old.iter().peekable();
            for (i, value) in new.iter().enumerate() {
                let path = format!("{path}/{i}");
                match old.next_if(|was| name(was) == name(value)) {
                    Some(was) => step(was, value, &path, ops),
                    None => ops.push(Op::Add { path, value: value.clone() }),
                }
            }
        }
        _ => ops.push(Op::Replace { path: path.to_owned(), value: after.clone() }),
    }
}

/// Whether all entries have names, no two the same, and those of `old` stand in `new` in the same order.
fn only_added(old: &[Value], new: &[Value]) -> bool {
    let names = |list: &[Value]| list.iter().map(|entry| name(entry).map(str::to_owned)).collect::<Option<Vec<_>>>();
    let (Some(old), Some(new)) = (names(old), names(new)) else { return false };
    let unique = |names: &[String]| names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    let mut rest = new.iter();
    unique(&old) && unique(&new) && old.iter().all(|name| rest.any(|other| other == name))
}

fn name(value: &Value) -> Option<&str> {
    value.get("name")?.as_str()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_comes_before_a_list_is_added_and_nothing_else_touched() {
        let before = json!({ "l": [{ "name": "a", "x": 1 }, { "name": "b" }], "n": 1 });
        let after = json!({ "l": [{ "name": "o" }, { "name": "a", "x": 2 }, { "name": "b" }], "n": 1 });
        let ops = serde_json::to_value(between(&before, &after)).unwrap();
        let expected = json!([
            { "op": "add", "path": "/l/0", "value": { "name": "o" } },
            { "op": "replace", "path": "/l/1/x", "value": 2 },
        ]);
        assert_eq!(ops, expected);
    }

    #[test]
    fn keys_with_slashes_are_escaped() {
        let ops = between(&json!({}), &json!({ "a/b~c": 1 }));
        assert_eq!(ops, [Op::Add { path: "/a~1b~0c".to_owned(), value: json!(1) }]);
    }

    #[test]
    fn what_is_the_same_needs_no_patch() {
        assert_eq!(between(&json!({ "a": [1] }), &json!({ "a": [1] })), []);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..3).prop_map(Value::from)];
        leaf.prop_recursive(4, 40, 4, |inner| {
            let named = ("[abc]", inner.clone()).prop_map(|(name, x)| json!({ "name": name, "x": x }));
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(named, 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ab~/]{1,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_foreign_judge_gets_from_one_to_the_other((before, after) in (value(), value())) {
            let ops = serde_json::to_value(between(&before, &after)).unwrap();
            let patch: json_patch::Patch = serde_json::from_value(ops).unwrap();
            let mut patched = before;
            json_patch::patch(&mut patched, &patch).unwrap();
            prop_assert_eq!(patched, after);
        }
    }
}
