//! What the admin socket shows of discovery: plain data, no secret.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use countersign_policy::Modes;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{Endpoint, Identity, Shared, Who};

/// Most remembered addresses shown.
const MAX_SHOWN: usize = 1000;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct DiscoveryView {
    /// The controller's stream.
    pub controller: LinkView,
    /// What is in force; none until the first rules came.
    pub workload: Option<WorkloadView>,
    /// How many addresses are remembered.
    pub remembered: usize,
    /// The first of them.
    pub addresses: Vec<AddressView>,
}

/// How the controller's stream stands.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LinkView {
    /// Whether it is up.
    pub connected: bool,
    /// The controller last dialled.
    pub address: Option<String>,
    /// Unix seconds of the last change of `connected`.
    pub since: u64,
    /// Why it last went down, or could not come up.
    pub last_problem: Option<String>,
    /// What was wrong with the last rules that came, if anything.
    pub rules_problem: Option<String>,
}

/// The workload and its rules.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Policy revision.
    pub revision: String,
    /// The namespace's modes.
    pub modes: Modes,
    /// Node.
    pub node: String,
    /// The mesh's ranges.
    pub mesh_ranges: Vec<String>,
    /// Each rule as it came.
    pub rules: Vec<RuleView>,
}

/// One rule as it came.
#[derive(Clone, Debug, Serialize)]
pub struct RuleView {
    /// "namespace/name".
    pub rule: String,
    /// `Allow` or `Deny`; anything else is treated as Deny.
    pub action: String,
    /// Newest feature it uses.
    pub feature: u32,
    /// The rule.
    pub policy: Value,
}

/// One remembered address.
#[derive(Clone, Debug, Serialize)]
pub struct AddressView {
    /// Address; port 0 stands for a source.
    pub address: SocketAddr,
    /// `unknown`, `not_meshed`, `endpoint`, `service`; none: asked, not answered.
    pub who: Option<&'static str>,
    /// `namespace/name` of a service.
    pub service: Option<String>,
    /// Its endpoints, with ids where they are meshed.
    pub endpoints: Vec<EndpointView>,
    /// Seconds since the answer came.
    pub age_seconds: Option<u64>,
    /// Seconds until it expires, where it does.
    pub expires_in_seconds: Option<u64>,
    /// Connections that wait for an answer.
    pub waiting: usize,
}

/// One endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointView {
    /// Address.
    pub address: SocketAddr,
    /// Who must answer there; none: un-meshed.
    pub id: Option<String>,
    /// Readiness.
    pub ready: bool,
    /// Node.
    pub node: String,
}

impl LinkView {
    /// Notes that the stream came up or went down.
    pub(super) fn turn(&mut self, connected: bool) {
        if self.connected != connected {
            self.connected = connected;
            self.since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        }
    }
}

pub(super) fn of(shared: &Shared) -> DiscoveryView {
    let now = Instant::now();
    let cache = shared.cache();
    let (remembered, each) = cache.remembered(now, MAX_SHOWN);
    let mut addresses: Vec<_> = each.map(|one| address(&one)).collect();
    drop(cache);
    addresses.sort_unstable_by_key(|one| one.address);
    DiscoveryView { controller: shared.link().clone(), workload: workload(shared), remembered, addresses }
}

fn workload(shared: &Shared) -> Option<WorkloadView> {
    let now = shared.in_force.load_full()?;
    let rules = now.received.iter().map(|rule| RuleView {
        rule: format!("{}/{}", rule.namespace, rule.name),
        action: rule.action().as_str_name().trim_start_matches("ACTION_").to_owned(),
        feature: rule.feature,
        policy: serde_json::from_str(&rule.policy_json).unwrap_or_else(|_| Value::String(rule.policy_json.clone())),
    });
    Some(WorkloadView {
        namespace: now.namespace.to_string(),
        name: now.name.to_string(),
        revision: now.rules.revision().to_owned(),
        modes: now.rules.modes(),
        node: now.node.to_string(),
        mesh_ranges: now.ranges.iter().map(ToString::to_string).collect(),
        rules: rules.collect(),
    })
}

fn address(one: &super::cache::Remembered<'_>) -> AddressView {
    let (who, service, endpoints) = match one.who {
        None => (None, None, Vec::new()),
        Some(Who::Outside) => (Some("outside"), None, Vec::new()),
        Some(Who::Unknown) => (Some("unknown"), None, Vec::new()),
        Some(Who::NotMeshed) => (Some("not_meshed"), None, Vec::new()),
        Some(Who::Endpoint(only)) => (Some("endpoint"), None, vec![endpoint(only)]),
        Some(Who::Service(service)) => {
            let name = format!("{}/{}", service.namespace, service.name);
            (Some("service"), Some(name), service.endpoints.iter().map(|each| endpoint(each)).collect())
        }
    };
    AddressView {
        address: one.address,
        who,
        service,
        endpoints,
        age_seconds: one.age.map(|age| age.as_secs()),
        expires_in_seconds: one.expires_in.map(|left| left.as_secs()),
        waiting: one.waiters,
    }
}

fn endpoint(endpoint: &Endpoint) -> EndpointView {
    let id = match &endpoint.identity {
        Identity::Meshed(id) => Some(id.to_string()),
        Identity::NotMeshed => None,
    };
    EndpointView { address: endpoint.address, id, ready: endpoint.ready, node: endpoint.node.to_string() }
}
