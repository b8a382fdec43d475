//! What several answers say together: which sidecar lags behind its rules, and what should be meshed and is not. Called by `status`.
//!
//! Each replica of the controller knows the sidecars that are connected to it alone: one is missing only if no replica has it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// A workload's UID, and how people call it.
type Named = BTreeMap<String, String>;

/// What the controllers among the answers know.
pub struct Picture {
    /// Seconds that a sidecar, by its pod's UID, has not confirmed its rules.
    lags: BTreeMap<String, f64>,
    not_connected: Named,
    without_sidecar: Named,
    /// Some have only a number for the rest.
    cut: bool,
    controllers: usize,
}

impl Picture {
    /// Of all that answered.
    pub fn of<'a>(answers: impl Iterator<Item = &'a Value>) -> Self {
        let mut picture = Picture {
            lags: BTreeMap::new(),
            not_connected: Named::new(),
            without_sidecar: Named::new(),
            cut: false,
            controllers: 0,
        };
        let mut here = BTreeSet::new();
        for status in answers {
            if let Some(uid) = status["pod"]["uid"].as_str()
                && status["controller"]["connected"] == true
            {
                here.insert(uid.to_owned());
            }
            if status["drift"].is_object() {
                picture.controller(status);
            }
        }
        // A sidecar that says itself that it is connected is: to a replica that was not asked.
        picture.not_connected.retain(|uid, _| !here.contains(uid) && !picture.lags.contains_key(uid));
        picture
    }

    fn controller(&mut self, status: &Value) {
        for proxy in status["proxies"].as_array().into_iter().flatten() {
            if let (Some(uid), Some(lag)) = (proxy["pod_uid"].as_str(), proxy["lag_seconds"].as_f64()) {
                self.lags.insert(uid.to_owned(), lag);
            }
        }
        for (kind, all) in [("not_connected", &mut self.not_connected), ("without_sidecar", &mut self.without_sidecar)]
        {
            let (found, cut) = named(&status["drift"][kind]);
            self.cut |= cut;
            match (kind, self.controllers) {
                ("not_connected", 1..) => all.retain(|uid, _| found.contains_key(uid)),
                _ => all.extend(found),
            }
        }
        self.controllers += 1;
    }

    /// Seconds that this process has not confirmed its rules, if a controller knows it.
    pub fn lag(&self, status: &Value) -> Option<f64> {
        self.lags.get(status["pod"]["uid"].as_str()?).copied()
    }

    /// True if nothing is missing, as far as is known.
    pub fn is_well(&self) -> bool {
        self.not_connected.is_empty() && self.without_sidecar.is_empty()
    }

    /// For programs; null where no controller was asked.
    pub fn value(&self) -> Value {
        let names = |named: &Named| named.values().cloned().collect::<Vec<_>>();
        match self.controllers {
            0 => Value::Null,
            _ => json!({
                "controllers_asked": self.controllers,
                "not_connected": names(&self.not_connected),
                "without_sidecar": names(&self.without_sidecar),
                "more": self.cut,
            }),
        }
    }

    /// For people: one line for each kind of drift.
    pub fn lines(&self) -> Vec<String> {
        let more = if self.cut { ", and more" } else { "" };
        let line = |named: &Named, what: &str| {
            let names: Vec<_> = named.values().take(10).cloned().collect();
            let rest = if named.len() > names.len() { ", ..." } else { more };
            (!named.is_empty()).then(|| format!("{} {what}: {}{rest}", named.len(), names.join(", ")))
        };
        [
            line(&self.not_connected, "meshed, and no sidecar of theirs is connected to a controller that was asked"),
            line(&self.without_sidecar, "without a sidecar, though their namespace asks for one"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Those that are named, and whether there are more.
fn named(kind: &Value) -> (Named, bool) {
    let word =
        |value: &Value| -> String { value.as_str().unwrap_or_default().chars().filter(|c| !c.is_control()).collect() };
    let workloads = kind["workloads"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named: Named = workloads
        .iter()
        .map(|one| (word(&one["uid"]), format!("{}/{}", word(&one["namespace"]), word(&one["name"]))))
        .collect();
    let cut = kind["count"].as_u64().is_some_and(|count| count > workloads.len() as u64);
    (named, cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(not_connected: &[&str], lag: f64) -> Value {
        let one = |name: &&str| json!({ "namespace": "shop", "name": name, "uid": format!("uid-{name}") });
        let list: Vec<_> = not_connected.iter().map(one).collect();
        json!({
            "drift": {
                "not_connected": { "count": list.len(), "workloads": list },
                "without_sidecar": { "count": 0, "workloads": [] },
            },
            "proxies": [{ "pod_uid": "uid-x", "lag_seconds": lag }],
        })
    }

    #[test]
    fn a_sidecar_is_missing_only_if_no_replica_has_it_and_it_does_not_say_otherwise() {
        let answers = [controller(&["a", "b", "c"], 0.0), controller(&["b", "c"], 0.0)];
        let picture = Picture::of(answers.iter());
        assert_eq!(picture.value()["not_connected"], json!(["shop/b", "shop/c"]));
        assert!(!picture.is_well() && picture.lines()[0].starts_with("2 meshed"));
        let itself = json!({ "pod": { "uid": "uid-b" }, "controller": { "connected": true } });
        let picture = Picture::of(answers.iter().chain([&itself]));
        assert_eq!(picture.value()["not_connected"], json!(["shop/c"]));
        let itself = json!({ "pod": { "uid": "uid-b" }, "controller": { "connected": false } });
        assert_eq!(Picture::of(answers.iter().chain([&itself])).value()["not_connected"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_lag_is_the_controllers_word_and_found_by_the_pods_uid() {
        let picture = Picture::of([controller(&[], 2.5)].iter());
        assert_eq!(picture.lag(&json!({ "pod": { "uid": "uid-x" } })), Some(2.5));
        assert_eq!(picture.lag(&json!({ "pod": { "uid": "uid-y" } })), None);
        assert_eq!(picture.lag(&json!({})), None);
        assert!(picture.is_well() && picture.lines().is_empty());
    }

    #[test]
    fn what_no_controller_said_is_not_known_and_what_was_cut_is_said_to_be() {
        assert!(Picture::of([json!({ "ready": true })].iter()).value().is_null());
        let mut many = controller(&["a"], 0.0);
        many["drift"]["not_connected"]["count"] = json!(500);
        let picture = Picture::of([many].iter());
        assert_eq!(picture.value()["more"], true);
        assert!(picture.lines()[0].ends_with("and more"));
    }
}
