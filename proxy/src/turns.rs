//! Turns at shaking hands: of a burst of the app's connections to one address, a few handshakes go out at a time, and the
//! others wait. A server side takes a bounded number from one source at once (`slots`) and sheds the rest: without turns, a busy
//! pod would be taken for a hostile one. Called by `outbound`. A turn must not be held longer than one dial and handshake.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Handshakes towards one address at a time. Far below a quarter of the default slots (128), as the server side counts one as open a
/// little longer than we do; enough for some thousand handshakes a second where an answer takes milliseconds.
const EACH: usize = 32;

/// The lines, by address. Where nobody has a turn or waits for one, no line is kept.
#[derive(Debug, Default)]
pub struct Turns {
    lines: Mutex<HashMap<IpAddr, Line>>,
}

#[derive(Debug)]
struct Line {
    turns: Arc<Semaphore>,
    members: usize,
}

/// One turn. The next in line has it on drop.
#[derive(Debug)]
pub struct Turn {
    // Given back before the line is left: fields are dropped in this order.
    _permit: OwnedSemaphorePermit,
    _member: Member,
}

/// A place in a line, waiting or in turn.
#[derive(Debug)]
struct Member {
    turns: Arc<Turns>,
    address: IpAddr,
}

impl Turns {
    /// Waits for a turn towards `address`, first come, first served, at most for `limit`; `None` when that is over.
    pub async fn wait(self: &Arc<Self>, address: IpAddr, limit: Duration) -> Option<Turn> {
        let (line, member) = self.stand_in_line(address);
        let permit = timeout(limit, line.acquire_owned()).await.ok()?.ok()?;
        Some(Turn { _permit: permit, _member: member })
    }

    fn stand_in_line(self: &Arc<Self>, address: IpAddr) -> (Arc<Semaphore>, Member) {
        let mut lines = self.lock();
        let line = lines.entry(address).or_insert_with(|| Line { turns: Arc::new(Semaphore::new(EACH)), members: 0 });
        line.members += 1;
        (Arc::clone(&line.turns), Member { turns: Arc::clone(self), address })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut lines = self.turns.lock();
        if let Some(line) = lines.get_mut(&self.address) {
            line.members -= 1;
            if line.members == 0 {
                lines.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_to_one_address_waits_in_line_and_another_address_does_not() {
        let turns = Arc::new(Turns::default());
        let mut held = Vec::new();
        for _ in 0..EACH {
            held.push(turns.wait(address(1), LIMIT).await.unwrap());
        }
        assert!(turns.wait(address(2), Duration::ZERO).await.is_some());
        let next = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.wait(address(1), LIMIT).await }
        });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        held.pop();
        assert!(next.await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_too_long_leaves_and_an_empty_line_is_forgotten() {
        let turns = Arc::new(Turns::default());
        let mut held = Vec::new();
        for _ in 0..EACH {
            held.push(turns.wait(address(1), LIMIT).await.unwrap());
        }
        assert!(turns.wait(address(1), LIMIT).await.is_none());
        assert_eq!(turns.lock()[&address(1)].members, EACH);
        drop(held);
        assert!(turns.lock().is_empty());
    }
}
