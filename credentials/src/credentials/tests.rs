use rcgen::{ExtendedKeyUsagePurpose, KeyPair};

use super::*;
use crate::testing;
use crate::testing::{HOUR, START, TestCa, leaf_params, private};

const ME: &str = "spiffe://cluster.local/ns/shop/sa/frontend";

fn refused(ca: &TestCa, svid: Svid, bundles: BundleSet) -> CredentialsError {
    let _ = ca;
    Credentials::new(Arc::new(svid), bundles, testing::shared(&testing::clock())).unwrap_err()
}

#[tokio::test]
async fn a_good_svid_makes_credentials() {
    let ca = TestCa::new("cluster.local");
    let credentials = ca.credentials(ME, &testing::clock());
    assert_eq!(credentials.id().as_str(), ME);
    assert_eq!(credentials.generation(), 1);
    assert_eq!(credentials.expires_at().as_secs(), START + HOUR);
    assert!(credentials.own_chain_trusted() && !credentials.expired());
}

#[tokio::test]
async fn an_svid_that_our_own_verifier_refuses_is_not_admitted() {
    let ca = TestCa::new("cluster.local");
    let stranger = TestCa::new("cluster.local");
    assert_eq!(refused(&ca, stranger.svid(ME), ca.bundles()).label(), "unknown_issuer");
    let expired = ca.svid_during(ME, START - HOUR, START - 1);
    assert_eq!(refused(&ca, expired, ca.bundles()).label(), "expired");
    let early = ca.svid_during(ME, START + 60, START + HOUR);
    assert_eq!(refused(&ca, early, ca.bundles()).label(), "not_yet_valid");
}

#[tokio::test]
async fn an_svid_good_for_one_role_only_is_not_admitted() {
    let ca = TestCa::new("cluster.local");
    for (usage, missing) in
        [(ExtendedKeyUsagePurpose::ServerAuth, "client"), (ExtendedKeyUsagePurpose::ClientAuth, "server")]
    {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf_params(ME, START - 60, START + HOUR);
        params.extended_key_usages = vec![usage];
        let svid = Svid::new(ca.sign_params(params, &key), private(&key)).unwrap();
        match refused(&ca, svid, ca.bundles()) {
            CredentialsError::OwnChain { role, source } => {
                assert_eq!((role, source.label()), (missing, "extended_key_usage"));
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_bundle_of_another_trust_domain_does_not_vouch_for_us() {
    let ca = TestCa::new("cluster.local");
    let other = TestCa::new("elsewhere.example");
    assert_eq!(refused(&ca, ca.svid(ME), other.bundles()).label(), "no_bundle");
}

#[tokio::test]
async fn a_bundle_without_our_root_is_taken_and_says_so() {
    let (ca, next) = (TestCa::new("cluster.local"), TestCa::new("cluster.local"));
    let credentials = ca.credentials(ME, &testing::clock());
    let bundles = BundleSet::new(vec![next.bundle(2)]).unwrap();
    let moved = credentials.with_bundles(bundles).unwrap();
    assert!(!moved.own_chain_trusted());
    assert_eq!(moved.generation(), 2);
    // What was verified under the old roots is forgotten with them.
    assert!(credentials.reverify(ca.svid(ME).chain(), Purpose::Client).is_ok());
    assert!(moved.reverify(ca.svid(ME).chain(), Purpose::Client).is_err());
    assert!(moved.reverify(next.svid(ME).chain(), Purpose::Client).is_ok());
}

#[tokio::test]
async fn debug_output_shows_no_key() {
    let ca = TestCa::new("cluster.local");
    let key = KeyPair::generate().unwrap();
    let svid = Svid::new(ca.sign(ME, &key, START - 60, START + HOUR), private(&key)).unwrap();
    let credentials = Credentials::new(Arc::new(svid), ca.bundles(), testing::shared(&testing::clock())).unwrap();
    let shown = format!("{credentials:?} {:?}", credentials.svid());
    assert!(shown.contains(ME));
    let secret = key.serialized_der();
    let listed = format!("{:?}", &secret[secret.len() - 40..secret.len() - 32]);
    assert!(!shown.contains(listed.trim_matches(['[', ']'])), "{shown}");
    assert!(shown.len() < 400, "{shown}");
}
