//! Reading one value each: the text, or why it is none, in words for people.
//!
//! Called by `config` only. It must never quote an endless value.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_api::ports;

/// Longest path of a unix socket (unix(7), without the ending zero).
pub const MAX_SOCKET_PATH: usize = 107;
/// Most addresses of a pod, a CA or a controller.
const MAX_ADDRESSES: usize = 16;
/// Longest value quoted in an error, in characters.
const MAX_QUOTED: usize = 80;

fn quoted(value: &str) -> String {
    format!("{:?}", value.chars().take(MAX_QUOTED).collect::<String>())
}

pub fn parsed<T>(result: Result<T, impl fmt::Display>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

pub fn number<N>(value: &str, least: N, most: N) -> Result<N, String>
where
    N: std::str::FromStr + PartialOrd + fmt::Display + Copy,
{
    match value.parse::<N>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(format!("{} is not a number from {least} to {most}", quoted(value))),
    }
}

pub fn port(value: &str) -> Result<u16, String> {
    let port = number(value, 1, u16::MAX).map_err(|_| format!("{} is not a port (1-65535)", quoted(value)))?;
    if port == ports::SELF_PROOF {
        return Err(format!("{port} must stay free: only the inbound redirect may answer there"));
    }
    Ok(port)
}

/// `250ms`, `10s`, `5m`, `1h`.
pub fn time(value: &str) -> Result<Duration, String> {
    let bad = || format!("{} is not a time such as 250ms, 10s, 5m or 1h", quoted(value));
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let scale = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(bad()),
    };
    number.checked_mul(scale).map(Duration::from_secs).ok_or_else(bad)
}

pub fn time_within(value: &str, least_seconds: u64, most_seconds: u64) -> Result<Duration, String> {
    let (least, most) = (Duration::from_secs(least_seconds), Duration::from_secs(most_seconds));
    let time = time(value)?;
    if time < least || time > most {
        return Err(format!("{} is not within {least_seconds}s and {most_seconds}s", quoted(value)));
    }
    Ok(time)
}

/// A bound of one step of a connection: a millisecond to an hour.
pub fn short(value: &str) -> Result<Duration, String> {
    let time = time(value)?;
    if time.is_zero() || time > Duration::from_secs(3600) {
        return Err(format!("{} is not within 1ms and 1h", quoted(value)));
    }
    Ok(time)
}

/// The name of a Kubernetes object, or a UID: what fits a segment of a SPIFFE id and a log line.
pub fn name(value: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if value.len() > 253 || !value.chars().all(fits) || value.starts_with('.') {
        return Err(format!("{} is not a name (letters, digits, '-', '.', '_'; at most 253)", quoted(value)));
    }
    Ok(value.to_owned())
}

pub fn addresses(value: &str) -> Result<Vec<String>, String> {
    let each: Vec<_> = value.split(',').map(str::trim).collect();
    if each.len() > MAX_ADDRESSES {
        return Err(format!("more than {MAX_ADDRESSES} addresses"));
    }
    each.into_iter().map(address).collect()
}

/// `host:port`, `192.0.2.1:port`, `[2001:db8::1]:port`.
fn address(value: &str) -> Result<String, String> {
    let bad = || format!("{} is not host:port", quoted(value));
    let (host, port) = value.rsplit_once(':').ok_or_else(bad)?;
    number::<u16>(port, 1, u16::MAX).map_err(|_| bad())?;
    let fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        }
    };
    if fits { Ok(value.to_owned()) } else { Err(bad()) }
}

pub fn pod_ips(value: &str) -> Result<Vec<IpAddr>, String> {
    let one = |text: &str| match text.trim().parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        Ok(ip) => Err(format!("{ip} cannot be a pod's address")),
        Err(_) => Err(format!("{} is not an IP address", quoted(text))),
    };
    let ips: Vec<_> = value.split(',').map(one).collect::<Result<_, _>>()?;
    if ips.len() > MAX_ADDRESSES { Err(format!("more than {MAX_ADDRESSES} addresses")) } else { Ok(ips) }
}

/// A file need not be there yet (the kubelet writes the token), but it must not be a folder.
pub fn file(value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if value.contains('\0') || value.ends_with('/') || path.is_dir() {
        return Err(format!("{} is not a file's path", quoted(value)));
    }
    Ok(path)
}

pub fn socket(value: &str) -> Result<PathBuf, String> {
    if value.len() > MAX_SOCKET_PATH {
        return Err(format!("longer than the {MAX_SOCKET_PATH} bytes that a unix socket's path may have"));
    }
    let path = file(value)?;
    match path.parent() {
        Some(parent) if parent != Path::new("") && !parent.is_dir() => {
            Err(format!("{} is not a folder", quoted(&parent.to_string_lossy())))
        }
        _ => Ok(path),
    }
}

pub fn log(value: &str) -> Result<String, String> {
    parsed(countersign_admin::log::parse(value)).map(|_| value.to_owned())
}

pub fn on_or_off(value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("{} is neither on nor off", quoted(value))),
    }
}
