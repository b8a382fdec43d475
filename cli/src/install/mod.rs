//! `countersign install`: prints the mesh's objects as plain YAML, for `kubectl apply -f -`.
//!
//! Called by `main`. The Helm chart (manifests/countersign) is the one source: `manifests/install/mesh.yaml` is what Helm renders of it with
//! every value's name in the value's place, and a test with the real Helm holds that both roads give equal objects. It must never
//! print a part of the mesh: values are checked first, all of them.

mod render;
mod schema;
mod values;

use std::path::PathBuf;

use anyhow::{Context, Result};
use countersign_api::names;
use serde_json::{Value, json};

use crate::output::{self, Format, Verdict};

/// The chart, rendered with the names of its values in their place.
const MESH: &str = include_str!("../../../manifests/install/mesh.yaml");
/// The kinds that the mesh brings.
const CRDS: &[&str] = &[include_str!("../../../manifests/crds/authorizationpolicies.yaml")];

/// What can be said to `install`.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    #[command(flatten)]
    values: ValueArgs,
    /// Namespace of the mesh's own processes
    #[arg(short, long, default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
    /// Prints the values that can be set, with their defaults and what they mean, and nothing else
    #[arg(long)]
    show_values: bool,
}

/// The values that an operator chose.
#[derive(Debug, Default, clap::Args)]
pub struct ValueArgs {
    /// File of values, as the Helm chart takes it; may be given several times, the last wins
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One value, as in --set image.tag=1.2.3; may be given several times, and wins over files
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
}

impl ValueArgs {
    /// The chart's defaults with them, checked.
    pub fn read(&self) -> Result<Value> {
        values::read(&self.files, &self.set)
    }
}

/// Prints all objects.
pub fn run(args: &InstallArgs, format: Format) -> Result<Verdict> {
    if args.show_values {
        output::emit(values::DEFAULTS)?;
        return Ok(Verdict::Yes);
    }
    let text = manifest(args)?;
    match format {
        Format::Table => output::emit(&text)?,
        Format::Json => {
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects(&text)? });
            output::emit(&(serde_json::to_string_pretty(&list).context("writing JSON")? + "\n"))?;
        }
    }
    Ok(Verdict::Yes)
}

fn manifest(args: &InstallArgs) -> Result<String> {
    let text = text(&args.values.read()?, &args.namespace)?;
    // What we print is YAML, whatever was put into it.
    objects(&text).context("the rendered manifest is no YAML; this is a fault of ours")?;
    Ok(text)
}

fn text(values: &Value, namespace: &str) -> Result<String> {
    values::name(namespace).context("--namespace")?;
    Ok(render::manifest(MESH, CRDS, values, namespace)?)
}

/// The documents of a manifest.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// All objects with these values: what `check` looks for.
pub fn with(values: &Value, namespace: &str) -> Result<Vec<Value>> {
    objects(&text(values, namespace)?)
}

/// All objects with the default values: what `uninstall` looks for.
pub fn defaults(namespace: &str) -> Result<Vec<Value>> {
    with(&ValueArgs::default().read()?, namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(set: &[&str]) -> InstallArgs {
        let set = set.iter().map(|text| (*text).to_owned()).collect();
        let values = ValueArgs { files: Vec::new(), set };
        InstallArgs { values, namespace: "countersign-system".to_owned(), show_values: false }
    }

    fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
        objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    #[test]
    fn no_placeholder_is_left() {
        let text = manifest(&args(&[])).unwrap();
        assert!(!text.contains("${"), "{text}");
    }

    #[test]
    fn a_value_reaches_its_place() {
        let objects =
            objects(&manifest(&args(&["ca.replicas=3", "image.registry=registry.example:5000/mesh"])).unwrap())
                .unwrap();
        let ca = find(&objects, "Deployment", "countersign-ca").unwrap();
        assert_eq!(ca["spec"]["replicas"], 3);
        let image = &ca["spec"]["template"]["spec"]["containers"][0]["image"];
        assert!(image.as_str().unwrap().starts_with("registry.example:5000/mesh/countersign-ca:"), "{image}");
    }

    #[test]
    fn what_is_switched_off_is_not_printed() {
        let has = |set: &[&str], kind: &str| {
            objects(&manifest(&args(set)).unwrap()).unwrap().iter().any(|object| object["kind"] == kind)
        };
        assert!(has(&[], "NetworkPolicy") && !has(&["networkPolicies.enabled=false"], "NetworkPolicy"));
        assert!(has(&[], "Namespace") && !has(&["namespace.create=false"], "Namespace"));
    }

    #[test]
    fn no_metrics_peer_means_nobody_and_not_everybody() {
        let objects = objects(&manifest(&args(&["networkPolicies.metricsFrom=[]"])).unwrap()).unwrap();
        let ingress = find(&objects, "NetworkPolicy", "countersign-ca").unwrap()["spec"]["ingress"].as_array().unwrap();
        assert!(ingress.iter().all(|rule| rule["ports"][0]["port"] != 15031), "{ingress:?}");
    }

    #[test]
    fn the_namespace_comes_first_and_kinds_before_what_uses_them() {
        let objects = objects(&manifest(&args(&[])).unwrap()).unwrap();
        assert_eq!(objects[0]["kind"], "Namespace");
        assert_eq!(objects[1]["kind"], "CustomResourceDefinition");
    }

    #[test]
    fn a_bad_namespace_is_refused() {
        let bad = InstallArgs { namespace: "Bad Name".to_owned(), ..args(&[]) };
        assert!(format!("{:#}", manifest(&bad).unwrap_err()).contains("--namespace"));
    }
}
