//! The policy's `Principal` and the identity's `SpiffeId` are two readers of one grammar (SPIFFE-ID section 2), in two crates
//! that may not know each other. If they disagreed, a rule could name an identity that no certificate can carry, or a
//! certificate could carry one that no rule can name. This crate may see both.

#![allow(clippy::unwrap_used)]

use countersign_identity::SpiffeId;
use countersign_policy::Principal;
use proptest::prelude::*;

/// Panics where the two differ; whether both accept.
fn agree(text: &str) -> bool {
    match (SpiffeId::parse(text), Principal::parse(text)) {
        (Ok(id), Ok(principal)) => {
            assert_eq!(id.as_str(), principal.as_str(), "{text:?}");
            assert_eq!(id.trust_domain().as_str(), principal.trust_domain(), "{text:?}");
            assert_eq!(id.path(), principal.path(), "{text:?}");
            assert_eq!(id.service_account(), principal.service_account(), "{text:?}");
            true
        }
        (Ok(_), Err(error)) => panic!("a certificate may carry what no rule can name: {text:?}: {error}"),
        (Err(error), Ok(_)) => panic!("a rule may name what no certificate can carry: {text:?}: {error}"),
        (Err(_), Err(_)) => false,
    }
}

#[test]
fn rules_and_certificates_have_one_grammar_at_its_edges() {
    let at = |length: usize| format!("spiffe://td/{}", "a".repeat(length - "spiffe://td/".len()));
    let domain = |length: usize| format!("spiffe://{}/x", "d".repeat(length));
    for (text, good) in [
        ("spiffe://td", true),
        ("spiffe://td/a", true),
        ("spiffe://10.0.0.1/a", true),
        ("spiffe://-/a", true),
        ("spiffe://_._/...", true),
        ("spiffe://td/a/.b", true),
        (&at(2048), true),
        (&at(2049), false),
        (&domain(255), true),
        (&domain(256), false),
        ("", false),
        ("spiffe://", false),
        ("spiffe:///a", false),
        ("spiffe://td/", false),
        ("spiffe://td//a", false),
        ("spiffe://td/a/", false),
        ("spiffe://td/./a", false),
        ("spiffe://td/..", false),
        ("spiffe://td/a b", false),
        ("spiffe://td/a%20", false),
        ("spiffe://td/a?b", false),
        ("spiffe://td/a#b", false),
        ("spiffe://u@td/a", false),
        ("spiffe://td:1/a", false),
        ("spiffe://td\n/a", false),
        ("spiffe://td/a\0", false),
        ("spiffe://td/\u{e4}", false),
        (" spiffe://td/a", false),
        ("spiffe:/td/a", false),
        ("SPIFFE://td/a", true),
        ("spiffe://TD/a", true),
        ("spiffe://td/A", true),
    ] {
        assert_eq!(agree(text), good, "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Near the grammar: pieces that are good, nearly good, and bad, in any order.
    #[test]
    fn rules_and_certificates_have_one_grammar(
        scheme in prop_oneof![8 => Just("spiffe://"), 1 => Just("SPIFFE://"), 1 => Just("spiffe:/"), 1 => Just("https://")],
        domain in prop_oneof![8 => "[a-z0-9._-]{1,8}", 1 => "[ -~]{0,8}", 1 => "[a-zA-Z]{1,4}", 1 => "d{250,260}"],
        path in proptest::collection::vec(
            prop_oneof![8 => "/[a-zA-Z0-9._-]{1,6}", 1 => Just("/ns/a/sa/b".to_owned()), 1 => "/[.]{0,3}", 1 => "[/ -~\u{e4}]{0,3}"],
            0..6,
        ),
    ) {
        agree(&format!("{scheme}{domain}{}", path.concat()));
    }

    #[test]
    fn any_text_at_all_is_read_alike(text in any::<String>()) {
        agree(&text);
        agree(&format!("spiffe://{text}"));
        agree(&format!("spiffe://td/{text}"));
    }
}
