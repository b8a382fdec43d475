//! Waiting for foreign programs that cannot tell when they are ready.
//!
//! Called by tests, the demo and this kit. For our own code prefer a channel or a log line: polling is the last resort.

use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

/// Between two probes.
const INTERVAL: Duration = Duration::from_millis(5);

/// Probes until `Ok`, at most for `limit`.
///
/// # Errors
/// The last probe's error, with how long it was tried.
pub fn wait_until<T, E: Debug>(limit: Duration, mut probe: impl FnMut() -> Result<T, E>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit => {
                anyhow::bail!("not within {limit:?}: {error:?}");
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// The same for a plain condition.
///
/// # Errors
/// When it did not hold within `limit`; `what` names it.
pub fn wait_for(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    wait_until(limit, || if holds() { Ok(()) } else { Err(what.to_owned()) })
}

/// Repeats a call that a signal has interrupted. A read with a timeout is not begun anew by the kernel, whatever the handler asks for
/// (signal(7)), and in a test program a child of any test may end at any time.
///
/// # Errors
/// The call's, but for `Interrupted`.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_interrupted_is_repeated() {
        let mut ends = [io::ErrorKind::Interrupted, io::ErrorKind::Interrupted, io::ErrorKind::TimedOut].into_iter();
        let error = uninterrupted(|| Err::<(), _>(ends.next().unwrap().into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(uninterrupted(|| Ok(3)).unwrap(), 3);
    }

    #[test]
    fn waiting_is_bounded_and_tells_the_last_reason() {
        let error = wait_until(Duration::from_millis(1), || Err::<(), _>("still starting")).unwrap_err();
        assert!(error.to_string().contains("still starting"));
        let mut tries = 0;
        assert_eq!(
            wait_until(Duration::from_secs(60), || {
                tries += 1;
                if tries < 3 { Err("no") } else { Ok(tries) }
            })
            .unwrap(),
            3
        );
    }
}
