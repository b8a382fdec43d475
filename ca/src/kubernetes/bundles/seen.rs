//! What is known of the cluster: which namespaces are meshed, and what their ConfigMaps hold. Pure; fed by `bundles` with the
//! events of three watches, and asked by it what is to be done.

use std::collections::{BTreeMap, BTreeSet};

use countersign_api::names;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;

use crate::state::sha256;

/// Annotation of the ConfigMap: number of the bundle in it.
pub const GENERATION: &str = "countersign.dev/bundle-generation";
/// Annotation of the ConfigMap: namespace of the CA that keeps it. Another mesh's are none of our business.
pub const SYSTEM: &str = "countersign.dev/system-namespace";

/// A ConfigMap of our name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// SHA-256 of the roots' text.
    pub text_sha256: Option<[u8; 32]>,
    /// What it says of itself.
    pub generation: Option<u64>,
    /// We made it, as its label and annotation say.
    pub ours: bool,
}

/// Objects by what is needed of them; while they are listed anew, those that were known still count.
#[derive(Debug)]
struct Mirror<K, V> {
    held: BTreeMap<K, V>,
    listed: Option<BTreeMap<K, V>>,
    complete: bool,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Seen {
    system: String,
    /// Labelled, and not on their way out.
    namespaces: Mirror<String, ()>,
    /// Namespace and name of labelled pods.
    pods: Mirror<(String, String), ()>,
    maps: Mirror<String, Found>,
}

/// Namespaces that an event concerns.
pub type Touched = BTreeSet<String>;

impl<K, V> Default for Mirror<K, V> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), listed: None, complete: false }
    }
}

impl<K: Ord + Clone, V: PartialEq> Mirror<K, V> {
    /// Takes an event; `read` gives key and value, or the key alone of what does not count (any more). Keys that changed.
    fn take<T>(&mut self, event: Event<T>, read: impl Fn(&T) -> (K, Option<V>)) -> Vec<K> {
        match event {
            Event::Init => {
                self.listed = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                if let (key, Some(value)) = read(&object) {
                    self.listed.get_or_insert_default().insert(key, value);
                }
                Vec::new()
            }
            Event::InitDone => {
                let old = std::mem::replace(&mut self.held, self.listed.take().unwrap_or_default());
                self.complete = true;
                let gone = old.keys().filter(|key| !self.held.contains_key(key));
                let new = self.held.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, _)| key);
                gone.chain(new).cloned().collect()
            }
            Event::Apply(object) => {
                let (key, value) = read(&object);
                match value {
                    Some(value) => drop(self.held.insert(key.clone(), value)),
                    None => drop(self.held.remove(&key)),
                }
                vec![key]
            }
            Event::Delete(object) => {
                let (key, _) = read(&object);
                self.held.remove(&key);
                vec![key]
            }
        }
    }
}

impl Seen {
    /// Nothing is known; `system` is always meshed.
    pub fn new(system: &str) -> Self {
        Self { system: system.to_owned(), ..Self::default() }
    }

    /// A labelled namespace.
    pub fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) -> Touched {
        // What is made in one that is on its way out would be refused.
        let read = |meta: &PartialObjectMeta<Namespace>| {
            (meta.name_any(), meta.metadata.deletion_timestamp.is_none().then_some(()))
        };
        self.namespaces.take(event, read).into_iter().collect()
    }

    /// A labelled pod.
    pub fn pod(&mut self, event: Event<PartialObjectMeta<Pod>>) -> Touched {
        let read = |meta: &PartialObjectMeta<Pod>| ((meta.namespace().unwrap_or_default(), meta.name_any()), Some(()));
        self.pods.take(event, read).into_iter().map(|(namespace, _)| namespace).collect()
    }

    /// A ConfigMap of our name.
    pub fn map(&mut self, event: Event<ConfigMap>) -> Touched {
        let read = |map: &ConfigMap| (map.namespace().unwrap_or_default(), Some(Found::of(map, &self.system)));
        self.maps.take(event, read).into_iter().collect()
    }

    /// What we have written ourselves, before the watch says so.
    pub fn wrote(&mut self, namespace: String, found: Found) {
        self.maps.held.insert(namespace, found);
    }

    /// Before the ConfigMaps were listed once, nobody knows what is to be done.
    pub fn complete(&self) -> bool {
        self.maps.complete
    }

    /// What is known of the ConfigMap there.
    pub fn found(&self, namespace: &str) -> Option<&Found> {
        self.maps.held.get(namespace)
    }

    /// Whether the roots belong there: it is meshed, or was, and pods of that time may still start again.
    pub fn wanted(&self, namespace: &str) -> bool {
        let from = (namespace.to_owned(), String::new());
        namespace == self.system
            || self.namespaces.held.contains_key(namespace)
            || self.pods.held.range(from..).next().is_some_and(|((of, _), ())| of == namespace)
            || self.found(namespace).is_some_and(|found| found.ours)
    }

    /// All where the roots belong.
    pub fn all_wanted(&self) -> Touched {
        let ours = self.maps.held.iter().filter(|(_, found)| found.ours).map(|(namespace, _)| namespace);
        let pods = self.pods.held.keys().map(|(namespace, _)| namespace);
        std::iter::once(&self.system).chain(self.namespaces.held.keys()).chain(pods).chain(ours).cloned().collect()
    }
}

impl Found {
    /// What a ConfigMap is to the CA of the namespace `system`.
    pub fn of(map: &ConfigMap, system: &str) -> Self {
        let text = map.data.as_ref().and_then(|data| data.get(names::BUNDLE_KEY));
        Self {
            text_sha256: text.map(|text| sha256(text.as_bytes())),
            generation: map.annotations().get(GENERATION).and_then(|text| text.parse().ok()),
            ours: map.labels().get(names::LABEL_MANAGED_BY).is_some_and(|by| by == names::CA_ACCOUNT)
                && map.annotations().get(SYSTEM).is_some_and(|by| by == system),
        }
    }
}
