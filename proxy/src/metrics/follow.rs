//! Keeps the metrics of the own SVID and bundles true. Started by `run`.

use countersign_credentials::{Status, Watch};
use tokio::sync::watch;

use super::Metrics;

/// Follows the credentials and how their renewal fares; ends when neither changes any more.
pub async fn follow_credentials(metrics: Metrics, mut credentials: Watch, mut status: watch::Receiver<Status>) {
    let (mut good, mut failed) = (0, 0);
    // What was published before we came counts as well.
    credentials.mark_changed();
    status.mark_changed();
    loop {
        tokio::select! {
            Ok(()) = credentials.changed() => {
                if let Some(held) = credentials.borrow_and_update().as_ref() {
                    let bundles = held.bundles().iter().map(|bundle| (bundle.trust_domain().as_str(), bundle.generation()));
                    metrics.credentials(held.expires_at().as_secs(), bundles);
                }
            }
            Ok(()) = status.changed() => {
                let now = status.borrow_and_update().clone();
                metrics.renewals(now.renewals.saturating_sub(good), now.failures.saturating_sub(failed));
                (good, failed) = (now.renewals, now.failures);
            }
            else => return,
        }
    }
}
