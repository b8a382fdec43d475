//! Flags and environment, read once and checked whole before a port is bound, into one immutable [`Config`]. Called by
//! `main`. An unknown flag stops the start; an unknown `COUNTERSIGN_*` variable does not, since Kubernetes sets such ones by
//! itself for a service named countersign-ca.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use countersign_api::{env as names_env, names, ports};
use countersign_identity::{SpiffeId, SpiffeIdError, TrustDomain};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::attest::TokenRules;
use crate::grant::{FLOOR, SHORT, Terms};
use crate::issue::CallLimits;
use crate::limits::Rate;
use crate::state::{AUDIT, BUNDLE, KeyError, Lifetimes, StateKey};

/// Variable that holds the state key (base64 of 32 bytes), instead of a file.
pub const STATE_KEY: &str = "COUNTERSIGN_CA_STATE_KEY";

/// Why the configuration is no good. Each names the flag.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the state key is missing: give --state-key-file, or {STATE_KEY} in the environment")]
    NoKey,
    #[error("the state key is given twice, by --state-key-file and by {STATE_KEY}; give one")]
    TwoKeys,
    #[error("--trust-domain: {0}")]
    TrustDomain(SpiffeIdError),
    #[error("--system-namespace: {0}")]
    SystemNamespace(SpiffeIdError),
    #[error("--{flag}: {problem}")]
    Value { flag: &'static str, problem: String },
}

/// The flags as they are typed. Durations are a number and a unit: 90s, 15m, 1h, 30d.
#[derive(Parser, Debug)]
#[command(name = "countersign-ca", version, about = "Countersign's signer: attests pods and issues their SVIDs")]
#[allow(missing_docs)]
pub struct Args {
    /// Directory of the state: root and issuer (encrypted), audit log, public bundle. Made with mode 0700 if missing
    #[arg(long, env = "COUNTERSIGN_CA_STATE_DIR")]
    pub state_dir: PathBuf,
    /// File with the 32 bytes that encrypt the state, raw or base64; nobody else may read it.
    /// Instead: COUNTERSIGN_CA_STATE_KEY (base64) in the environment
    #[arg(long, env = "COUNTERSIGN_CA_STATE_KEY_FILE")]
    pub state_key_file: Option<PathBuf>,
    /// Trust domain of every identity
    #[arg(long, env = names_env::TRUST_DOMAIN, default_value = names::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// Namespace of the mesh's own processes
    #[arg(long, env = names_env::SYSTEM_NAMESPACE, default_value = names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Address of the gRPC port; port 0 picks a free one
    #[arg(long, env = "COUNTERSIGN_CA_LISTEN", default_value_t = any(ports::CA))]
    pub listen: SocketAddr,
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
    /// Written, whole, once all ports are bound and the CA is ready: JSON with the addresses
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    /// Public keys of the token issuer (JWKS); read again when they change
    #[arg(long, env = "COUNTERSIGN_CA_JWKS_FILE")]
    pub jwks_file: PathBuf,
    /// The `iss` that tokens must have
    #[arg(long, env = "COUNTERSIGN_CA_TOKEN_ISSUER")]
    pub token_issuer: String,
    /// The one `aud` that tokens must have
    #[arg(long, env = "COUNTERSIGN_CA_TOKEN_AUDIENCE", default_value = names::CA_AUDIENCE)]
    pub token_audience: String,
    /// Signature algorithms that tokens may have
    #[arg(long, env = "COUNTERSIGN_CA_TOKEN_ALGORITHMS", default_value = "RS256,ES256,ES384", value_delimiter = ',')]
    pub token_algorithms: Vec<String>,
    /// Tokens are not used longer than this after they were issued
    #[arg(long, env = "COUNTERSIGN_CA_MAX_TOKEN_AGE", default_value = "24h", value_parser = duration)]
    pub max_token_age: Duration,
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
    /// Log filter, in the syntax of RUST_LOG
    #[arg(long, env = names_env::LOG)]
    pub log: Option<String>,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Config {
    pub state_dir: PathBuf,
    pub state_key: StateKey,
    pub trust_domain: TrustDomain,
    /// The CA's own identity.
    pub own_id: SpiffeId,
    pub listen: SocketAddr,
    pub health_listen: SocketAddr,
    pub admin_socket: PathBuf,
    /// Where the public bundle is written; the first is in the state directory.
    pub bundle_files: Vec<PathBuf>,
    pub audit_log: PathBuf,
    pub ready_file: Option<PathBuf>,
    pub jwks_file: PathBuf,
    pub token: TokenRules,
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
        let lifetimes = Lifetimes { root: args.root_ttl, issuer: args.issuer_ttl };
        check_lives(terms, lifetimes)?;
        check_bounds(&args)?;
        let token = token_rules(&args)?;
        let state_key = match (&args.state_key_file, key_text) {
            (Some(_), Some(_)) => return Err(ConfigError::TwoKeys),
            (Some(file), None) => StateKey::from_file(file)?,
            (None, Some(text)) => StateKey::from_text(STATE_KEY, text)?,
            (None, None) => return Err(ConfigError::NoKey),
        };
        let in_state = |name: &str| args.state_dir.join(name);
        Ok(Self {
            state_key,
            trust_domain,
            own_id,
            listen: args.listen,
            health_listen: args.health_listen,
            admin_socket: args.admin_socket.unwrap_or_else(|| in_state("admin.sock")),
            bundle_files: [Some(in_state(BUNDLE)), args.bundle_file].into_iter().flatten().collect(),
            audit_log: args.audit_log.unwrap_or_else(|| in_state(AUDIT)),
            ready_file: args.ready_file,
            jwks_file: args.jwks_file,
            token,
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

    /// The configuration for people; the state key appears by its name only.
    pub fn dump(&self) -> Value {
        let seconds = |duration: Duration| duration.as_secs();
        let rate = |rate: Rate| format!("{}/{}", rate.per_second, rate.burst);
        json!({
            "state_dir": self.state_dir, "state_key": format!("{:?}", self.state_key),
            "trust_domain": self.trust_domain.as_str(), "own_id": self.own_id.as_str(),
            "listen": self.listen, "health_listen": self.health_listen, "admin_socket": self.admin_socket,
            "bundle_files": self.bundle_files, "audit_log": self.audit_log, "ready_file": self.ready_file,
            "jwks_file": self.jwks_file, "token_issuer": self.token.issuer, "token_audience": self.token.audience,
            "token_algorithms": format!("{:?}", self.token.algorithms),
            "max_token_age_s": seconds(self.token.max_age),
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
    ];
    match counts.iter().find(|(_, count)| !(1..=1_000_000).contains(count)) {
        Some((flag, _)) => Err(ConfigError::Value { flag, problem: "not from 1 to 1000000".to_owned() }),
        None => Ok(()),
    }
}

fn token_rules(args: &Args) -> Result<TokenRules, ConfigError> {
    for (flag, text) in [("token-issuer", &args.token_issuer), ("token-audience", &args.token_audience)] {
        if text.is_empty() {
            return Err(ConfigError::Value { flag, problem: "is empty".to_owned() });
        }
    }
    let algorithms = args.token_algorithms.iter().map(|name| algorithm(name.trim())).collect::<Result<Vec<_>, _>>()?;
    Ok(TokenRules {
        issuer: args.token_issuer.clone(),
        audience: args.token_audience.clone(),
        algorithms,
        max_age: args.max_token_age,
    })
}

fn algorithm(name: &str) -> Result<Algorithm, ConfigError> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let known = [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA];
    known.into_iter().find(|algorithm| format!("{algorithm:?}") == name).ok_or_else(|| ConfigError::Value {
        flag: "token-algorithms",
        problem: format!("{name:?} is none of {known:?} (algorithms with a shared secret are never accepted)"),
    })
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

/// A number and a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a number with one of the units s, m, h, d");
    let unit = text.chars().last().ok_or_else(bad)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| bad())?;
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| format!("{text:?} is too long"))
}

/// Calls a second and burst, as `1/10`.
fn rate(text: &str) -> Result<Rate, String> {
    let bad = || format!("{text:?} is not RATE/BURST, as in 0.5/10: calls a second, calls at once");
    let (per_second, burst) = text.split_once('/').ok_or_else(bad)?;
    let rate = Rate { per_second: per_second.parse().map_err(|_| bad())?, burst: burst.parse().map_err(|_| bad())? };
    let fits = rate.per_second.is_finite() && rate.per_second > 0.0 && rate.per_second <= 1e6 && rate.burst > 0;
    if fits { Ok(rate) } else { Err(bad()) }
}

#[cfg(test)]
mod tests;
