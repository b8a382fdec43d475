//! Processes of ours in a cluster's pods: found by `kubectl get pods`, asked by `kubectl exec`, where the image's own program asks its admin
//! socket (`ask`).
//!
//! Called by `places`. It must never take a pod that does not answer for one that is not there: all that have not ended are asked, those that
//! have not begun, and those that are about to end, too.

use anyhow::{Context, Result, bail};
use countersign_api::names;
use serde_json::Value;

use super::{Answer, Place, Whose, kubectl};
use crate::cluster::meshed;

/// Exit code of `ask` where nothing is under a path.
const NOTHING: i32 = 3;

/// One of our processes in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// Its container and its program have one name.
    pub program: &'static str,
}

impl Member {
    fn of(pod: &Value, program: &'static str) -> Self {
        let text = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
        Self { namespace: text("namespace"), pod: text("name"), uid: text("uid"), program }
    }

    /// `namespace/name` of its pod.
    pub fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }

    /// Whether it is a sidecar.
    pub fn is_sidecar(&self) -> bool {
        self.program == names::SIDECAR_CONTAINER
    }

    /// A `GET` of its admin socket.
    pub async fn get(&self, path: &str) -> Answer {
        let said = kubectl::ask(&self.namespace, &self.pod, self.program, &[path], kubectl::LIMIT).await?;
        match said.code {
            Some(0) => said.json().map(Some),
            Some(NOTHING) => Ok(None),
            _ => bail!(said.failure()),
        }
    }
}

/// All pods with a sidecar, of one namespace if it is named; and whoever else is wanted.
pub async fn find(namespace: Option<&str>, whose: Whose<'_>) -> Result<Vec<Place>> {
    let mut pods = kubectl::pods(namespace).await?;
    let mut places = Vec::new();
    if let Whose::All { system_namespace } = whose {
        if namespace.is_some_and(|namespace| namespace != system_namespace) {
            pods.extend(kubectl::pods(Some(system_namespace)).await.context("for controller and CA")?);
        }
        places = system(&pods, system_namespace);
    }
    places.extend(sidecars(&pods, namespace));
    if places.is_empty() {
        bail!("no pod with a sidecar was found");
    }
    Ok(places)
}

fn sidecars<'a>(pods: &'a [Value], namespace: Option<&'a str>) -> impl Iterator<Item = Place> + 'a {
    let ours = move |pod: &&Value| namespace.is_none_or(|namespace| pod["metadata"]["namespace"] == namespace);
    let meshed = |pod: &&Value| meshed::has_sidecar(pod) && !meshed::has_ended(pod);
    pods.iter().filter(ours).filter(meshed).map(|pod| Place::Pod(Member::of(pod, names::SIDECAR_CONTAINER)))
}

/// CA and controller; one that has no pod has a place all the same.
fn system(pods: &[Value], namespace: &str) -> Vec<Place> {
    let mut places = Vec::new();
    for program in [names::CA_ACCOUNT, names::CONTROLLER_ACCOUNT] {
        let before = places.len();
        let runs = |pod: &&Value| {
            let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ours = containers.iter().any(|container| container["name"] == program);
            pod["metadata"]["namespace"] == namespace && ours && !meshed::has_ended(pod)
        };
        places.extend(pods.iter().filter(runs).map(|pod| Place::Pod(Member::of(pod, program))));
        if places.len() == before {
            places.push(Place::Missing { program, namespace: namespace.to_owned() });
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, name: &str, phase: &str, spec: &Value) -> Value {
        json!({
            "metadata": { "namespace": namespace, "name": name, "uid": format!("uid-{name}") }, "spec": spec,
            "status": { "phase": phase },
        })
    }

    fn pods() -> Vec<Value> {
        let sidecar = json!({ "initContainers": [{ "name": names::SIDECAR_CONTAINER, "restartPolicy": "Always" }] });
        let runs = |program: &str| json!({ "containers": [{ "name": program }] });
        let mut leaving = pod("shop", "leaving", "Running", &sidecar);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-11-21T12:00:00Z");
        vec![
            pod("shop", "a", "Running", &sidecar),
            pod("shop", "starting", "Pending", &sidecar),
            leaving,
            pod("shop", "job", "Succeeded", &sidecar),
            pod("shop", "bare", "Running", &runs("app")),
            pod("other", "b", "Running", &sidecar),
            pod("other", "countersign-ca", "Running", &runs(names::CA_ACCOUNT)),
            pod("system", "ca-1", "Running", &runs(names::CA_ACCOUNT)),
        ]
    }

    fn told(places: impl IntoIterator<Item = Place>) -> Vec<String> {
        places.into_iter().map(|place| place.to_string()).collect()
    }

    #[test]
    fn every_pod_with_a_sidecar_that_has_not_ended_is_a_place() {
        assert_eq!(
            told(sidecars(&pods(), None)),
            ["pod shop/a", "pod shop/starting", "pod shop/leaving", "pod other/b"]
        );
        assert_eq!(told(sidecars(&pods(), Some("other"))), ["pod other/b"]);
    }

    #[test]
    fn ca_and_controller_are_those_of_the_systems_namespace_and_missed_where_there_is_none() {
        assert_eq!(told(system(&pods(), "system")), ["pod system/ca-1", "countersign-controller"]);
    }
}
