//! Says in each policy's status whether it is understood: server-side apply of one condition, only where it is not said yet.
//!
//! Started by the parent's `run`. Every replica does this: what it says follows from the object alone, so that they never disagree,
//! and a pause drawn by lot before each round lets mostly one of them write. It must never write what stands there already, nor
//! faster than its bound; that it cannot write takes no rule out of force.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use countersign_credentials::Backoff;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource as _};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::source::kubernetes::objects::{AuthorizationPolicy, Key};
use crate::source::kubernetes::policies::Verdict;
use crate::source::kubernetes::watch::client_words;

/// Owner of the fields that we write.
const MANAGER: &str = "countersign-controller";
/// Before a round, at most: the other replica may write meanwhile, and the watch says so.
const LOT: Duration = Duration::from_millis(400);
/// Between two writes.
const GAP: Duration = Duration::from_millis(50);
/// What was written and is not seen in the watch by then is written again.
const AGAIN: Duration = Duration::from_secs(30);
/// After a write that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// One write.
const LIMIT: Duration = Duration::from_secs(10);

/// Writes what is wanted, for ever.
pub async fn keep(client: Client, mut wanted: watch::Receiver<Arc<BTreeMap<Key, Verdict>>>) {
    let mut written: HashMap<Key, (Verdict, Instant)> = HashMap::new();
    let mut lot = Backoff::new(LOT, LOT);
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let nothing = wanted.borrow().is_empty();
        let again = match nothing {
            true => wanted.changed().await.is_ok(),
            false => timeout(AGAIN, wanted.changed()).await.unwrap_or(Ok(())).is_ok(),
        };
        if !again {
            return;
        }
        sleep(lot.failed()).await;
        let mut done: Vec<Key> = Vec::new();
        loop {
            let due = next(&wanted.borrow_and_update(), &mut written, &done);
            let Some((key, verdict)) = due else { break };
            match timeout(LIMIT, write(&client, &key, &verdict)).await {
                Ok(Ok(())) => {
                    debug!(namespace = key.0, name = key.1, accepted = verdict.accepted, "wrote a policy's status");
                    written.insert(key.clone(), (verdict, Instant::now()));
                    backoff.succeeded();
                }
                // Gone, or made anew: the watch tells.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
                Ok(Err(error)) => {
                    warn!(namespace = key.0, name = key.1, "cannot write a policy's status: {}", client_words(&error));
                    sleep(backoff.failed()).await;
                }
                Err(_) => {
                    warn!(
                        namespace = key.0,
                        name = key.1,
                        "cannot write a policy's status: no answer within {LIMIT:?}"
                    );
                    sleep(backoff.failed()).await;
                }
            }
            done.push(key);
            sleep(GAP).await;
        }
    }
}

/// One that is wanted, was not written lately, and had no turn in this round.
fn next(
    wanted: &BTreeMap<Key, Verdict>,
    written: &mut HashMap<Key, (Verdict, Instant)>,
    done: &[Key],
) -> Option<(Key, Verdict)> {
    written.retain(|key, (verdict, at)| at.elapsed() < AGAIN && wanted.get(key) == Some(verdict));
    let due = wanted.iter().find(|(key, _)| !written.contains_key(*key) && !done.contains(key));
    due.map(|(key, verdict)| (key.clone(), verdict.clone()))
}

async fn write(client: &Client, (namespace, name): &Key, verdict: &Verdict) -> Result<(), kube::Error> {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or_else(|_| OffsetDateTime::now_utc());
    let condition = verdict.condition(&now.format(&Rfc3339).unwrap_or_default());
    let patch = json!({
        "apiVersion": AuthorizationPolicy::api_version(&()),
        "kind": AuthorizationPolicy::kind(&()),
        "metadata": { "name": name, "namespace": namespace, "uid": verdict.uid },
        "status": { "conditions": [condition] },
    });
    let policies: Api<AuthorizationPolicy> = Api::namespaced(client.clone(), namespace);
    policies.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch)).await?;
    Ok(())
}
