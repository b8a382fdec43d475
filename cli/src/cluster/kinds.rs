//! Where the objects of each kind are: the kinds that the mesh installs, and no other.
//!
//! Called by `check` and `uninstall`. It must never guess a plural: a kind without a row is an error.

use anyhow::{Context, Result};
use serde_json::Value;

/// One kind.
#[derive(Debug)]
pub struct Kind {
    /// As in `kind:`.
    pub kind: &'static str,
    /// As in `apiVersion:`.
    pub version: &'static str,
    /// In paths.
    pub plural: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

const fn kind(kind: &'static str, version: &'static str, plural: &'static str, namespaced: bool) -> Kind {
    Kind { kind, version, plural, namespaced }
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";
const ADMISSION: &str = "admissionregistration.k8s.io/v1";

/// In the order in which they are removed: what would refuse pods first, what is watched by a running process after that process, the namespace
/// last.
pub const KINDS: &[Kind] = &[
    kind("MutatingWebhookConfiguration", ADMISSION, "mutatingwebhookconfigurations", false),
    kind("ValidatingWebhookConfiguration", ADMISSION, "validatingwebhookconfigurations", false),
    kind("Deployment", "apps/v1", "deployments", true),
    kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets", true),
    kind("Service", "v1", "services", true),
    kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies", true),
    kind("ConfigMap", "v1", "configmaps", true),
    kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", false),
    kind("ClusterRoleBinding", RBAC, "clusterrolebindings", false),
    kind("ClusterRole", RBAC, "clusterroles", false),
    kind("RoleBinding", RBAC, "rolebindings", true),
    kind("Role", RBAC, "roles", true),
    kind("ServiceAccount", "v1", "serviceaccounts", true),
    kind("Secret", "v1", "secrets", true),
    kind("Namespace", "v1", "namespaces", false),
];

impl Kind {
    /// The row of an object.
    pub fn of(object: &Value) -> Result<&'static Self> {
        let (name, version) =
            (object["kind"].as_str().unwrap_or_default(), object["apiVersion"].as_str().unwrap_or_default());
        let found = KINDS.iter().find(|kind| kind.kind == name && kind.version == version);
        found.with_context(|| format!("{version} {name} has no row in cli/src/cluster/kinds.rs"))
    }

    /// API group; empty for the core's.
    pub fn group(&self) -> &'static str {
        self.version.split_once('/').map_or("", |(group, _)| group)
    }

    /// Path of a collection: of a namespace, or of all.
    pub fn collection(&self, namespace: Option<&str>) -> String {
        let base = if self.group().is_empty() { "/api/" } else { "/apis/" };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{base}{}/namespaces/{namespace}/{}", self.version, self.plural),
            None => format!("{base}{}/{}", self.version, self.plural),
        }
    }
}

/// What is removed or looked for: one object by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Index in [`KINDS`].
    pub row: usize,
    /// Where it is, if it is in one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Name {
    /// Of an object.
    pub fn of(object: &Value) -> Result<Self> {
        let kind = Kind::of(object)?;
        let row = KINDS.iter().position(|row| std::ptr::eq(row, kind)).context("no row")?;
        let text = |key: &str| object["metadata"][key].as_str().map(str::to_owned);
        let namespace = text("namespace").filter(|_| kind.namespaced);
        Ok(Self { row, namespace, name: text("name").context("an object without a name")? })
    }

    /// Of these words.
    pub fn new(kind: &str, namespace: Option<&str>, name: &str) -> Result<Self> {
        let row = KINDS.iter().position(|row| row.kind == kind).with_context(|| format!("no row for {kind}"))?;
        Ok(Self { row, namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }

    /// Its row.
    pub fn kind(&self) -> &'static Kind {
        &KINDS[self.row]
    }

    /// Its path.
    pub fn path(&self) -> String {
        format!("{}/{}", self.kind().collection(self.namespace.as_deref()), self.name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind().kind, self.name),
            None => write!(f, "{} {}", self.kind().kind, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_that_is_installed_has_a_row() {
        for object in crate::install::defaults("system").unwrap() {
            let name = Name::of(&object).unwrap();
            assert!(name.path().ends_with(&name.name), "{name}");
            assert_eq!(name.namespace.is_some(), name.kind().namespaced, "{name}");
        }
    }

    #[test]
    fn paths_are_those_of_the_api_server() {
        let path = |kind, namespace, name| Name::new(kind, namespace, name).unwrap().path();
        assert_eq!(path("Secret", Some("a"), "b"), "/api/v1/namespaces/a/secrets/b");
        assert_eq!(path("Deployment", Some("a"), "b"), "/apis/apps/v1/namespaces/a/deployments/b");
        assert_eq!(path("Namespace", None, "b"), "/api/v1/namespaces/b");
        assert_eq!(path("ClusterRole", None, "b"), "/apis/rbac.authorization.k8s.io/v1/clusterroles/b");
    }
}
