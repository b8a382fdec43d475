//! Waiting for something to become true, by asking again.
//!
//! Called wherever a cluster needs its time. It must never wait without an end, nor lose why the last try failed.

use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);

/// Tries until it succeeds, for at most `limit`; the error is the last try's.
pub fn until<T>(limit: Duration, what: &str, mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("not within {} s: {what}", limit.as_secs()));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Asks again and again for so long: it must hold each time.
///
/// # Errors
/// The first time that it did not.
pub fn throughout(time: Duration, what: &str, mut attempt: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < time {
        attempt()
            .with_context(|| format!("after {:.1} s of {}: {what}", began.elapsed().as_secs_f64(), time.as_secs()))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_is_told() {
        let failed = until(Duration::ZERO, "a thing", || -> anyhow::Result<()> { anyhow::bail!("because") });
        assert_eq!(format!("{:#}", failed.expect_err("it never succeeds")), "not within 0 s: a thing: because");
    }
}
