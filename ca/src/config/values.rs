//! Single values of flags, parsed. Called by `config`; an error says what is wrong, the flag's name is put before it.

use std::net::SocketAddr;
use std::time::Duration;

use jsonwebtoken::Algorithm;

use super::ConfigError;
use crate::limits::Rate;

/// A signature algorithm by its name in RFC 7518.
pub(super) fn algorithm(name: &str) -> Result<Algorithm, ConfigError> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let known = [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA];
    known.into_iter().find(|algorithm| format!("{algorithm:?}") == name).ok_or_else(|| ConfigError::Value {
        flag: "token-algorithms",
        problem: format!("{name:?} is none of {known:?} (algorithms with a shared secret are never accepted)"),
    })
}

/// That port on all addresses.
pub(super) fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

/// A number and a unit, as `90s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
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
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let bad = || format!("{text:?} is not RATE/BURST, as in 0.5/10: calls a second, calls at once");
    let (per_second, burst) = text.split_once('/').ok_or_else(bad)?;
    let rate = Rate { per_second: per_second.parse().map_err(|_| bad())?, burst: burst.parse().map_err(|_| bad())? };
    let fits = rate.per_second.is_finite() && rate.per_second > 0.0 && rate.per_second <= 1e6 && rate.burst > 0;
    if fits { Ok(rate) } else { Err(bad()) }
}

/// Bytes, as `64Mi`, in the units of Kubernetes' quantities.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a whole number of bytes with one of the units k, M, G, Ki, Mi, Gi, or none");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor: u64 = match &text[digits..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(bad()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too much"))
}
