use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::super::head_limit;
use super::super::testing::{ApiServer, Fault};
use super::*;
use crate::attest::{AttestError, Attestor};
use crate::testing::now;

const AUDIENCE: &str = "countersign-ca";

/// What a real API server (1.34) answers for a pod's token.
fn good(audiences: &[String]) -> Value {
    json!({
        "authenticated": true,
        "audiences": audiences,
        "user": {
            "username": "system:serviceaccount:shop:frontend",
            "uid": "5c2c5d2e-0000-0000-0000-000000000001",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/credential-id": ["JTI=7ee52be0"],
                "authentication.kubernetes.io/node-name": ["node-a"],
                "authentication.kubernetes.io/pod-name": ["frontend-1"],
                "authentication.kubernetes.io/pod-uid": ["uid-of-frontend-1"],
            },
        },
    })
}

fn server() -> ApiServer {
    let server = ApiServer::new();
    server.reviews(|token, audiences| match token {
        "good" => good(audiences),
        _ => json!({ "authenticated": false, "user": {}, "error": "[invalid bearer token]" }),
    });
    server
}

fn attestor(server: &ApiServer, at_once: usize) -> Attestor {
    let cluster = Cluster::on(server.client(&head_limit()), "countersign-system");
    Attestor::Review(TokenReviews::new(cluster, AUDIENCE.to_owned(), at_once))
}

async fn refused(attestor: &Attestor, token: &str) -> AttestError {
    attestor.attest(token, now()).await.unwrap_err()
}

#[tokio::test]
async fn a_pod_is_attested_and_only_our_audience_is_asked_for() {
    let server = server();
    let caller = attestor(&server, 4).attest("good", now()).await.unwrap();
    assert_eq!((caller.namespace(), caller.service_account()), ("shop", "frontend"));
    assert_eq!((caller.pod_name(), caller.pod_uid()), ("frontend-1", "uid-of-frontend-1"));
    let asked = server.asked();
    let question: Value = serde_json::from_str(&asked[0].body).unwrap();
    assert_eq!(question["spec"], json!({ "audiences": [AUDIENCE], "token": "good" }));
    assert_eq!((asked.len(), asked[0].verb, asked[0].resource.as_str()), (1, "create", "tokenreviews"));
}

#[tokio::test]
async fn a_refused_token_is_not_asked_about_again_in_another_way() {
    let server = server();
    let error = refused(&attestor(&server, 4), "forged").await;
    assert_eq!(error, AttestError::Refused("[invalid bearer token]".to_owned()));
    assert!(error.is_refusal());
    assert_eq!(server.count("create", "tokenreviews"), 1, "no fallback");
}

#[tokio::test]
async fn a_token_of_a_deleted_pod_is_refused_at_once_although_it_was_good_before() {
    let server = ApiServer::new();
    let deleted = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&deleted);
    server.reviews(move |_, audiences| match gone.load(Ordering::SeqCst) {
        false => good(audiences),
        true => json!({ "authenticated": false, "error": "[invalid bearer token, Pod frontend-1 not found]" }),
    });
    let attestor = attestor(&server, 4);
    attestor.attest("good", now()).await.unwrap();
    deleted.store(true, Ordering::SeqCst);
    assert_eq!(refused(&attestor, "good").await.label(), "token_refused", "nothing is remembered");
}

#[tokio::test]
async fn what_says_nothing_about_the_token_is_no_refusal() {
    use Fault::{Garbage, Status};
    let cases = [
        (Status(500, "InternalError"), "token_review_unavailable"),
        (Status(503, "ServiceUnavailable"), "token_review_unavailable"),
        (Status(429, "TooManyRequests"), "token_review_unavailable"),
        (Garbage("<html>"), "token_review_unavailable"),
        (Garbage("{\"spec\": 7}"), "token_review_unavailable"),
        (Status(403, "Forbidden"), "token_review_forbidden"),
        (Status(401, "Unauthorized"), "token_review_forbidden"),
        (Status(404, "NotFound"), "token_review_forbidden"),
        (Status(422, "Invalid"), "token_review_forbidden"),
    ];
    for (fault, label) in cases {
        let server = server();
        server.fail("create", "tokenreviews", fault.clone(), 1);
        let attestor = attestor(&server, 4);
        let error = refused(&attestor, "good").await;
        assert_eq!((error.label(), error.is_refusal()), (label, false), "{fault:?}: {error}");
        attestor.attest("good", now()).await.unwrap();
    }
}

#[tokio::test]
async fn no_error_shows_the_token() {
    let server = server();
    server.fail(
        "create",
        "tokenreviews",
        Fault::Garbage("{\"spec\": {\"token\": \"SECRET\"}, \"status\": \"SECRET\"}"),
        1,
    );
    let attestor = attestor(&server, 4);
    for _ in 0..2 {
        let error = refused(&attestor, "SECRET").await;
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_given_up_within_the_limit() {
    let server = server();
    server.fail("create", "tokenreviews", Fault::Hang, 1);
    let attestor = attestor(&server, 4);
    let began = tokio::time::Instant::now();
    let error = refused(&attestor, "good").await;
    assert_eq!(error.label(), "token_review_unavailable", "{error}");
    assert_eq!(began.elapsed(), CALL_LIMIT);
    attestor.attest("good", now()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reviews_at_once_are_bounded_and_the_wait_for_a_place_is_too() {
    let server = server();
    server.fail("create", "tokenreviews", Fault::Hang, 2);
    let attestor = Arc::new(attestor(&server, 2));
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let attestor = Arc::clone(&attestor);
            tokio::spawn(async move { refused(&attestor, "good").await })
        })
        .collect();
    let began = tokio::time::Instant::now();
    for call in calls {
        assert_eq!(call.await.unwrap().label(), "token_review_unavailable");
    }
    assert_eq!(began.elapsed(), CALL_LIMIT);
    assert_eq!(server.count("create", "tokenreviews"), 2, "no more than two reached the API server");
    attestor.attest("good", now()).await.unwrap();
}

#[tokio::test]
async fn nothing_is_asked_about_no_token_or_a_huge_one() {
    let server = server();
    let attestor = attestor(&server, 4);
    assert_eq!(refused(&attestor, "").await, AttestError::Missing);
    assert_eq!(refused(&attestor, &"a".repeat(crate::attest::MAX_TOKEN + 1)).await.label(), "token_too_large");
    assert!(server.asked().is_empty());
}
