//! The limit of open files, raised as far as it goes: each proxy is a connection. Called by `main`.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. Connections beyond it wait in the kernel's queue, and accepting backs off.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, now = ?getrlimit(Resource::Nofile).current, "the limit of open files cannot be raised");
    }
}
