//! TokenReview: the API server says whose token it is. Called by `attest`, for each SVID that is asked for; what the answer
//! is worth is judged there.
//!
//! Nothing is remembered between two calls, so a token ends with its pod as soon as the API server says so (its own memory
//! of good tokens is 10 s long). The token is sent to the API server and nowhere else, and never written anywhere.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus};
use kube::api::PostParams;
use kube::core::Request;
use serde_json::json;
use tokio::sync::Semaphore;

use super::{CALL_LIMIT, CallError, Cluster};
use crate::attest::Review;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// Has tokens reviewed.
pub struct TokenReviews {
    cluster: Cluster,
    audience: String,
    /// Not a lock: so many reviews are under way at once.
    places: Semaphore,
    at_once: usize,
    limit: Duration,
}

impl TokenReviews {
    /// Asks for `audience` alone; at most `at_once` reviews are under way.
    pub fn new(cluster: Cluster, audience: String, at_once: usize) -> Self {
        Self { cluster, audience, places: Semaphore::new(at_once), at_once, limit: CALL_LIMIT }
    }

    /// The one audience that is asked for.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// What the API server says of `token`. The wait for a place counts into the bound on its time.
    pub async fn review(&self, token: &str) -> Result<Review, CallError> {
        let spec = json!({ "audiences": [self.audience], "token": token });
        let question = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec });
        let request = Request::new(PATH).create(&PostParams::default(), question.to_string().into_bytes());
        let asked = async {
            let _place = self.places.acquire().await;
            self.cluster.ask::<TokenReview>(request, self.limit).await
        };
        match tokio::time::timeout(self.limit, asked).await {
            Ok(answer) => Ok(read(answer?.status.unwrap_or_default())),
            Err(_) if self.places.available_permits() == 0 => {
                Err(CallError::Unavailable(format!("all of {} reviews at once are under way", self.at_once)))
            }
            Err(_) => Err(CallError::Unavailable(format!("no answer within {} s", self.limit.as_secs()))),
        }
    }
}

fn read(status: TokenReviewStatus) -> Review {
    let user = status.user.unwrap_or_default();
    Review {
        authenticated: status.authenticated == Some(true),
        error: status.error.filter(|error| !error.is_empty()),
        audiences: status.audiences.unwrap_or_default(),
        username: user.username.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
