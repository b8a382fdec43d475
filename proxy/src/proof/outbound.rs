//! The outbound half: dial the reserved destination, and be found by our own listener.
//!
//! `run` starts [`Proof::keep_proving`], the outbound journey asks [`Proof::heard`] of each connection that names that destination.
//! The nonce makes it ours: an app that dials there, or listens there, proves nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use countersign_api::ports;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::{Proof, Standing, lock, unix_now};
use crate::drain::Drain;
use crate::listen::reset_on_close;
use crate::outcome::Direction;

/// Length of the nonce, in bytes.
const NONCE: usize = 16;
/// Between two proofs while all is well.
const EACH: Duration = Duration::from_secs(2);
/// Between two attempts while it is not.
const AGAIN: Duration = Duration::from_millis(250);
/// Longest attempt. Without the rule the kernel refuses at once; only an app that listens there can make us wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// Attempts in a row that must fail: one may meet a machine that stood still.
const FAILURES: u32 = 2;

/// A nonce on its way, and who waits for it.
#[derive(Debug)]
pub(super) struct Awaited {
    nonce: [u8; NONCE],
    found: oneshot::Sender<()>,
}

impl Awaited {
    #[cfg(test)]
    pub(super) fn new(nonce: [u8; NONCE], found: oneshot::Sender<()>) -> Self {
        Self { nonce, found }
    }
}

impl Proof {
    /// Proves the outbound redirect again and again, for each of the pod's addresses, until draining starts. `places` are those of
    /// the outbound listener: while all are taken it sheds what comes, ours too, so that nothing can be told and nothing is tried.
    pub async fn keep_proving(
        self,
        addresses: Vec<IpAddr>,
        mark: Option<u32>,
        places: std::sync::Arc<Semaphore>,
        drain: Drain,
    ) {
        let mut failures = 0;
        let proving = async {
            loop {
                if places.available_permits() == 0 {
                    // It would be shed, and counted as if a connection of the app had been.
                    sleep(AGAIN).await;
                    continue;
                }
                let outcome = self.prove(&addresses, mark).await;
                let unable = outcome.is_err() && places.available_permits() == 0;
                match outcome {
                    _ if unable => {}
                    Ok(()) => {
                        failures = 0;
                        self.proven();
                    }
                    Err(why) => {
                        failures += 1;
                        self.failed(failures, why);
                    }
                }
                sleep(if failures > 0 || unable { AGAIN } else { EACH }).await;
            }
        };
        tokio::select! {
            () = drain.started() => {}
            () = proving => {}
        }
    }

    /// True: the connection is our own, told by its nonce; it has done its part. To be asked only of one that was going to the
    /// reserved destination.
    pub async fn heard(&self, io: &mut TcpStream) -> bool {
        let mut nonce = [0; NONCE];
        if !matches!(timeout(PATIENCE, io.read_exact(&mut nonce)).await, Ok(Ok(_))) {
            return false;
        }
        let mut awaited = lock(&self.0.awaited);
        let Some(at) = awaited.iter().position(|one| one.nonce == nonce) else {
            return false;
        };
        // One that no longer waits came too late.
        let _ = awaited.swap_remove(at).found.send(());
        true
    }

    /// One proof for each address.
    async fn prove(&self, addresses: &[IpAddr], mark: Option<u32>) -> Result<(), String> {
        for ip in addresses {
            let reserved = SocketAddr::new(*ip, ports::SELF_PROOF);
            let nonce: [u8; NONCE] = rand::random();
            let (found, waiting) = oneshot::channel();
            lock(&self.0.awaited).push(Awaited { nonce, found });
            let outcome = timeout(PATIENCE, attempt(reserved, nonce, mark, waiting)).await;
            lock(&self.0.awaited).retain(|one| one.nonce != nonce);
            match outcome {
                Ok(done) => done?,
                Err(_) => return Err(format!("{reserved}: our own listener did not find the nonce in time")),
            }
        }
        Ok(())
    }

    fn proven(&self) {
        self.0.last_outbound.store(unix_now(), Ordering::Relaxed);
        self.0.metrics.interception_proven(Direction::Outbound);
        *lock(&self.0.problem) = None;
        if self
            .0
            .outbound
            .send_if_modified(|standing| std::mem::replace(standing, Standing::Proven) != Standing::Proven)
        {
            self.turned(Direction::Outbound, false, "");
        }
    }

    fn failed(&self, failures: u32, why: String) {
        if failures < FAILURES {
            return;
        }
        let standing = *self.0.outbound.borrow();
        *lock(&self.0.problem) = Some(why.clone());
        match standing {
            Standing::Proven => {
                self.0.outbound.send_replace(Standing::Lost);
                self.turned(Direction::Outbound, true, &why);
            }
            Standing::Unproven if failures == FAILURES => {
                tracing::warn!(
                    why,
                    "the outbound redirect is not in force yet: `countersign-proxy intercept install` sets it"
                );
            }
            Standing::Unproven | Standing::Lost => {}
        }
    }
}

/// Dials, says the nonce, and waits until it was found.
async fn attempt(
    reserved: SocketAddr,
    nonce: [u8; NONCE],
    mark: Option<u32>,
    found: oneshot::Receiver<()>,
) -> Result<(), String> {
    let io = countersign_credentials::dial(reserved, mark).await;
    let mut io = io.map_err(|error| format!("{reserved} was not redirected: {error}"))?;
    // Nothing of it stays behind in the kernel.
    reset_on_close(&io);
    let _ = io.write_all(&nonce).await;
    found.await.map_err(|_| format!("{reserved}: nobody waits any more"))
}
