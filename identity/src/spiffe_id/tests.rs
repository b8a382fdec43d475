//! What is an id and what is not, and agreement with the `spiffe` crate, whose only known difference is length.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn refused(text: &str) -> SpiffeIdError {
    SpiffeId::parse(text).unwrap_err()
}

#[test]
fn an_id_gives_its_parts() {
    let backend = id("spiffe://cluster.local/ns/shop/sa/backend");
    assert_eq!(backend.as_str(), "spiffe://cluster.local/ns/shop/sa/backend");
    assert_eq!(backend.trust_domain().as_str(), "cluster.local");
    assert_eq!(backend.path(), "/ns/shop/sa/backend");
    assert_eq!(backend.segments().collect::<Vec<_>>(), ["ns", "shop", "sa", "backend"]);
    assert_eq!(backend.service_account(), Some(("shop", "backend")));
    assert_eq!(backend.to_string(), backend.as_str());
    assert_eq!("spiffe://cluster.local/ns/shop/sa/backend".parse(), Ok(backend));
}

#[test]
fn the_trust_domains_own_id_has_no_path() {
    let own = id("spiffe://cluster.local");
    assert_eq!(own.path(), "");
    assert_eq!(own.segments().count(), 0);
    assert_eq!(own.service_account(), None);
}

#[test]
fn scheme_and_trust_domain_ignore_case_and_the_path_does_not() {
    let one = id("SPIFFE://Cluster.LOCAL/ns/Shop/sa/b");
    assert_eq!(one, id("spiffe://cluster.local/ns/Shop/sa/b"));
    assert_eq!(one.as_str(), "spiffe://cluster.local/ns/Shop/sa/b");
    assert_ne!(one, id("spiffe://cluster.local/ns/shop/sa/b"));
    assert_eq!(TrustDomain::parse("A.b").unwrap(), TrustDomain::parse("a.B").unwrap());
}

#[test]
fn an_address_is_an_ordinary_trust_domain() {
    assert_eq!(id("spiffe://10.0.0.1/a").trust_domain().as_str(), "10.0.0.1");
}

#[test]
fn a_service_account_is_exactly_four_segments() {
    for text in [
        "spiffe://td/ns/a/sa",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/x/ns/a/sa/b",
        "spiffe://td/sa/a/ns/b",
        "spiffe://td/NS/a/sa/b",
        "spiffe://td/ns/a/SA/b",
    ] {
        assert_eq!(id(text).service_account(), None, "{text}");
    }
}

#[test]
fn an_id_made_for_a_service_account_reads_back() {
    let td = TrustDomain::parse("cluster.local").unwrap();
    let made = SpiffeId::for_service_account(&td, "shop", "back.end-1").unwrap();
    assert_eq!(made, id("spiffe://cluster.local/ns/shop/sa/back.end-1"));
    assert_eq!(made.service_account(), Some(("shop", "back.end-1")));
}

#[test]
fn names_that_would_change_the_path_make_no_id() {
    let td = TrustDomain::parse("cluster.local").unwrap();
    for (name, error) in [
        ("", SpiffeIdError::EmptySegment),
        ("..", SpiffeIdError::DotSegment),
        (".", SpiffeIdError::DotSegment),
        ("a/sa/b", SpiffeIdError::SegmentChar),
        ("a%2fb", SpiffeIdError::SegmentChar),
        ("a b", SpiffeIdError::SegmentChar),
        ("é", SpiffeIdError::SegmentChar),
        ("a\0", SpiffeIdError::SegmentChar),
    ] {
        assert_eq!(SpiffeId::for_service_account(&td, name, "b"), Err(error), "{name:?}");
        assert_eq!(SpiffeId::for_service_account(&td, "a", name), Err(error), "{name:?}");
    }
    let long = "a".repeat(MAX_ID_BYTES);
    assert_eq!(SpiffeId::for_service_account(&td, &long, "b"), Err(SpiffeIdError::TooLong));
}

#[test]
fn what_the_specification_forbids_is_refused_by_name() {
    for (text, error) in [
        ("", SpiffeIdError::Scheme),
        ("spiffe:/", SpiffeIdError::Scheme),
        ("spiffe:/td/a", SpiffeIdError::Scheme),
        ("https://td/a", SpiffeIdError::Scheme),
        (" spiffe://td/a", SpiffeIdError::Scheme),
        ("spiffé://td/a", SpiffeIdError::Scheme),
        ("spiffe://", SpiffeIdError::NoTrustDomain),
        ("spiffe:///ns/a", SpiffeIdError::NoTrustDomain),
        ("spiffe://td:443/a", SpiffeIdError::TrustDomainChar),
        ("spiffe://user@td/a", SpiffeIdError::TrustDomainChar),
        ("spiffe://td?x", SpiffeIdError::TrustDomainChar),
        ("spiffe://td#x", SpiffeIdError::TrustDomainChar),
        ("spiffe://t%64/a", SpiffeIdError::TrustDomainChar),
        ("spiffe://[::1]/a", SpiffeIdError::TrustDomainChar),
        ("spiffe://té/a", SpiffeIdError::TrustDomainChar),
        ("spiffe://td/", SpiffeIdError::EmptySegment),
        ("spiffe://td/a/", SpiffeIdError::EmptySegment),
        ("spiffe://td//a", SpiffeIdError::EmptySegment),
        ("spiffe://td/./a", SpiffeIdError::DotSegment),
        ("spiffe://td/a/..", SpiffeIdError::DotSegment),
        ("spiffe://td/a?b", SpiffeIdError::SegmentChar),
        ("spiffe://td/a#b", SpiffeIdError::SegmentChar),
        ("spiffe://td/%61", SpiffeIdError::SegmentChar),
        ("spiffe://td/a\n", SpiffeIdError::SegmentChar),
        ("spiffe://td/a:b", SpiffeIdError::SegmentChar),
        ("spiffe://td/\u{ff41}", SpiffeIdError::SegmentChar),
    ] {
        assert_eq!(refused(text), error, "{text:?}");
    }
}

#[test]
fn three_dots_are_a_segment_like_any_other() {
    assert_eq!(id("spiffe://td/.../a").segments().next(), Some("..."));
}

#[test]
fn lengths_are_bounded_to_the_byte() {
    let longest = format!("spiffe://{}/a", "t".repeat(MAX_TRUST_DOMAIN_BYTES));
    assert_eq!(id(&longest).trust_domain().as_str().len(), 255);
    let longer = format!("spiffe://{}/a", "t".repeat(MAX_TRUST_DOMAIN_BYTES + 1));
    assert_eq!(refused(&longer), SpiffeIdError::TrustDomainTooLong);

    let head = "spiffe://td/";
    let longest = format!("{head}{}", "a".repeat(MAX_ID_BYTES - head.len()));
    assert_eq!(id(&longest).as_str().len(), MAX_ID_BYTES);
    assert_eq!(refused(&format!("{longest}a")), SpiffeIdError::TooLong);
}

#[test]
fn a_trust_domain_is_a_bare_name_and_no_uri() {
    assert_eq!(TrustDomain::parse("").unwrap_err(), SpiffeIdError::NoTrustDomain);
    for name in ["spiffe://td", "td/", "td/a", "td:1", " td", "t d"] {
        assert_eq!(TrustDomain::parse(name).unwrap_err(), SpiffeIdError::TrustDomainChar, "{name}");
    }
}

/// Mostly near misses: the alphabet of ids plus what attackers try, in any order.
fn near_ids() -> impl Strategy<Value = String> {
    let body = proptest::collection::vec(
        prop_oneof![
            8 => "[a-zA-Z0-9._-]{1,6}",
            3 => Just("/".to_owned()),
            1 => Just("..".to_owned()),
            1 => "[/:@%?#\\[\\] éß\u{0}\u{7f}]",
        ],
        0..10,
    )
    .prop_map(|parts| parts.concat());
    let scheme = prop_oneof![
        8 => Just("spiffe://".to_owned()),
        1 => Just("SPIFFE://".to_owned()),
        1 => Just("sPiFfE://".to_owned()),
        1 => "[a-z]{0,7}:?/{0,3}",
    ];
    (scheme, body).prop_map(|(scheme, body)| scheme + &body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The oracle. Known difference, tested below and not met by these short texts: it takes ids of any length.
    #[test]
    fn the_spiffe_crate_agrees_on_every_id(text in near_ids()) {
        match (SpiffeId::parse(&text), spiffe::SpiffeId::new(&text)) {
            (Ok(ours), Ok(theirs)) => {
                prop_assert_eq!(ours.as_str(), theirs.to_string());
                prop_assert_eq!(ours.path(), theirs.path());
                let trust_domain = ours.trust_domain();
                prop_assert_eq!(trust_domain.as_str(), theirs.trust_domain_name());
            }
            (Err(_), Err(_)) => {}
            (ours, theirs) => prop_assert!(false, "{text:?}: ours {ours:?}, theirs {theirs:?}"),
        }
    }

    #[test]
    fn what_was_accepted_reads_back_as_itself(text in near_ids()) {
        if let Ok(once) = SpiffeId::parse(&text) {
            prop_assert_eq!(SpiffeId::parse(once.as_str()), Ok(once.clone()));
            let rebuilt = once.segments().fold(
                format!("spiffe://{}", once.trust_domain()), |text, segment| text + "/" + segment);
            prop_assert_eq!(rebuilt, once.as_str());
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        let _ = SpiffeId::parse(&text);
        let _ = TrustDomain::parse(&text);
    }
}

#[test]
fn unlike_the_spiffe_crate_an_overlong_id_and_a_uri_as_trust_domain_are_refused() {
    let long = format!("spiffe://td/{}", "a".repeat(MAX_ID_BYTES));
    assert!(spiffe::SpiffeId::new(&long).is_ok());
    assert!(SpiffeId::parse(&long).is_err());
    assert!(spiffe::TrustDomain::new("spiffe://td/any thing").is_ok());
    assert!(TrustDomain::parse("spiffe://td/any thing").is_err());
}
