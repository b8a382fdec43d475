use super::*;
use crate::testing::rules;
use std::time::Duration;
use tokio::time::timeout;

const ALLOW_FRONTEND: &str = "
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: frontend, namespace: shop}
spec:
  action: Allow
  rules:
  - from: [{serviceAccounts: [{namespace: shop, name: frontend}]}]
    to: [{ports: [80]}]
";

fn asking(account: &str, port: u16) -> Asking {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let who = Some(Arc::new(Principal::parse(&id).unwrap()));
    Asking::In { who, source_ip: "10.0.0.1".parse().unwrap(), port }
}

fn permits(text: &str) -> (watch::Sender<Option<Arc<PolicySet>>>, Arc<Permits>) {
    let (sender, receiver) = watch::channel(Some(rules(text)));
    (sender, Permits::new(receiver))
}

#[test]
fn no_rules_known_means_no() {
    let (_sender, receiver) = watch::channel(None);
    let denial = Permits::new(receiver).admit(asking("frontend", 80)).unwrap_err();
    assert_eq!(denial.reason, "no_rules_known");
}

#[test]
fn no_policy_means_no() {
    let (_sender, permits) = permits("");
    assert_eq!(permits.admit(asking("frontend", 80)).unwrap_err().reason, "no_policy");
}

#[test]
fn a_permit_names_its_rule_and_a_denial_its_reason() {
    let (_sender, permits) = permits(ALLOW_FRONTEND);
    let permit = permits.admit(asking("frontend", 80)).unwrap();
    assert_eq!(permit.rule.as_deref(), Some("shop/frontend#0"));
    assert_eq!(&*permit.revision, "r1");
    let denial = permits.admit(asking("intruder", 80)).unwrap_err();
    assert_eq!((denial.reason, denial.revision.as_deref()), ("no_rule_matched", Some("r1")));
    assert_eq!(permits.count(), 1, "a denied attempt holds nothing");
    drop(permit);
    assert_eq!(permits.count(), 0);
}

#[test]
fn denial_ids_are_sixteen_hex_digits() {
    assert_eq!(DenialId(0x2a).to_string(), "000000000000002a");
}

#[test]
fn denial_ids_are_random_in_all_of_their_64_bits() {
    let denied = |permits: &Arc<Permits>, account: &str| permits.admit(asking(account, 80)).unwrap_err().id;
    let (_sender, one) = permits("");
    // Of one process, and of processes that were just started and are asked the same.
    let of_one: Vec<u64> = (0..64).map(|n| denied(&one, &format!("intruder-{n}"))).collect();
    let of_many: Vec<u64> = (0..64).map(|_| denied(&permits("").1, "intruder")).collect();
    for ids in [&of_one, &of_many] {
        let different: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(different.len(), 64, "{ids:x?}");
        // One bit that is the same in all is a chance of 1 in 2^57.
        let (ever, always) = ids.iter().fold((0_u64, u64::MAX), |(ever, always), id| (ever | id, always & id));
        assert_eq!((ever, always), (u64::MAX, 0), "bits that never change: {ids:x?}");
    }
}

#[tokio::test]
async fn a_connection_ends_when_its_rule_goes_and_the_others_stay() {
    let (sender, permits) = permits(ALLOW_FRONTEND);
    let following = tokio::spawn(Arc::clone(&permits).follow());
    let permit = permits.admit(asking("frontend", 80)).unwrap();
    let stays = permits.admit(Asking::Out { meshed: true, address: ([10, 0, 0, 2], 80).into() }).unwrap();
    sender.send_replace(Some(rules(&ALLOW_FRONTEND.replace("[80]", "[81]"))));
    let denial = timeout(Duration::from_secs(5), permit.revoked()).await.unwrap();
    assert_eq!(denial.reason, "no_rule_matched");
    assert!(timeout(Duration::from_millis(1), stays.revoked()).await.is_err());
    drop(sender);
    following.await.unwrap();
}

#[test]
fn a_change_between_check_and_register_is_caught() {
    // In the very moment in which the rules are read they change, and all that is open is decided by the new ones: the connection must
    // be among them by then. Read first and registered then, it would be open by rules that are gone, and nobody would look again.
    let (_sender, permits) = permits(ALLOW_FRONTEND);
    let in_between = |read: &Option<Arc<PolicySet>>, next: Option<Arc<PolicySet>>| {
        permits.decide_again(&next);
        read.clone()
    };
    let old = Some(rules(ALLOW_FRONTEND));
    let none = Some(rules(""));
    let denial = permits.admit_by(asking("frontend", 80), || in_between(&old, none.clone())).unwrap_err();
    assert_eq!(denial.reason, "no_policy");
    assert_eq!(permits.count(), 0, "what is not let in is not open");
    // A change that still allows it ends nothing.
    let permit = permits.admit_by(asking("frontend", 80), || in_between(&old, old.clone())).unwrap();
    assert!(permit.revocation.get().is_none());
    // Nor does a change that admits let in what the rules read deny: the next attempt is.
    let denial = permits.admit_by(asking("frontend", 80), || in_between(&none, old.clone())).unwrap_err();
    assert_eq!(denial.reason, "no_policy");
}

#[tokio::test]
async fn a_change_while_many_are_admitted_leaves_none_open() {
    // The rules change while a thousand connections are being admitted: whichever side of the change each one falls on, none that
    // the new rules deny is left open.
    let (sender, permits) = permits(ALLOW_FRONTEND);
    let following = tokio::spawn(Arc::clone(&permits).follow());
    let admitting = {
        let permits = Arc::clone(&permits);
        std::thread::spawn(move || {
            (0..1000).filter_map(|_| permits.admit(asking("frontend", 80)).ok()).collect::<Vec<_>>()
        })
    };
    sender.send_replace(Some(rules("")));
    let open = admitting.join().unwrap();
    for permit in &open {
        timeout(Duration::from_secs(5), permit.revoked()).await.unwrap();
    }
    drop(open);
    drop(sender);
    following.await.unwrap();
}
