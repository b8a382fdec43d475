//! The limit of open files, raised for the connections that the configuration allows. Called by `main`.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files that are open beside connections: listeners, logs, the state's lock.
const SPARE: u64 = 64;

/// Raises the soft limit as far as the hard one allows, and says so when that is not enough: connections beyond it wait in
/// the kernel's queue, and accepting backs off.
pub fn raise_limit(connections: usize) {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(SPARE);
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
    let raised = setrlimit(Resource::Nofile, limit);
    if raised.is_err() || limit.current < Some(wanted) {
        tracing::warn!(wanted, now = ?getrlimit(Resource::Nofile).current, "fewer open files than --max-connections allows");
    }
}
