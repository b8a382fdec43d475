//! Flags and environment, read once and checked whole before a port is bound, into one immutable [`Config`]. Called by
//! `main`. An unknown flag stops the start; an unknown `COUNTERSIGN_*` variable does not, since Kubernetes sets such ones by
//! itself for a service named countersign-ca.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use countersign_api::{env as names_env, names, ports};
use countersign_identity::{SpiffeId, SpiffeIdError, TrustDomain};
use serde_json::{Value, json};

use crate::attest::TokenRules;
use crate::audit;
use crate::grant::{FLOOR, SHORT, Terms};
use crate::issue::CallLimits;
use crate::limits::Rate;
use crate::state::{AUDIT, BUNDLE, KeyError, Lifetimes, StateKey};

mod values;

use values::{algorithm, any, duration, rate, size};

/// Variable that holds the state key (base64 of 32 bytes), instead of a file.
pub const STATE_KEY: &str = "COUNTERSIGN_CA_STATE_KEY";

/// Most that is allocated ahead of the audit log's end.
const MAX_RESERVE: u64 = 1 << 30;

/// Why the configuration is no good. Each names the flag.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the state key is missing: give --state-key-file, --state-key-secret, or {STATE_KEY} in the environment")]
    NoKey,
    #[error("the state key is given twice; give one of --state-key-file, --state-key-secret and {STATE_KEY}")]
    TwoKeys,
    #[error("--trust-domain: {0}")]
    TrustDomain(SpiffeIdError),
    #[error("--system-namespace: {0}")]
    SystemNamespace(SpiffeIdError),
    #[error("--{flag}: {problem}")]
    Value { flag: &'static str, problem: String },
}

/// The flags as they are typed. Durations are a number and a unit: 90s, 15m, 1h, 30d.
#[derive(Parser, Clone, Debug)]
#[command(name = "countersign-ca", version, about = "Countersign's signer: attests pods and issues their SVIDs")]
#[command(
    after_help = "`countersign-ca ask` asks the one that runs by its admin socket; see `countersign-ca ask --help`."
)]
#[allow(missing_docs)]
pub struct Args {
    /// Directory of the state: root and issuer (encrypted), audit log, public bundle. Made with mode 0700 if missing.
    /// With --state-secret it has the audit log and the public bundle only
    #[arg(long, env = "COUNTERSIGN_CA_STATE_DIR")]
    pub state_dir: PathBuf,
    /// File with the 32 bytes that encrypt the state, raw or base64; nobody else may read it.
    /// Instead: COUNTERSIGN_CA_STATE_KEY (base64) in the environment
    #[arg(long, env = "COUNTERSIGN_CA_STATE_KEY_FILE")]
    pub state_key_file: Option<PathBuf>,
    /// Secret of the system namespace that has the state instead (encrypted too); replicas share it
    #[arg(long, env = "COUNTERSIGN_CA_STATE_SECRET")]
    pub state_secret: Option<String>,
    /// Secret of the system namespace that has the state key; made, once, where there is no state yet
    #[arg(long, env = "COUNTERSIGN_CA_STATE_KEY_SECRET")]
    pub state_key_secret: Option<String>,
    /// Keeps the roots in a ConfigMap of the system namespace and of each meshed namespace, for pods to mount
    #[arg(long, env = "COUNTERSIGN_CA_PUBLISH_BUNDLE")]
    pub publish_bundle: bool,
    /// Trust domain of every identity
    #[arg(long, env = names_env::TRUST_DOMAIN, default_value = names::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// Namespace of the mesh's own processes
    #[arg(long, env = names_env::SYSTEM_NAMESPACE, default_value = names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Address of the gRPC port; port 0 picks a free one
    #[arg(long, env = "COUNTERSIGN_CA_LISTEN", default_value_t = any(ports::CA))]
    pub listen: SocketAddr,
    /// Address of this pod: with the port of --listen, where the other replicas that share --state-secret can ask this one
    /// [default: that of --listen, if it is one]
    #[arg(long, env = names_env::POD_IP)]
    pub pod_ip: Option<IpAddr>,
    /// Address of /livez, /readyz, /metrics; port 0 picks a free one
    #[arg(long, env = "COUNTERSIGN_CA_HEALTH_LISTEN", default_value_t = any(ports::CA_HEALTH))]
    pub health_listen: SocketAddr,
    /// Path of the admin socket [default: STATE_DIR/admin.sock]
    #[arg(long, env = names_env::ADMIN_SOCKET)]
    pub admin_socket: Option<PathBuf>,
    /// Further place for the public bundle (PEM), beside STATE_DIR/bundle.pem
    #[arg(long, env = "COUNTERSIGN_CA_BUNDLE_FILE")]
    pub bundle_file: Option<PathBuf>,
    /// File of the audit log [default: STATE_DIR/audit.jsonl]
    #[arg(long, env = "COUNTERSIGN_CA_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
    /// Bytes allocated ahead of the audit log's end, so that it has room when others fill the disk (64Mi; 0: none)
    #[arg(long, env = "COUNTERSIGN_CA_AUDIT_RESERVE", default_value = "64Mi", value_parser = size)]
    pub audit_reserve: u64,
    /// Size of the volume that the audit log has for itself: its files and the reserve stay under nine tenths of it, and the log
    /// goes on in a new file now and then. Without it the file system is the only bound
    #[arg(long, env = "COUNTERSIGN_CA_AUDIT_MAX", value_parser = size)]
    pub audit_max: Option<u64>,
    /// Writes each audit record to standard output too, for whoever collects logs
    #[arg(long, env = "COUNTERSIGN_CA_AUDIT_STDOUT")]
    pub audit_stdout: bool,
    /// When the audit log reaches --audit-max, its oldest file is removed; without this, nothing more is signed
    #[arg(long, env = "COUNTERSIGN_CA_AUDIT_REMOVE_OLDEST", requires = "audit_max", requires = "audit_stdout")]
    pub audit_remove_oldest: bool,
    /// Written, whole, once all ports are bound and the CA is ready: JSON with the addresses
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    /// Who says whose token it is: a key set in a file, or the API server of the cluster
    #[arg(long, env = "COUNTERSIGN_CA_ATTEST", value_enum, default_value_t = AttestBy::Jwks)]
    pub attest: AttestBy,
    /// With --attest jwks: public keys of the token issuer; read again when they change
    #[arg(long, env = "COUNTERSIGN_CA_JWKS_FILE")]
    pub jwks_file: Option<PathBuf>,
    /// With --attest jwks: the `iss` that tokens must have
    #[arg(long, env = "COUNTERSIGN_CA_TOKEN_ISSUER")]
    pub token_issuer: Option<String>,
    /// The one `aud` that tokens must have
    #[arg(long, env = "COUNTERSIGN_CA_TOKEN_AUDIENCE", default_value = names::CA_AUDIENCE)]
    pub token_audience: String,
    /// With --attest jwks: signature algorithms that tokens may have
    #[arg(long, env = "COUNTERSIGN_CA_TOKEN_ALGORITHMS", default_value = "RS256,ES256,ES384", value_delimiter = ',')]
    pub token_algorithms: Vec<String>,
    /// With --attest jwks: tokens are not used longer than this after they were issued
    #[arg(long, env = "COUNTERSIGN_CA_MAX_TOKEN_AGE", default_value = "24h", value_parser = duration)]
    pub max_token_age: Duration,
    /// With --attest token-review: reviews at once
    #[arg(long, env = "COUNTERSIGN_CA_MAX_TOKEN_REVIEWS", default_value_t = 64)]
    pub max_token_reviews: usize,
    /// Kubeconfig for the API server [default: the pod's own account]
    #[arg(long, env = "COUNTERSIGN_CA_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Life of an SVID when the caller asks for none
    #[arg(long, env = "COUNTERSIGN_CA_LEAF_TTL", default_value = "1h", value_parser = duration)]
    pub leaf_ttl: Duration,
    /// Longest life of an SVID
    #[arg(long, env = "COUNTERSIGN_CA_MAX_LEAF_TTL", default_value = "24h", value_parser = duration)]
    pub max_leaf_ttl: Duration,
    /// Life of an issuer; renewed when a third is left. Its key signs all day, so it lives weeks, not years
    #[arg(long, env = "COUNTERSIGN_CA_ISSUER_TTL", default_value = "30d", value_parser = duration)]
    pub issuer_ttl: Duration,
    /// Life of the root
    #[arg(long, env = "COUNTERSIGN_CA_ROOT_TTL", default_value = "3650d", value_parser = duration)]
    pub root_ttl: Duration,
    /// Connections at once
    #[arg(long, env = "COUNTERSIGN_CA_MAX_CONNECTIONS", default_value_t = 16_384)]
    pub max_connections: usize,
    /// TLS handshakes at once; a quarter of them for one source address
    #[arg(long, env = "COUNTERSIGN_CA_MAX_HANDSHAKES", default_value_t = 256)]
    pub max_handshakes: usize,
    /// IssueSvid calls at once; more are shed
    #[arg(long, env = "COUNTERSIGN_CA_MAX_CALLS", default_value_t = 256)]
    pub max_calls: usize,
    /// WatchBundle streams at once
    #[arg(long, env = "COUNTERSIGN_CA_MAX_WATCHERS", default_value_t = 16_384)]
    pub max_watchers: usize,
    /// Calls of one pod: a second, and at once
    #[arg(long, env = "COUNTERSIGN_CA_CALLER_RATE", default_value = "1/10", value_parser = rate)]
    pub caller_rate: Rate,
    /// Calls of one source address, before its token is looked at: a second, and at once
    #[arg(long, env = "COUNTERSIGN_CA_SOURCE_RATE", default_value = "50/200", value_parser = rate)]
    pub source_rate: Rate,
    /// Time for calls under way after SIGTERM
    #[arg(long, env = "COUNTERSIGN_CA_DRAIN", default_value = "10s", value_parser = duration)]
    pub drain: Duration,
    /// Log filter: a level, or TARGET=LEVEL separated by commas
    #[arg(long, env = names_env::LOG)]
    pub log: Option<String>,
}

/// Where the state key comes from.
#[derive(Clone, Debug)]
pub enum KeyFrom {
    /// Read already.
    Given(StateKey),
    /// In this Secret.
    Secret(String),
}

/// Spellings of `--attest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttestBy {
    /// Offline, with the token issuer's public keys.
    Jwks,
    /// By asking the API server (TokenReview).
    TokenReview,
}

/// How callers are attested.
#[derive(Clone, Debug)]
pub enum Attestation {
    /// With a key set.
    Jwks {
        /// The key set.
        file: PathBuf,
        /// What tokens must be.
        rules: TokenRules,
    },
    /// By the API server.
    TokenReview {
        /// The one audience.
        audience: String,
        /// Reviews at once.
        at_once: usize,
    },
}

/// The configuration, checked.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Config {
    pub state_dir: PathBuf,
    pub state_key: KeyFrom,
    /// Whether namespaces get the roots.
    pub publish_bundle: bool,
    /// Where the state lies, if not in the directory.
    pub state_secret: Option<String>,
    pub trust_domain: TrustDomain,
    pub system_namespace: String,
    /// The CA's own identity.
    pub own_id: SpiffeId,
    pub listen: SocketAddr,
    /// Where other replicas reach this one, if that is said.
    pub pod_ip: Option<IpAddr>,
    pub health_listen: SocketAddr,
    pub admin_socket: PathBuf,
    /// Where the public bundle is written; the first is in the state directory.
    pub bundle_files: Vec<PathBuf>,
    pub audit: audit::Settings,
    pub ready_file: Option<PathBuf>,
    pub attest: Attestation,
    /// For the API server; without it, the pod's own account.
    pub kubeconfig: Option<PathBuf>,
    pub terms: Terms,
    pub lifetimes: Lifetimes,
    pub calls: CallLimits,
    pub max_connections: usize,
    pub max_handshakes: usize,
    pub max_watchers: usize,
    pub drain: Duration,
}

impl Config {
    /// Checks everything that can be checked without touching the state. `key_text`: the value of [`STATE_KEY`].
    pub fn check(args: Args, key_text: Option<&str>) -> Result<Self, ConfigError> {
        let trust_domain = TrustDomain::parse(&args.trust_domain).map_err(ConfigError::TrustDomain)?;
        let own_id = SpiffeId::for_service_account(&trust_domain, &args.system_namespace, names::CA_ACCOUNT)
            .map_err(ConfigError::SystemNamespace)?;
        let terms = Terms { default: args.leaf_ttl, max: args.max_leaf_ttl };
        let lifetimes = Lifetimes { root: args.root_ttl, issuer: args.issuer_ttl, leaf: args.leaf_ttl };
        check_lives(terms, lifetimes)?;
        check_bounds(&args)?;
        let attest = attestation(&args)?;
        let state_key = match (&args.state_key_file, key_text, &args.state_key_secret) {
            (Some(file), None, None) => KeyFrom::Given(StateKey::from_file(file)?),
            (None, Some(text), None) => KeyFrom::Given(StateKey::from_text(STATE_KEY, text)?),
            (None, None, Some(name)) => KeyFrom::Secret(secret_name("state-key-secret", name)?),
            (None, None, None) => return Err(ConfigError::NoKey),
            _ => return Err(ConfigError::TwoKeys),
        };
        let state_secret = args.state_secret.map(|name| secret_name("state-secret", &name)).transpose()?;
        if let (Some(state), KeyFrom::Secret(key)) = (&state_secret, &state_key)
            && state == key
        {
            let problem = "is the Secret of the state; the key must have one of its own".to_owned();
            return Err(ConfigError::Value { flag: "state-key-secret", problem });
        }
        let in_state = |name: &str| args.state_dir.join(name);
        Ok(Self {
            state_key,
            state_secret,
            publish_bundle: args.publish_bundle,
            trust_domain,
            own_id,
            system_namespace: args.system_namespace,
            listen: args.listen,
            pod_ip: args.pod_ip,
            health_listen: args.health_listen,
            admin_socket: args.admin_socket.unwrap_or_else(|| in_state("admin.sock")),
            bundle_files: [Some(in_state(BUNDLE)), args.bundle_file].into_iter().flatten().collect(),
            audit: audit::Settings {
                path: args.audit_log.unwrap_or_else(|| in_state(AUDIT)),
                bounds: audit::Bounds {
                    reserve: args.audit_reserve,
                    max: args.audit_max,
                    remove_oldest: args.audit_remove_oldest,
                },
                copy: args.audit_stdout,
            },
            ready_file: args.ready_file,
            attest,
            kubeconfig: args.kubeconfig,
            terms,
            lifetimes,
            calls: CallLimits {
                concurrent: args.max_calls,
                per_source: args.source_rate,
                per_caller: args.caller_rate,
            },
            max_connections: args.max_connections,
            max_handshakes: args.max_handshakes,
            max_watchers: args.max_watchers,
            drain: args.drain,
            state_dir: args.state_dir,
        })
    }

    /// Where other replicas can ask this one, if it is known: `listen` is the port that was bound.
    pub fn reached_at(&self, listen: SocketAddr) -> Option<SocketAddr> {
        let ip = self.pod_ip.or_else(|| (!listen.ip().is_unspecified()).then(|| listen.ip()))?;
        Some(SocketAddr::new(ip, listen.port()))
    }

    /// The configuration for people; the state key appears by its name only.
    pub fn dump(&self) -> Value {
        let seconds = |duration: Duration| duration.as_secs();
        let rate = |rate: Rate| format!("{}/{}", rate.per_second, rate.burst);
        json!({
            "state_dir": self.state_dir, "state_key": format!("{:?}", self.state_key), "state_secret": self.state_secret,
            "publish_bundle": self.publish_bundle,
            "trust_domain": self.trust_domain.as_str(), "own_id": self.own_id.as_str(),
            "listen": self.listen, "pod_ip": self.pod_ip, "health_listen": self.health_listen, "admin_socket": self.admin_socket,
            "bundle_files": self.bundle_files, "audit_log": self.audit.path, "audit_reserve_bytes": self.audit.bounds.reserve, "audit_max_bytes": self.audit.bounds.max,
            "audit_stdout": self.audit.copy, "audit_remove_oldest": self.audit.bounds.remove_oldest, "ready_file": self.ready_file,
            "attest": self.attest.dump(), "kubeconfig": self.kubeconfig,
            "leaf_ttl_s": seconds(self.terms.default), "max_leaf_ttl_s": seconds(self.terms.max),
            "issuer_ttl_s": seconds(self.lifetimes.issuer), "root_ttl_s": seconds(self.lifetimes.root),
            "max_connections": self.max_connections, "max_handshakes": self.max_handshakes,
            "max_calls": self.calls.concurrent, "max_watchers": self.max_watchers,
            "caller_rate": rate(self.calls.per_caller), "source_rate": rate(self.calls.per_source),
            "drain_s": seconds(self.drain),
        })
    }

    /// Things that are allowed, and mostly unwise.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.terms.default < SHORT {
            warnings.push(format!(
                "--leaf-ttl {} s is under {} s: a CA away for that long stops the mesh",
                self.terms.default.as_secs(),
                SHORT.as_secs()
            ));
        }
        warnings
    }
}

impl Attestation {
    fn dump(&self) -> Value {
        match self {
            Self::Jwks { file, rules } => json!({
                "by": "jwks", "jwks_file": file, "token_issuer": rules.issuer, "token_audience": rules.audience,
                "token_algorithms": format!("{:?}", rules.algorithms), "max_token_age_s": rules.max_age.as_secs(),
            }),
            Self::TokenReview { audience, at_once } => {
                json!({ "by": "token-review", "token_audience": audience, "max_token_reviews": at_once })
            }
        }
    }
}

fn secret_name(flag: &'static str, name: &str) -> Result<String, ConfigError> {
    match crate::attest::token::is_name(name, 253) {
        true => Ok(name.to_owned()),
        false => Err(ConfigError::Value { flag, problem: format!("{name:?} is no name of a Secret") }),
    }
}

fn check_lives(terms: Terms, lifetimes: Lifetimes) -> Result<(), ConfigError> {
    let value = |flag, problem| Err(ConfigError::Value { flag, problem });
    if terms.default < FLOOR {
        return value("leaf-ttl", format!("less than the floor of {} s", FLOOR.as_secs()));
    }
    if terms.max < terms.default {
        return value("max-leaf-ttl", "less than --leaf-ttl".to_owned());
    }
    if lifetimes.issuer / 3 < terms.max {
        let problem = "less than three times --max-leaf-ttl: leaves would be cut short before it is renewed";
        return value("issuer-ttl", problem.to_owned());
    }
    if lifetimes.root < lifetimes.issuer {
        return value("root-ttl", "less than --issuer-ttl".to_owned());
    }
    // The year 9999 ends what a certificate can say.
    if lifetimes.root > Duration::from_secs(100 * 366 * 86_400) {
        return value("root-ttl", "more than 100 years".to_owned());
    }
    Ok(())
}

fn check_bounds(args: &Args) -> Result<(), ConfigError> {
    let counts = [
        ("max-connections", args.max_connections),
        ("max-handshakes", args.max_handshakes),
        ("max-calls", args.max_calls),
        ("max-watchers", args.max_watchers),
        ("max-token-reviews", args.max_token_reviews),
    ];
    let (reserve, least) = (args.audit_reserve, args.audit_reserve.saturating_mul(2).max(1 << 20));
    if reserve > MAX_RESERVE {
        let problem = format!("more than {MAX_RESERVE} bytes");
        return Err(ConfigError::Value { flag: "audit-reserve", problem });
    }
    if args.audit_max.is_some_and(|max| max < least) {
        let problem = format!("less than {least} bytes: twice --audit-reserve, and 1Mi");
        return Err(ConfigError::Value { flag: "audit-max", problem });
    }
    match counts.iter().find(|(_, count)| !(1..=1_000_000).contains(count)) {
        Some((flag, _)) => Err(ConfigError::Value { flag, problem: "not from 1 to 1000000".to_owned() }),
        None => Ok(()),
    }
}

fn attestation(args: &Args) -> Result<Attestation, ConfigError> {
    let audience = args.token_audience.clone();
    if audience.is_empty() {
        return Err(ConfigError::Value { flag: "token-audience", problem: "is empty".to_owned() });
    }
    match args.attest {
        AttestBy::TokenReview => {
            // Whoever gives them believes that they hold.
            let unused = [("jwks-file", args.jwks_file.is_some()), ("token-issuer", args.token_issuer.is_some())];
            match unused.iter().find(|(_, given)| *given) {
                Some((flag, _)) => {
                    let problem =
                        "is not used with --attest token-review: the API server knows its own keys".to_owned();
                    Err(ConfigError::Value { flag, problem })
                }
                None => Ok(Attestation::TokenReview { audience, at_once: args.max_token_reviews }),
            }
        }
        AttestBy::Jwks => {
            let needed = |flag| ConfigError::Value { flag, problem: "is needed with --attest jwks".to_owned() };
            let file = args.jwks_file.clone().ok_or_else(|| needed("jwks-file"))?;
            let issuer = args.token_issuer.clone().filter(|text| !text.is_empty());
            let issuer = issuer.ok_or_else(|| needed("token-issuer"))?;
            let names = args.token_algorithms.iter();
            let algorithms = names.map(|name| algorithm(name.trim())).collect::<Result<Vec<_>, _>>()?;
            Ok(Attestation::Jwks {
                file,
                rules: TokenRules { issuer, audience, algorithms, max_age: args.max_token_age },
            })
        }
    }
}

#[cfg(test)]
mod tests;
