//! What the checks look at: every question to the API server, asked once. Called by `check`.
//!
//! It must never drop an error: what could not be read stays an error until a check says so.

use anyhow::{Context, Result};
use countersign_api::names;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::served::{self, Served};
use crate::cluster::api::{Api, CallError};
use crate::cluster::kinds::Name;

type Answer<T> = Result<T, CallError>;

/// Where something is tried with `dryRun`: a namespace that every cluster has.
const TRIED_IN: &str = "default";

/// What was answered.
pub struct World {
    pub namespace: String,
    pub pre: bool,
    /// Of the chart.
    pub values: Value,
    /// What is installed with these values.
    pub objects: Vec<Value>,
    /// `/version`.
    pub version: Value,
    /// The server's clock, and ours just before and after.
    pub date: Option<String>,
    pub asked: (OffsetDateTime, OffsetDateTime),
    pub nodes: Answer<Vec<Value>>,
    pub leases: Answer<Vec<Value>>,
    pub pods: Answer<Vec<Value>>,
    pub namespaces: Answer<Vec<Value>>,
    pub service_cidrs: Answer<Vec<Value>>,
    /// Below here: not with `--pre`. Each object of ours, if it is there.
    pub ours: Vec<(Name, Answer<Option<Value>>)>,
    /// ConfigMaps with the roots, in all namespaces.
    pub roots: Answer<Vec<Value>>,
    pub policies: Answer<Vec<Value>>,
    /// What the processes of the mesh say of their certificates.
    pub served: Vec<Served>,
    /// What became of a pod that is labelled in.
    pub tried_pod: Answer<Value>,
    /// What became of a rule with a field that nobody knows.
    pub tried_policy: Answer<Value>,
}

impl World {
    /// Asks all. An API server that does not answer at all is the one error.
    pub async fn ask(api: &Api, namespace: &str, pre: bool, values: &Value) -> Result<Self> {
        let objects = crate::install::with(values, namespace)?;
        let before = OffsetDateTime::now_utc();
        let version = api.get_with_date("/version").await.context("asking for /version")?;
        let asked = (before, OffsetDateTime::now_utc());
        let mut ours = Vec::new();
        for object in objects.iter().filter(|_| !pre) {
            let name = Name::of(object)?;
            let found = api.get(&name.path()).await;
            ours.push((name, found));
        }
        let none = || Ok(Vec::new());
        let pods = api.list("/api/v1/pods").await;
        let bundles = format!("/api/v1/configmaps?fieldSelector=metadata.name%3D{}", names::BUNDLE_CONFIG_MAP);
        Ok(Self {
            namespace: namespace.to_owned(),
            pre,
            values: values.clone(),
            objects,
            version: version.body,
            date: version.date,
            asked,
            served: match &pods {
                Ok(pods) if !pre => served::ask(api, namespace, pods).await,
                _ => Vec::new(),
            },
            nodes: api.list("/api/v1/nodes").await,
            leases: api.list("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases").await,
            pods,
            namespaces: api.list("/api/v1/namespaces").await,
            service_cidrs: api.list("/apis/networking.k8s.io/v1/servicecidrs").await,
            ours,
            roots: if pre { none() } else { api.list(&bundles).await },
            policies: if pre {
                none()
            } else {
                api.list("/apis/policy.countersign.dev/v1alpha1/authorizationpolicies").await
            },
            tried_pod: if pre { Ok(Value::Null) } else { try_pod(api).await },
            tried_policy: if pre { Ok(Value::Null) } else { try_policy(api).await },
        })
    }

    /// An object of ours, if it is there and may be seen.
    pub fn our(&self, kind: &str, name: &str) -> Option<&Value> {
        self.answer(kind, name).and_then(|found| found.as_ref().ok()).and_then(Option::as_ref)
    }

    /// What was answered when an object of ours was asked for; `None` if nobody asked.
    pub fn answer(&self, kind: &str, name: &str) -> Option<&Answer<Option<Value>>> {
        let is = |at: &Name| at.kind().kind == kind && at.name == name;
        self.ours.iter().find(|(at, _)| is(at)).map(|(_, found)| found)
    }

    /// The server's clock when it was asked.
    pub fn server_time(&self) -> Option<OffsetDateTime> {
        http_date(self.date.as_deref()?)
    }
}

/// An HTTP date (RFC 9110, the preferred format).
pub fn http_date(text: &str) -> Option<OffsetDateTime> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    Some(time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc())
}

/// A pod that no Pod Security level has anything against, labelled in.
async fn try_pod(api: &Api) -> Answer<Value> {
    let security = json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 65532,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "countersign-check-", "labels": { names::LABEL_INJECT: "enabled" } },
        "spec": { "containers": [{ "name": "app", "image": "countersign-check", "securityContext": security }] },
    });
    api.create(&format!("/api/v1/namespaces/{TRIED_IN}/pods?dryRun=All"), &pod).await
}

/// A rule that the kind's schema lets pass and the parser does not.
async fn try_policy(api: &Api) -> Answer<Value> {
    let policy = json!({
        "apiVersion": "policy.countersign.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "generateName": "countersign-check-" },
        "spec": { "action": "Deny", "rules": [{ "from": [] }], "checkedField": true },
    });
    let path = format!("/apis/policy.countersign.dev/v1alpha1/namespaces/{TRIED_IN}/authorizationpolicies?dryRun=All");
    api.create(&path, &policy).await
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A moment: seconds since 1970.
    pub fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    /// A world in which nothing is there, at the beginning of 1970.
    pub fn world() -> World {
        World {
            namespace: names::SYSTEM_NAMESPACE.to_owned(),
            pre: false,
            values: json!({ "mesh": { "podRanges": [], "serviceRanges": [] } }),
            objects: Vec::new(),
            version: Value::Null,
            date: Some("Thu, 01 Jan 1970 00:00:00 GMT".to_owned()),
            asked: (at(0), at(0)),
            nodes: Ok(Vec::new()),
            leases: Ok(Vec::new()),
            pods: Ok(Vec::new()),
            namespaces: Ok(Vec::new()),
            service_cidrs: Ok(Vec::new()),
            ours: Vec::new(),
            roots: Ok(Vec::new()),
            policies: Ok(Vec::new()),
            served: Vec::new(),
            tried_pod: Ok(Value::Null),
            tried_policy: Ok(Value::Null),
        }
    }

    #[test]
    fn the_servers_date_is_read() {
        let date = http_date("Sat, 21 Nov 2026 12:00:05 GMT").unwrap();
        assert_eq!(date.unix_timestamp(), 1_795_262_405);
        assert!(http_date("yesterday").is_none());
    }
}
