//! The limit of open files: each connection takes one, in the proxy two. Called by each process as it starts.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit, which is often 1024 for programs that use `select`, to the hard one, and says so when less than
/// `needed` files may be open even then: connections beyond it wait in the kernel's queue, and accepting backs off.
pub fn raise_open_files(needed: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let raised = setrlimit(Resource::Nofile, limit);
    let now = getrlimit(Resource::Nofile).current;
    if now.is_some_and(|now| now < u64::try_from(needed).unwrap_or(u64::MAX)) {
        tracing::warn!(needed, now, ?raised, "fewer files may be open than the bound on connections needs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let low = rustix::process::Rlimit { current: Some(512), maximum: hard };
        setrlimit(Resource::Nofile, low).unwrap();
        raise_open_files(1);
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }
}
