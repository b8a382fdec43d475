//! Follows what other replicas store. Run by `run` as one task, where the state lies in a Secret. A new state is in force
//! within a second or so; what cannot be read, or may not follow, leaves in force what is, and is told.
//!
//! A state that is removed under a living CA is put back after a minute: the CA is then the only place where the mesh's root
//! still is.

use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use countersign_credentials::SharedClock;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use super::{Place, State, StateError};

/// After a failure.
const AGAIN: Duration = Duration::from_secs(2);
/// Longer than it takes to remove everything with us, as an uninstallation does.
const PUT_BACK_AFTER: Duration = Duration::from_secs(60);

/// Never ends.
pub async fn follow(state: Arc<State>, clock: SharedClock) {
    let Place::Secret(secret) = &state.store.place else { return std::future::pending().await };
    let mut pings = pin!(secret.pings());
    let mut gone_since = None;
    loop {
        // Errors of the watch are those of the read too, which tells them.
        let _ = pings.next().await;
        while let Err(error) = state.refresh(clock.now()).await {
            state.tell(Some(&error));
            if matches!(error, StateError::Gone(_)) {
                let since = *gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= PUT_BACK_AFTER && state.put_back().await.is_ok() {
                    tracing::warn!(state = %state.store.place, "the state was gone, and was put back");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        gone_since = None;
        state.tell(None);
    }
}

impl State {
    /// Each problem is told once, not each time that it is seen again.
    fn tell(&self, error: Option<&StateError>) {
        let text = error.map(StateError::to_string);
        let mut told = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == text {
            return;
        }
        match &text {
            Some(error) => tracing::error!(%error, "the stored state cannot be followed; what is in force stays"),
            None => tracing::info!("the stored state is followed again"),
        }
        *told = text;
    }
}
