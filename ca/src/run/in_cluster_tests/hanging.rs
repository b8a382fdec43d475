//! An API server that takes a TokenReview and does not answer: whoever shows that token waits, and nobody else.

use super::leader::exchange;
use super::*;

/// Were a lock held over the call, or the state's, all of this would wait behind it until it is given up.
#[tokio::test]
async fn while_reviews_hang_every_other_request_is_answered_and_the_state_can_change() {
    const HUNG: usize = 3;
    let (server, api) = api_server().await;
    let one = Arc::new(replica(api).await);
    server.fail("create", "tokenreviews", Fault::Hang, HUNG);
    let hung: Vec<_> = (0..HUNG)
        .map(|_| {
            let one = Arc::clone(&one);
            tokio::spawn(async move { one.ask("good").await })
        })
        .collect();
    let reviews = |asked: &[crate::kubernetes::testing::Asked]| {
        asked.iter().filter(|asked| asked.resource == "tokenreviews").count()
    };
    server.until_asked(|asked| reviews(asked) == HUNG).await;

    one.ask("good").await.unwrap();
    assert_eq!(one.ask("of a deleted pod").await.unwrap_err().code(), Code::Unauthenticated);
    for path in ["/readyz", "/metrics"] {
        assert!(get(one.ca.health, path).await.unwrap().starts_with("HTTP/1.1 200"), "{path}");
    }
    let (code, prepared) = exchange(&one, "POST", "/rotation/prepare").await;
    assert_eq!((code, &prepared["rotation"]["stage"]), (200, &Value::from("prepared")), "{prepared}");
    let later = one.ask("good").await.unwrap();
    assert_eq!(later.bundle.unwrap().roots.len(), 2, "signed from the state of after the change");
    assert!(hung.iter().all(|call| !call.is_finished()), "they were given up meanwhile: nothing was shown");

    for call in hung {
        let given_up = call.await.unwrap().unwrap_err();
        assert_eq!(given_up.code(), Code::Unavailable, "{given_up}");
    }
    one.ask("good").await.unwrap();
}
