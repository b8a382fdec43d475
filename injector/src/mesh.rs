//! What the operator chose for every sidecar, and how far a pod may go in its annotations: flags, checked once.
//!
//! Read by the injector and by `countersign inject`, which so do the same. It must never hold a secret.

use clap::Args;
use countersign_api::{env, names, ports};

use crate::quantity::Quantity;
use crate::settings::{LEVELS, Setting};

/// The flags.
#[derive(Args, Clone, Debug)]
pub struct MeshArgs {
    /// Image of the sidecar and of the container that sets the redirect rules
    #[arg(long, env = "COUNTERSIGN_PROXY_IMAGE", value_name = "IMAGE", default_value = concat!("localhost/countersign-proxy:", env!("CARGO_PKG_VERSION")))]
    pub proxy_image: String,
    /// When the kubelet fetches it: Always, IfNotPresent, Never
    #[arg(long, env = "COUNTERSIGN_PROXY_IMAGE_PULL_POLICY", value_name = "WORD", default_value = "IfNotPresent")]
    pub proxy_image_pull_policy: String,
    /// Trust domain of the mesh
    #[arg(long, env = env::TRUST_DOMAIN, value_name = "NAME", default_value = names::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// Namespace of the mesh's own processes
    #[arg(long, env = env::SYSTEM_NAMESPACE, value_name = "NAME", default_value = names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// The CA, as sidecars reach it [default: countersign-ca.SYSTEM_NAMESPACE.svc:15030]
    #[arg(long, env = env::CA_ADDRESS, value_name = "HOST:PORT")]
    pub ca_address: Option<String>,
    /// The controller, as sidecars reach it [default: countersign-controller.SYSTEM_NAMESPACE.svc:15040]
    #[arg(long, env = env::CONTROLLER_ADDRESS, value_name = "HOST:PORT")]
    pub controller_address: Option<String>,
    /// CPU that a sidecar asks for
    #[arg(long, env = "COUNTERSIGN_PROXY_CPU_REQUEST", value_name = "AMOUNT", default_value = "20m")]
    pub cpu_request: String,
    /// Memory that a sidecar asks for
    #[arg(long, env = "COUNTERSIGN_PROXY_MEMORY_REQUEST", value_name = "AMOUNT", default_value = "32Mi")]
    pub memory_request: String,
    /// Most CPU that a sidecar gets; "none" for no bound
    #[arg(long, env = "COUNTERSIGN_PROXY_CPU_LIMIT", value_name = "AMOUNT", default_value = "none")]
    pub cpu_limit: String,
    /// Most memory that a sidecar gets; "none" for no bound
    #[arg(long, env = "COUNTERSIGN_PROXY_MEMORY_LIMIT", value_name = "AMOUNT", default_value = "256Mi")]
    pub memory_limit: String,
    /// Log level of sidecars: error, warn, info, debug, trace
    #[arg(long, env = "COUNTERSIGN_PROXY_LOG_LEVEL", value_name = "WORD", default_value = "info")]
    pub proxy_log_level: String,
    /// Settings that pods may choose by an annotation proxy.countersign.dev/SETTING; "none" for none
    #[arg(
        long,
        env = "COUNTERSIGN_PERMITTED_ANNOTATIONS",
        value_name = "SETTING,SETTING",
        value_delimiter = ',',
        default_value = "access-log,cpu-limit,cpu-request,log-level,memory-limit,memory-request,skip-inbound-ports,skip-outbound-cidrs,skip-outbound-ports"
    )]
    pub permit_annotations: Vec<String>,
    /// Most CPU that a pod may choose for its sidecar
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_CPU", value_name = "AMOUNT", default_value = "4")]
    pub max_cpu: String,
    /// Most memory that a pod may choose for its sidecar
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_MEMORY", value_name = "AMOUNT", default_value = "2Gi")]
    pub max_memory: String,
    /// The most talkative log level that a pod may choose
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_LOG_LEVEL", value_name = "WORD", default_value = "debug")]
    pub max_log_level: String,
    /// Inject into namespaces whose Pod Security label forbids NET_ADMIN too: the API server is told to exempt them
    #[arg(long, env = "COUNTERSIGN_POD_SECURITY_EXEMPT")]
    pub pod_security_exempt: bool,
}

/// A flag that is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {problem}")]
pub struct MeshError {
    /// Without its dashes.
    pub flag: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// What a sidecar asks for and gets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Resources {
    pub cpu_request: Quantity,
    pub memory_request: Quantity,
    pub cpu_limit: Option<Quantity>,
    pub memory_limit: Option<Quantity>,
}

/// The flags, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Mesh {
    pub image: String,
    pub pull_policy: String,
    pub trust_domain: String,
    pub system_namespace: String,
    pub ca_address: String,
    pub controller_address: String,
    pub resources: Resources,
    pub log_level: String,
    pub permitted: Vec<Setting>,
    pub max_cpu: Quantity,
    pub max_memory: Quantity,
    /// Index in [`LEVELS`].
    pub max_log_level: usize,
    pub pod_security_exempt: bool,
}

impl Mesh {
    /// Checks the flags.
    ///
    /// # Errors
    /// The first that is no good.
    pub fn check(args: &MeshArgs) -> Result<Self, MeshError> {
        let bad = |flag, problem: String| MeshError { flag, problem };
        let quantity = |flag, text: &str| Quantity::parse(text).map_err(|problem| bad(flag, problem));
        let limit = |flag, text: &str| (text != "none").then(|| quantity(flag, text)).transpose();
        let level = |flag, word: &str| level(word).ok_or_else(|| bad(flag, format!("{word:?} is none of {LEVELS:?}")));
        for (flag, text) in [("proxy-image", &args.proxy_image), ("trust-domain", &args.trust_domain)] {
            if text.is_empty() || text.contains(char::is_whitespace) {
                return Err(bad(flag, "is empty, or has blanks in it".to_owned()));
            }
        }
        if !matches!(args.proxy_image_pull_policy.as_str(), "Always" | "IfNotPresent" | "Never") {
            return Err(bad("proxy-image-pull-policy", "is none of Always, IfNotPresent, Never".to_owned()));
        }
        if !args.trust_domain.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) {
            return Err(bad("trust-domain", format!("{:?} is no trust domain (a-z 0-9 . - _)", args.trust_domain)));
        }
        for (flag, text) in [("ca-address", &args.ca_address), ("controller-address", &args.controller_address)] {
            if let Some(text) = text.as_deref().filter(|text| !text.split(',').all(is_address)) {
                return Err(bad(flag, format!("{text:?} is not HOST:PORT, several separated by commas")));
            }
        }
        if !is_label(&args.system_namespace) {
            return Err(bad("system-namespace", format!("{:?} is no name of a namespace", args.system_namespace)));
        }
        let service = |account: &str, port: u16| format!("{account}.{}.svc:{port}", args.system_namespace);
        let resources = Resources {
            cpu_request: quantity("cpu-request", &args.cpu_request)?,
            memory_request: quantity("memory-request", &args.memory_request)?,
            cpu_limit: limit("cpu-limit", &args.cpu_limit)?,
            memory_limit: limit("memory-limit", &args.memory_limit)?,
        };
        resources.check().map_err(|(setting, problem)| bad(setting.as_str(), problem))?;
        level("proxy-log-level", &args.proxy_log_level)?;
        Ok(Self {
            image: args.proxy_image.clone(),
            pull_policy: args.proxy_image_pull_policy.clone(),
            trust_domain: args.trust_domain.clone(),
            system_namespace: args.system_namespace.clone(),
            ca_address: args.ca_address.clone().unwrap_or_else(|| service(names::CA_ACCOUNT, ports::CA)),
            controller_address: args
                .controller_address
                .clone()
                .unwrap_or_else(|| service(names::CONTROLLER_ACCOUNT, ports::CONTROLLER)),
            resources,
            log_level: args.proxy_log_level.clone(),
            permitted: permitted(&args.permit_annotations).map_err(|problem| bad("permit-annotations", problem))?,
            max_cpu: quantity("max-cpu", &args.max_cpu)?,
            max_memory: quantity("max-memory", &args.max_memory)?,
            max_log_level: level("max-log-level", &args.max_log_level)?,
            pod_security_exempt: args.pod_security_exempt,
        })
    }
}

impl Resources {
    /// No request beyond its limit. Names the limit otherwise.
    pub(crate) fn check(&self) -> Result<(), (Setting, String)> {
        let pairs = [
            (Setting::CpuLimit, &self.cpu_request, &self.cpu_limit),
            (Setting::MemoryLimit, &self.memory_request, &self.memory_limit),
        ];
        for (setting, request, limit) in pairs {
            if let Some(limit) = limit.as_ref().filter(|limit| request.exceeds(limit)) {
                return Err((setting, format!("{limit} is less than the request of {request}")));
            }
        }
        Ok(())
    }
}

/// A level's place among [`LEVELS`].
pub(crate) fn level(word: &str) -> Option<usize> {
    LEVELS.iter().position(|level| *level == word)
}

fn permitted(list: &[String]) -> Result<Vec<Setting>, String> {
    if list == ["none"] {
        return Ok(Vec::new());
    }
    let one = |name: &String| Setting::parse(name).ok_or_else(|| format!("{name:?} is none of {}", Setting::all()));
    list.iter().map(one).collect()
}

fn is_address(text: &str) -> bool {
    let port = |text: &str| text.parse::<u16>().is_ok_and(|port| port != 0);
    text.rsplit_once(':')
        .is_some_and(|(host, number)| !host.is_empty() && !host.contains(char::is_whitespace) && port(number))
}

/// A DNS label (RFC 1123).
fn is_label(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        mesh: MeshArgs,
    }

    /// A mesh of these flags.
    pub fn mesh(flags: &[&str]) -> Result<Mesh, MeshError> {
        let flags =
            Flags::try_parse_from(["x", "--proxy-image", "registry/countersign-proxy:test"].iter().chain(flags));
        Mesh::check(&flags.unwrap().mesh)
    }

    #[test]
    fn every_setting_is_permitted_by_default() {
        let mesh = mesh(&[]).unwrap();
        assert_eq!(mesh.permitted, Setting::ALL);
        assert_eq!(mesh.ca_address, "countersign-ca.countersign-system.svc:15030");
    }

    #[test]
    fn a_bad_flag_is_named() {
        for (flags, name) in [
            (&["--cpu-request", "fast"], "cpu-request"),
            (&["--memory-limit", "1Mi"], "memory-limit"),
            (&["--proxy-log-level", "loud"], "proxy-log-level"),
            (&["--max-log-level", "loud"], "max-log-level"),
            (&["--permit-annotations", "log-levl"], "permit-annotations"),
            (&["--system-namespace", "A"], "system-namespace"),
            (&["--proxy-image-pull-policy", "Sometimes"], "proxy-image-pull-policy"),
            (&["--trust-domain", ""], "trust-domain"),
            (&["--trust-domain", "Mesh"], "trust-domain"),
            (&["--ca-address", "ca"], "ca-address"),
            (&["--controller-address", "a:1,b:0"], "controller-address"),
        ] {
            assert_eq!(mesh(flags).unwrap_err().flag, name);
        }
        assert_eq!(mesh(&["--permit-annotations", "none"]).unwrap().permitted, []);
        assert_eq!(mesh(&["--memory-limit", "none"]).unwrap().resources.memory_limit, None);
    }
}
