//! What a pod chose for its own sidecar, by annotations `proxy.countersign.dev/...`, within what the mesh permits.
//!
//! Called by `review`. It must never pass over an annotation of ours that it does not know, nor take a bad one for its default.

use countersign_api::names::{self, ANNOTATION_PREFIX, DOMAIN};
use countersign_api::ports;
use ipnet::IpNet;

use crate::mesh::{Mesh, Resources, level};
use crate::pod::{Pod, Problem};
use crate::quantity::Quantity;

/// Log levels, the quietest first.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
/// Longest list: `countersign-proxy intercept` takes no longer one.
pub const MAX_SKIPPED: usize = 128;
/// Ports of the sidecar itself, which no app of its pod can have.
pub const OWN_PORTS: [u16; 4] = [ports::OUTBOUND, ports::INBOUND, ports::PROXY_HEALTH, ports::SELF_PROOF];
/// With less memory a sidecar would be killed before it is ready.
const LEAST_MEMORY: &str = "16Mi";

/// One of the annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Setting {
    AccessLog,
    CpuLimit,
    CpuRequest,
    LogLevel,
    MemoryLimit,
    MemoryRequest,
    SkipInboundPorts,
    SkipOutboundCidrs,
    SkipOutboundPorts,
}

impl Setting {
    /// All, by their names.
    pub const ALL: [Self; 9] = [
        Self::AccessLog,
        Self::CpuLimit,
        Self::CpuRequest,
        Self::LogLevel,
        Self::MemoryLimit,
        Self::MemoryRequest,
        Self::SkipInboundPorts,
        Self::SkipOutboundCidrs,
        Self::SkipOutboundPorts,
    ];

    /// The annotation's name behind the prefix.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessLog => "access-log",
            Self::CpuLimit => "cpu-limit",
            Self::CpuRequest => "cpu-request",
            Self::LogLevel => "log-level",
            Self::MemoryLimit => "memory-limit",
            Self::MemoryRequest => "memory-request",
            Self::SkipInboundPorts => "skip-inbound-ports",
            Self::SkipOutboundCidrs => "skip-outbound-cidrs",
            Self::SkipOutboundPorts => "skip-outbound-ports",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.as_str() == name)
    }

    /// For messages.
    pub(crate) fn all() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

/// What holds for one pod's sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Settings {
    pub skip_inbound_ports: Vec<u16>,
    pub skip_outbound_ports: Vec<u16>,
    pub skip_outbound_cidrs: Vec<IpNet>,
    pub log_level: String,
    /// `on` or `off`, if the pod says so.
    pub access_log: Option<String>,
    pub resources: Resources,
}

/// Reads the pod's annotations; what is wrong goes to `problems`.
pub fn read(mesh: &Mesh, pod: &Pod, problems: &mut Vec<Problem>) -> Settings {
    let mut settings = Settings {
        skip_inbound_ports: Vec::new(),
        skip_outbound_ports: Vec::new(),
        skip_outbound_cidrs: Vec::new(),
        log_level: mesh.log_level.clone(),
        access_log: None,
        resources: mesh.resources.clone(),
    };
    for (key, value) in pod.annotations() {
        let Some(name) = key.strip_prefix(ANNOTATION_PREFIX) else {
            problems.extend(stray(key));
            continue;
        };
        let read = match Setting::parse(name) {
            None => Err(format!("is no setting; there are {}", Setting::all())),
            Some(setting) if !mesh.permitted.contains(&setting) => {
                Err("is not permitted in this mesh (--permit-annotations)".to_owned())
            }
            Some(setting) => settings.set(mesh, setting, value.trim()),
        };
        problems.extend(read.err().map(|problem| Problem::new(field(name), problem)));
    }
    let fits = settings.resources.check();
    problems.extend(fits.err().map(|(setting, problem)| Problem::new(field(setting.as_str()), problem)));
    settings
}

fn field(name: &str) -> String {
    annotation(&format!("{ANNOTATION_PREFIX}{name}"))
}

fn annotation(key: &str) -> String {
    format!("metadata.annotations[{key:?}]")
}

/// An annotation that is in our domain and is no setting: whoever wrote it believes that it does something. (The status, the one that
/// a pod may have, was taken off before.)
fn stray(key: &str) -> Option<Problem> {
    let (domain, _) = key.split_once('/')?;
    let below = domain.strip_suffix(DOMAIN)?;
    if !below.is_empty() && !below.ends_with('.') {
        return None;
    }
    let problem = match key {
        names::LABEL_INJECT => "is a label and no annotation: set it under metadata.labels".to_owned(),
        names::LABEL_MTLS | names::LABEL_POSTURE | names::LABEL_EGRESS => {
            "is a label of namespaces and no annotation".to_owned()
        }
        _ => format!(
            "is no annotation of ours; a sidecar's settings are {ANNOTATION_PREFIX}NAME, where NAME is one of {}, and whether \
             a pod has a sidecar says the label {}",
            Setting::all(),
            names::LABEL_INJECT
        ),
    };
    Some(Problem::new(annotation(key), problem))
}

impl Settings {
    fn set(&mut self, mesh: &Mesh, setting: Setting, value: &str) -> Result<(), String> {
        let resources = &mut self.resources;
        match setting {
            Setting::AccessLog if matches!(value, "on" | "off") => self.access_log = Some(value.to_owned()),
            Setting::AccessLog => return Err(format!("{value:?} is neither \"on\" nor \"off\"")),
            Setting::CpuLimit => resources.cpu_limit = Some(within(value, &mesh.max_cpu)?),
            Setting::CpuRequest => resources.cpu_request = within(value, &mesh.max_cpu)?,
            Setting::LogLevel => self.log_level = within_level(value, mesh.max_log_level)?,
            Setting::MemoryLimit => resources.memory_limit = Some(enough(within(value, &mesh.max_memory)?)?),
            Setting::MemoryRequest => resources.memory_request = within(value, &mesh.max_memory)?,
            Setting::SkipInboundPorts => self.skip_inbound_ports = inbound_ports(value)?,
            Setting::SkipOutboundCidrs => self.skip_outbound_cidrs = list(value, network)?,
            Setting::SkipOutboundPorts => self.skip_outbound_ports = list(value, port)?,
        }
        Ok(())
    }
}

fn within(value: &str, most: &Quantity) -> Result<Quantity, String> {
    let quantity = Quantity::parse(value)?;
    if quantity.exceeds(most) { Err(format!("{value} is more than this mesh permits, {most}")) } else { Ok(quantity) }
}

fn enough(limit: Quantity) -> Result<Quantity, String> {
    match Quantity::parse(LEAST_MEMORY) {
        Ok(least) if least.exceeds(&limit) => Err(format!("{limit} is less than a sidecar needs, {least}")),
        _ => Ok(limit),
    }
}

fn within_level(word: &str, most: usize) -> Result<String, String> {
    match level(word) {
        None => Err(format!("{word:?} is none of {}", LEVELS.join(", "))),
        Some(level) if level > most => Err(format!("{word:?} is more than this mesh permits, {:?}", LEVELS[most])),
        Some(_) => Ok(word.to_owned()),
    }
}

fn inbound_ports(value: &str) -> Result<Vec<u16>, String> {
    let ports = list(value, port)?;
    match ports.iter().find(|port| OWN_PORTS.contains(port)) {
        Some(port) => Err(format!("{port} is a port of the sidecar itself")),
        None => Ok(ports),
    }
}

/// Entries between commas, each once, in order.
fn list<T: Ord>(value: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let entries =
        value.split(',').map(|entry| one(entry.trim())).collect::<Result<std::collections::BTreeSet<T>, _>>()?;
    if entries.len() > MAX_SKIPPED {
        return Err(format!("has more than {MAX_SKIPPED} entries"));
    }
    Ok(entries.into_iter().collect())
}

fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| format!("{text:?} is not a port (1-65535)"))
}

fn network(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text.parse().map_err(|_| format!("{text:?} is no network, such as 10.0.0.0/8 or fd00::/8"))?;
    if network.trunc() != network {
        return Err(format!("{text:?} has bits behind its prefix; {} is the network", network.trunc()));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mesh::tests::mesh;

    fn read_with(flags: &[&str], annotations: &[(&str, &str)]) -> Result<Settings, Vec<Problem>> {
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(key, value)| (format!("{ANNOTATION_PREFIX}{key}"), json!(value))).collect();
        let pod = Pod::read(&json!({ "metadata": { "annotations": annotations }, "spec": {} })).unwrap();
        let mut problems = Vec::new();
        let settings = read(&mesh(flags).unwrap(), &pod, &mut problems);
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    fn problem(flags: &[&str], name: &str, value: &str) -> String {
        let problems = read_with(flags, &[(name, value)]).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].field, field(name));
        problems[0].problem.clone()
    }

    #[test]
    fn a_pod_chooses_for_its_own_sidecar() {
        let settings = read_with(
            &[],
            &[
                ("skip-inbound-ports", "9090, 22,9090"),
                ("skip-outbound-ports", "25"),
                ("skip-outbound-cidrs", "10.0.0.0/8,fd00::/8"),
                ("log-level", "debug"),
                ("access-log", "off"),
                ("cpu-request", "100m"),
                ("cpu-limit", "1"),
                ("memory-request", "64Mi"),
                ("memory-limit", "64Mi"),
            ],
        );
        let settings = settings.unwrap();
        assert_eq!(settings.skip_inbound_ports, [22, 9090]);
        assert_eq!(settings.skip_outbound_ports, [25]);
        assert_eq!(settings.skip_outbound_cidrs.len(), 2);
        assert_eq!((settings.log_level.as_str(), settings.access_log.as_deref()), ("debug", Some("off")));
        assert_eq!(settings.resources.cpu_limit.unwrap().as_str(), "1");
        assert_eq!(settings.resources.memory_request.as_str(), "64Mi");
    }

    #[test]
    fn an_unknown_annotation_of_ours_is_refused() {
        assert!(problem(&[], "log-levl", "debug").contains("is no setting; there are access-log, "));
        assert!(problem(&[], "", "x").contains("is no setting"));
    }

    #[test]
    fn an_annotation_in_our_domain_that_is_no_setting_is_refused_and_told_what_it_is() {
        let problems_of = |key: &str| {
            let pod = Pod::read(&json!({ "metadata": { "annotations": { key: "enabled" } }, "spec": {} })).unwrap();
            let mut problems = Vec::new();
            read(&mesh(&[]).unwrap(), &pod, &mut problems);
            problems
        };
        for (key, word) in [
            ("countersign.dev/inject", "is a label and no annotation"),
            ("countersign.dev/posture", "is a label of namespaces"),
            ("countersign.dev/mtls", "is a label of namespaces"),
            ("countersign.dev/egress", "is a label of namespaces"),
            ("countersign.dev/log-level", "proxy.countersign.dev/NAME"),
            ("countersign.dev/injct", "the label countersign.dev/inject"),
            ("countersign.dev/", "is no annotation of ours"),
            ("policy.countersign.dev/log-level", "is no annotation of ours"),
            ("prxy.countersign.dev/log-level", "is no annotation of ours"),
        ] {
            let problems = problems_of(key);
            assert_eq!(problems.len(), 1, "{key}: {problems:?}");
            assert_eq!(problems[0].field, annotation(key));
            assert!(problems[0].problem.contains(word), "{key}: {problems:?}");
        }
        for others in
            ["countersign.dev", "notcountersign.dev/inject", "countersign.dev.example/inject", "x/countersign.dev"]
        {
            assert_eq!(problems_of(others), [], "{others}");
        }
    }

    #[test]
    fn a_bad_value_is_refused_and_never_a_default() {
        for (name, value) in [
            ("skip-inbound-ports", ""),
            ("skip-inbound-ports", "80,"),
            ("skip-inbound-ports", "0"),
            ("skip-inbound-ports", "65536"),
            ("skip-inbound-ports", "+80"),
            ("skip-inbound-ports", "15021"),
            ("skip-outbound-ports", "http"),
            ("skip-outbound-cidrs", "10.0.0.1"),
            ("skip-outbound-cidrs", "10.0.0.1/8"),
            ("log-level", "loud"),
            ("log-level", "countersign_proxy=debug"),
            ("access-log", "yes"),
            ("cpu-request", "fast"),
            ("memory-limit", "8Mi"),
        ] {
            problem(&[], name, value);
        }
        let many: Vec<_> = (1..=129).map(|port: u16| port.to_string()).collect();
        assert!(problem(&[], "skip-outbound-ports", &many.join(",")).contains("more than 128"));
    }

    #[test]
    fn a_pod_stays_within_what_the_mesh_permits() {
        assert!(problem(&["--max-cpu", "1"], "cpu-limit", "1001m").contains("more than this mesh permits, 1"));
        assert!(problem(&["--max-memory", "1Gi"], "memory-request", "2Gi").contains("more than this mesh permits"));
        assert!(problem(&["--max-log-level", "info"], "log-level", "debug").contains("permits, \"info\""));
        let flags = ["--permit-annotations", "log-level"];
        assert!(problem(&flags, "skip-inbound-ports", "80").contains("not permitted"));
        assert!(read_with(&flags, &[("log-level", "warn")]).is_ok());
    }

    #[test]
    fn a_request_beyond_its_limit_is_refused() {
        let problems = read_with(&[], &[("memory-request", "512Mi")]).unwrap_err();
        assert_eq!(problems[0].field, field("memory-limit"));
        assert_eq!(problems[0].problem, "256Mi is less than the request of 512Mi");
    }
}
