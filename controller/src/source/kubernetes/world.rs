//! All that is known of the cluster, and the picture that it makes. Without `kube`, clock or runtime: changes in, snapshots out.
//!
//! Fed by the parent's `run`. It must never show a picture before every watch was complete once (half a picture calls meshed pods
//! unknown and denies nothing), nor take anything away because a watch broke.
//!
//! Somewhat over 500 lines: one state, which every watch changes and every picture reads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use countersign_identity::TrustDomain;
use countersign_policy::{LabelProblem, Modes};
use ipnet::IpNet;

use crate::drift;
use crate::index::{Index, NamespaceRules, Parts, contains};
use crate::model::{Mesh, ObjectName, Problem, Service, Workload};
use crate::source::Snapshot;
use crate::source::kubernetes::held::{Event, Held, Touched};
use crate::source::kubernetes::objects::{self, Key};
use crate::source::kubernetes::policies::Verdict;
use crate::source::kubernetes::ranges::{InForce, MAX_RANGES, MAX_SERVICE_RANGES, PodRanges};
use crate::source::kubernetes::{nodes, pods, policies, services};

/// Problems that are shown; the rest shows when these are gone.
const MAX_PROBLEMS: usize = 200;

/// What is watched, in the words of the API.
pub const PODS: &str = "pods";
/// See [`PODS`].
pub const SERVICES: &str = "services";
/// See [`PODS`].
pub const SLICES: &str = "endpointslices.discovery.k8s.io";
/// See [`PODS`].
pub const NAMESPACES: &str = "namespaces";
/// See [`PODS`].
pub const POLICIES: &str = "authorizationpolicies.policy.countersign.dev";
/// See [`PODS`].
pub const NODES: &str = "nodes";
/// See [`PODS`].
pub const CIDRS: &str = "servicecidrs.networking.k8s.io";

/// What a watch says.
#[derive(Debug)]
pub enum Change {
    /// Of pods.
    Pod(Event<objects::Pod>),
    /// Of services.
    Service(Event<objects::Service>),
    /// Of endpoint slices.
    Slice(Event<objects::EndpointSlice>),
    /// Of namespaces.
    Namespace(Event<objects::Namespace>),
    /// Of rules.
    Policy(Event<objects::AuthorizationPolicy>),
    /// Of the ranges of cluster IPs.
    Cidr(Event<objects::ServiceCIDR>),
    /// Of nodes: the ranges of their pods, and what is their own.
    Node(Event<objects::Node>),
    /// It broke, or cannot be had; it is tried again.
    Broke {
        /// Of what.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// It broke, and since then has been well for a while.
    Mended(&'static str),
}

impl Change {
    /// Which watch.
    fn what(&self) -> &'static str {
        match self {
            Change::Pod(_) => PODS,
            Change::Service(_) => SERVICES,
            Change::Slice(_) => SLICES,
            Change::Namespace(_) => NAMESPACES,
            Change::Policy(_) => POLICIES,
            Change::Cidr(_) => CIDRS,
            Change::Node(_) => NODES,
            Change::Broke { what, .. } | Change::Mended(what) => what,
        }
    }
}

/// What a change changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// The picture, or what is wrong with it.
    pub picture: bool,
    /// What policies' status should say.
    pub verdicts: bool,
}

/// What a namespace's labels say.
#[derive(Debug, PartialEq, Eq)]
struct Labelled {
    modes: Modes,
    problems: Vec<LabelProblem>,
    inject: bool,
}

impl Labelled {
    fn from(labels: &BTreeMap<String, String>) -> Self {
        let (modes, problems) = Modes::from_labels(labels);
        Labelled { modes, problems, inject: drift::asks_for_sidecars(labels) }
    }
}

/// The ranges as the operator set them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// Of pods; empty: as the nodes' `spec.podCIDRs` say.
    pub pods: Vec<IpNet>,
    /// Of services; empty: as the ServiceCIDR objects say.
    pub services: Vec<IpNet>,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    trust_domain: TrustDomain,
    ranges: Ranges,
    pods: Held<pods::Known>,
    services: Held<Option<services::Known>>,
    slices: Held<services::Slice>,
    namespaces: Held<Labelled>,
    policies: Held<policies::Known>,
    cidrs: Held<Vec<IpNet>>,
    nodes: Held<nodes::Known>,
    pod_ranges: PodRanges,
    /// The last that were not empty: an API without ranges is a mistake, and no reason to call nobody meshed.
    service_ranges: Vec<IpNet>,
    /// Services with what stands behind them.
    joined: BTreeMap<Key, Arc<Service>>,
    /// Which slices each service has.
    slices_of: BTreeMap<Key, BTreeSet<Key>>,
    broken: BTreeMap<&'static str, String>,
    index: Option<Arc<Index>>,
    changes: u64,
}

impl World {
    /// Nothing is known yet.
    pub fn new(trust_domain: TrustDomain, ranges: Ranges) -> Self {
        World {
            trust_domain,
            pod_ranges: PodRanges::new(ranges.pods.clone()),
            service_ranges: ranges.services.clone(),
            ranges,
            pods: Held::default(),
            services: Held::default(),
            slices: Held::default(),
            namespaces: Held::default(),
            policies: Held::default(),
            cidrs: Held::default(),
            nodes: Held::default(),
            joined: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            broken: BTreeMap::new(),
            index: None,
            changes: 0,
        }
    }

    /// Takes in what a watch says.
    pub fn take(&mut self, change: Change) -> Changed {
        let what = change.what();
        let touched = match change {
            Change::Broke { what, why } => {
                let news = self.broken.insert(what, why.clone()).as_ref() != Some(&why);
                return Changed { picture: news, verdicts: false };
            }
            Change::Mended(what) => {
                return Changed { picture: self.broken.remove(what).is_some(), verdicts: false };
            }
            Change::Pod(event) => {
                self.pods.take(keyed(event, |pod| &pod.metadata), |_, pod| pods::read(pod, &self.trust_domain))
            }
            Change::Service(event) => {
                let touched = self.services.take(keyed(event, |is| &is.metadata), |_, is| services::read(is));
                self.join(&touched);
                touched
            }
            Change::Slice(event) => self.slice(event),
            Change::Namespace(event) => self
                .namespaces
                .take(keyed(event, |is| &is.metadata), |_, is| Labelled::from(&objects::labels(is.metadata))),
            Change::Policy(event) => return self.policy(event),
            Change::Cidr(event) => {
                let touched = self.cidrs.take(keyed(event, |is| &is.metadata), |_, is| parsed(&is.spec.cidrs));
                self.told_of_services();
                touched
            }
            Change::Node(event) => self.node(event),
        };
        // Between a list's beginning and its end nothing is said that proves the watch well.
        let mended = touched != Touched::Nothing && self.broken.remove(what).is_some();
        Changed { picture: touched != Touched::Nothing || mended, verdicts: false }
    }

    /// Most of what changes in a node is nothing to us.
    fn node(&mut self, event: Event<objects::Node>) -> Touched {
        let before = match &event {
            Event::Set(node) => self.nodes.find(&objects::key(&node.metadata)).cloned(),
            _ => None,
        };
        let touched = self.nodes.take(keyed(event, |is| &is.metadata), |_, is| nodes::read(is));
        match &touched {
            Touched::Nothing => return touched,
            Touched::One(key) if before.is_some() && self.nodes.find(key) == before.as_ref() => {
                return Touched::Nothing;
            }
            Touched::One(_) | Touched::All => {}
        }
        if self.nodes.is_complete() {
            self.pod_ranges.tell(self.nodes.all().values().flat_map(|node| node.ranges.iter().copied()));
        }
        touched
    }

    /// Ranges of services as told take the place of those before, unless the operator set some, or there are none.
    fn told_of_services(&mut self) {
        if !self.ranges.services.is_empty() || !self.cidrs.is_complete() {
            return;
        }
        let all: Vec<IpNet> = self.cidrs.all().values().flatten().copied().collect();
        let mut all = IpNet::aggregate(&all);
        all.sort();
        if !all.is_empty() {
            self.service_ranges = all;
        }
    }

    fn slice(&mut self, event: Event<objects::EndpointSlice>) -> Touched {
        let before = |slices: &Held<services::Slice>, key: &Key| slices.find(key).and_then(|slice| slice.of.clone());
        let was = match &event {
            Event::Set(slice) => before(&self.slices, &objects::key(&slice.metadata)),
            Event::Gone(key) => before(&self.slices, key),
            _ => None,
        };
        let touched = self.slices.take(keyed(event, |is| &is.metadata), |_, is| services::read_slice(is));
        match &touched {
            Touched::Nothing => {}
            Touched::One(key) => {
                if let Some(of) = was {
                    self.of(&of, key, false);
                }
                if let Some(of) = before(&self.slices, key) {
                    self.of(&of, key, true);
                }
            }
            Touched::All => {
                self.slices_of.clear();
                for (key, slice) in self.slices.all() {
                    if let Some(of) = &slice.of {
                        self.slices_of.entry(of.clone()).or_default().insert(key.clone());
                    }
                }
                self.join(&Touched::All);
            }
        }
        touched
    }

    /// A slice came to a service, or left it.
    fn of(&mut self, of: &Key, slice: &Key, is: bool) {
        let slices = self.slices_of.entry(of.clone()).or_default();
        match is {
            true => slices.insert(slice.clone()),
            false => slices.remove(slice),
        };
        if slices.is_empty() {
            self.slices_of.remove(of);
        }
        self.join(&Touched::One(of.clone()));
    }

    /// Puts services and slices together anew.
    fn join(&mut self, touched: &Touched) {
        match touched {
            Touched::Nothing => {}
            Touched::One(key) => match self.services.find(key) {
                Some(Some(service)) => {
                    let joined = self.joined_of(key, service);
                    self.joined.insert(key.clone(), joined);
                }
                _ => {
                    self.joined.remove(key);
                }
            },
            Touched::All => {
                let all = self.services.all().iter();
                let joined =
                    all.filter_map(|(key, service)| Some((key.clone(), self.joined_of(key, service.as_ref()?))));
                self.joined = joined.collect();
            }
        }
    }

    fn joined_of(&self, key: &Key, service: &services::Known) -> Arc<Service> {
        let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|slice| self.slices.find(slice));
        Arc::new(services::join(service, slices))
    }

    fn policy(&mut self, event: Event<objects::AuthorizationPolicy>) -> Changed {
        let first = !self.policies.is_complete();
        let rule = |known: &Self, key: &Key| {
            known.policies.find(key).map(|is| (is.good.as_ref().map(|rule| rule.digest), is.bad.clone(), is.withholds))
        };
        let key = match &event {
            Event::Set(policy) => Some(objects::key(&policy.metadata)),
            Event::Gone(key) => Some(key.clone()),
            _ => None,
        };
        let before = key.as_ref().and_then(|key| rule(self, key));
        let touched = self.policies.take(keyed(event, |is| &is.metadata), |old, is| policies::read(old, is, first));
        let mended = touched != Touched::Nothing && self.broken.remove(POLICIES).is_some();
        // A status that somebody wrote is no change of the rule.
        let picture = match &touched {
            Touched::Nothing => false,
            Touched::One(key) => rule(self, key) != before,
            Touched::All => true,
        };
        Changed { picture: picture || mended, verdicts: touched != Touched::Nothing }
    }

    /// Watches that were never complete.
    fn missing(&self) -> Vec<&'static str> {
        let watches = [
            (PODS, self.pods.is_complete()),
            (SERVICES, self.services.is_complete()),
            (SLICES, self.slices.is_complete()),
            (NAMESPACES, self.namespaces.is_complete()),
            (POLICIES, self.policies.is_complete()),
            (CIDRS, self.cidrs.is_complete() || !self.ranges.services.is_empty()),
            (NODES, self.nodes.is_complete()),
        ];
        watches.into_iter().filter(|(_, complete)| !complete).map(|(what, _)| what).collect()
    }

    /// What is known now, as a picture.
    pub fn snapshot(&mut self) -> Snapshot {
        let missing = self.missing();
        let ranges = self.in_force();
        if missing.is_empty() && !ranges.services.is_empty() && !ranges.pods.is_empty() {
            let index = self.build(&ranges);
            if self.index.as_ref().is_none_or(|old| old.revision() != index.revision()) {
                self.index = Some(Arc::new(index));
            }
        }
        self.changes += 1;
        let unknown: Vec<(&Key, &policies::Known)> =
            self.policies.all().iter().filter(|(_, is)| is.withholds).collect();
        Snapshot {
            index: self.index.clone(),
            withheld: unknown
                .iter()
                .map(|((namespace, name), _)| format!("AuthorizationPolicy {namespace}/{name}"))
                .collect(),
            withheld_in: unknown.iter().map(|((namespace, _), _)| namespace.as_str().into()).collect(),
            problems: self.problems(&missing, &ranges),
            warnings: self.warnings(),
            files: self.policies.all().len(),
            change: self.changes,
            since: Instant::now(),
        }
    }

    /// All who have an address.
    fn workloads(pods: &Held<pods::Known>) -> impl Iterator<Item = &Workload> {
        pods.all().values().filter_map(|pod| pod.who.as_ref()).map(|who| &*who.member.workload)
    }

    /// The ranges that proxies are told.
    fn in_force(&mut self) -> InForce {
        let addresses = |is: &Workload| is.addresses.iter().map(|at| at.value).collect::<Vec<_>>();
        if self.pods.is_complete() {
            self.pod_ranges.forget(Self::workloads(&self.pods).flat_map(addresses));
        }
        let meshed = Self::workloads(&self.pods).filter(|is| is.meshed).flat_map(addresses);
        InForce::of(self.pod_ranges.said(), &self.service_ranges, meshed)
    }

    fn build(&self, ranges: &InForce) -> Index {
        let mesh = Mesh {
            trust_domain: self.trust_domain.clone(),
            pod_ranges: ranges.pods.clone(),
            service_ranges: ranges.services.clone(),
        };
        let services = self.joined.iter().map(|((namespace, name), service)| {
            let name = ObjectName { namespace: namespace.as_str().into(), name: name.as_str().into() };
            (name, Arc::clone(service))
        });
        Index::settled(
            mesh,
            Parts {
                members: pods::settle(self.pods.all().values(), &self.trust_domain),
                services: services.collect(),
                namespaces: self.rules(),
                bare: self.bare(ranges),
            },
        )
    }

    fn rules(&self) -> BTreeMap<Arc<str>, NamespaceRules> {
        let mut namespaces: BTreeMap<Arc<str>, NamespaceRules> = BTreeMap::new();
        for ((_, name), Labelled { modes, problems, inject }) in self.namespaces.all() {
            let (label_problems, inject) = (problems.clone(), *inject);
            let rules = NamespaceRules { written: true, modes: *modes, label_problems, inject, rules: Vec::new() };
            namespaces.insert(name.as_str().into(), rules);
        }
        for ((namespace, _), policy) in self.policies.all() {
            if let Some(rule) = &policy.good {
                namespaces.entry(namespace.as_str().into()).or_default().rules.push(Arc::clone(rule));
            }
        }
        namespaces
    }

    /// Inside the ranges, and known to be nobody's of the mesh: nodes (their pods' range may hold them too), and where the API
    /// servers listen.
    fn bare(&self, ranges: &InForce) -> BTreeSet<IpAddr> {
        let nodes = self.nodes.all().values().flat_map(|node| node.own.iter().copied());
        let left = self.pod_ranges.left().flat_map(nodes::first_two);
        let hosts = self.pods.all().values().flat_map(|pod| pod.node.iter().copied());
        let (namespace, name) = services::API_SERVER;
        let api = self.joined.get(&(namespace.to_owned(), name.to_owned()));
        let api = api.into_iter().flat_map(|service| service.listed.iter().map(|listed| listed.address));
        nodes.chain(left).chain(hosts).chain(api).filter(|address| ranges.all.contains(*address)).collect()
    }

    /// What policies' status should say and does not.
    pub fn verdicts(&self) -> BTreeMap<Key, Verdict> {
        let verdicts = self.policies.all().iter().filter_map(|(key, is)| Some((key.clone(), is.verdict()?)));
        verdicts.collect()
    }

    fn problems(&self, missing: &[&'static str], ranges: &InForce) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        for (what, why) in &self.broken {
            let held = if missing.contains(what) { "nothing is answered before" } else { "what was known goes on" };
            problems.push(Problem::of_file(what, format!("is not watched: {why}; {held}")));
        }
        for what in missing.iter().filter(|what| !self.broken.contains_key(*what)) {
            problems.push(Problem::of_file(what, "is not listed yet"));
        }
        if self.ranges.services.is_empty() && self.cidrs.is_complete() && self.cidrs.all().values().all(Vec::is_empty) {
            problems.push(Problem::of_file(CIDRS, "holds no range: set --service-range"));
        }
        if self.ranges.pods.is_empty()
            && self.nodes.is_complete()
            && self.nodes.all().values().all(|node| node.ranges.is_empty())
        {
            problems.push(Problem::of_file(NODES, "no node has podCIDRs: set --pod-range"));
        }
        if ranges.pods_widened {
            let why = format!("make more ranges than a proxy takes ({MAX_RANGES}); they are widened: set --pod-range");
            problems.push(Problem::of_file(PODS, why));
        }
        if ranges.services_widened {
            problems
                .push(Problem::of_file(CIDRS, format!("hold more than {MAX_SERVICE_RANGES} ranges; they are widened")));
        }
        problems.extend(self.policies.all().values().filter_map(|is| is.bad.clone()));
        problems.extend(self.pods.all().values().filter_map(|pod| pod.problem.clone()));
        problems.extend(self.outside(ranges));
        problems.truncate(MAX_PROBLEMS);
        problems
    }

    /// A meshed pod outside the ranges is added to them, but only once it is known: until then its peers talk to it in plaintext, and are
    /// refused.
    fn outside(&self, ranges: &InForce) -> Vec<Problem> {
        let known = !ranges.pods.is_empty();
        let pods = Self::workloads(&self.pods).filter(|is| known && is.meshed).flat_map(|is| {
            is.addresses.iter().filter(|at| !ranges.said.contains(at.value)).map(|at| {
                Problem::at(
                    &at.place,
                    "status.podIPs",
                    format!("{} of a meshed pod is outside the pod ranges", at.value),
                )
            })
        });
        let services = self.joined.values().flat_map(|service| service.addresses.iter());
        let services =
            services.filter(|at| !self.service_ranges.is_empty() && !contains(&self.service_ranges, at.value));
        let services = services
            .map(|at| Problem::at(&at.place, "spec.clusterIPs", format!("{} is outside the service ranges", at.value)));
        pods.chain(services).take(MAX_PROBLEMS).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for ((_, name), Labelled { problems, .. }) in self.namespaces.all() {
            warnings.extend(problems.iter().map(|problem| format!("Namespace {name}: {problem}")));
        }
        for pod in &self.pod_ranges.said() {
            let overlap = self.service_ranges.iter().filter(|range| pod.contains(*range) || range.contains(pod));
            warnings.extend(overlap.map(|range| format!("the pod range {pod} and the service range {range} overlap")));
        }
        warnings
    }
}

fn parsed(texts: &[String]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| text.parse().ok()).map(|range: IpNet| range.trunc()).collect()
}

fn keyed<T>(event: Event<T>, metadata: impl Fn(&T) -> &objects::Metadata) -> Event<(Key, T)> {
    let keyed = |object: T| (objects::key(metadata(&object)), object);
    match event {
        Event::Listing => Event::Listing,
        Event::Listed(object) => Event::Listed(keyed(object)),
        Event::Complete => Event::Complete,
        Event::Set(object) => Event::Set(keyed(object)),
        Event::Gone(key) => Event::Gone(key),
    }
}

#[cfg(test)]
#[path = "world/tests.rs"]
mod tests;
