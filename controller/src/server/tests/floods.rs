//! What one proxy may send and have made, and what it may not.

use super::*;

#[tokio::test]
async fn a_pod_that_comes_again_and_again_does_not_have_all_rules_made_each_time() {
    let fixture = Fixture::new(small(&[]));
    let mut let_in = 0;
    let refused = loop {
        let mut proxy = fixture.frontend().await;
        match proxy.next().await {
            Ok(_) => let_in += 1,
            Err(status) => break status,
        }
        assert!(let_in < 1000, "it is never refused");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(let_in >= 8, "a proxy that starts again a few times is let in: {let_in}");
    fixture.backend().await.workload().await;
}

#[tokio::test]
async fn the_longest_honest_message_is_taken_and_a_longer_one_ends_the_stream() {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.frontend().await;
    let revision = proxy.workload().await.revision;
    let ack = |names: usize| {
        let unknown_rules = vec![format!("{}/{}", "n".repeat(63), "r".repeat(253)); names];
        from_proxy::Kind::Ack(Ack { revision: revision.clone(), problem: "p".repeat(4000), unknown_rules })
    };
    proxy.say(ack(100)).await;
    proxy.nothing_else_came().await;
    proxy.say(ack(1000)).await;
    assert_ne!(proxy.end().await.code(), Code::Ok);
}

/// Asks for so many addresses, as fast as it can, and counts the answers.
async fn answers_to(lookups: u16, each_alone: bool) -> usize {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.frontend().await;
    proxy.workload().await;
    let Proxy { out, mut from } = proxy;
    let asking = tokio::spawn(async move {
        for port in 1..=lookups {
            let kind = Some(from_proxy::Kind::Lookup(address("10.77.0.11", port)));
            if out.send(FromProxy { kind }).await.is_err() {
                break;
            }
            if each_alone {
                tokio::task::yield_now().await;
            }
        }
        out
    });
    let mut answers = 0;
    while answers < usize::from(lookups) {
        match timeout(Duration::from_secs(60), from.message()).await.expect("nothing came") {
            Ok(Some(_)) => answers += 1,
            Ok(None) => break,
            Err(status) => {
                eprintln!("{status:?}");
                break;
            }
        }
    }
    drop(asking.await);
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_comes_back_may_ask_for_all_that_it_remembers_at_once() {
    for each_alone in [false, true] {
        assert_eq!(answers_to(4000, each_alone).await, 4000, "{each_alone}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_beyond_the_rate_waits_and_ends_nothing() {
    for each_alone in [false, true] {
        assert_eq!(answers_to(5000, each_alone).await, 5000, "{each_alone}");
    }
}
