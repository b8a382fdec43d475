//! What a crash leaves behind: nothing. Called by each process that holds keys, before it reads the first one.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// From now on this process leaves no core file, neither beside it nor with whoever collects them, and only root may look
/// into its memory: a core file would hold every key in the clear.
pub fn leave_no_core() {
    // A collector behind a pipe is not bound by the limit, a process that may not be dumped has no core at all; who may not
    // set the one may set the other.
    let none = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = none.and(hidden) {
        tracing::warn!(%error, "a crash may leave a core file, with keys in it");
    }
}
