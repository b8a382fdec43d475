use super::*;

fn good() -> Review {
    let value = |text: &str| vec![text.to_owned()];
    Review {
        authenticated: true,
        error: None,
        audiences: value("countersign-ca"),
        username: "system:serviceaccount:shop:frontend".to_owned(),
        groups: ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"]
            .map(str::to_owned)
            .into(),
        extra: BTreeMap::from([
            (POD_NAME.to_owned(), value("frontend-7d9-x2x")),
            (POD_UID.to_owned(), value("8c3f9e2a-1111-2222-3333-444455556666")),
            (CREDENTIAL_ID.to_owned(), value("JTI=7ee52be0-9045-4653-aa5e-0da57b8dccdc")),
            ("authentication.kubernetes.io/node-name".to_owned(), value("node-a")),
        ]),
    }
}

fn changed(change: impl FnOnce(&mut Review)) -> Result<Caller, AttestError> {
    let mut review = good();
    change(&mut review);
    judge(review, "countersign-ca")
}

#[test]
fn account_pod_and_token_id_come_from_the_review() {
    let caller = changed(|_| {}).unwrap();
    assert_eq!((caller.namespace(), caller.service_account()), ("shop", "frontend"));
    assert_eq!(caller.pod_name(), "frontend-7d9-x2x");
    assert_eq!(caller.pod_uid(), "8c3f9e2a-1111-2222-3333-444455556666");
    assert_eq!(caller.token_id(), Some("7ee52be0-9045-4653-aa5e-0da57b8dccdc"));
    let older = changed(|review| drop(review.extra.remove(CREDENTIAL_ID))).unwrap();
    assert_eq!(older.token_id(), None, "an API server before 1.32 names none");
}

#[test]
fn what_is_not_authenticated_is_refused_in_the_api_servers_words() {
    let refused = |change: fn(&mut Review)| changed(change).unwrap_err();
    assert_eq!(refused(|review| review.authenticated = false), AttestError::Refused("no reason was given".to_owned()));
    let gone = refused(|review| {
        review.authenticated = false;
        review.error = Some("[invalid bearer token, pod has been deleted]".to_owned());
    });
    assert_eq!(gone, AttestError::Refused("[invalid bearer token, pod has been deleted]".to_owned()));
    let unsure = refused(|review| review.error = Some("some authenticator failed".to_owned()));
    assert_eq!(unsure.label(), "token_refused", "authenticated and yet an error: not believed");
    let nothing = judge(Review::default(), "countersign-ca").unwrap_err();
    assert_eq!(nothing.label(), "token_refused");
}

#[test]
fn only_our_audience_and_no_fallback() {
    for audiences in [vec![], vec!["vault"], vec!["countersign-ca", "vault"], vec!["https://kubernetes.default.svc"]] {
        let audiences: Vec<String> = audiences.into_iter().map(str::to_owned).collect();
        let refused = changed(|review| review.audiences = audiences.clone()).unwrap_err();
        assert!(matches!(refused, AttestError::Audience { .. }), "{audiences:?}: {refused}");
    }
}

#[test]
fn a_token_that_is_bound_to_no_pod_is_refused() {
    for key in [POD_NAME, POD_UID] {
        for values in [None, Some(vec![]), Some(vec![""]), Some(vec!["a", "b"])] {
            let refused = changed(|review| match &values {
                None => drop(review.extra.remove(key)),
                Some(values) => {
                    let values = values.iter().map(|value| (*value).to_owned()).collect();
                    review.extra.insert(key.to_owned(), values);
                }
            });
            assert_eq!(refused.unwrap_err().label(), "token_unbound", "{key} {values:?}");
        }
    }
}

#[test]
fn whoever_is_no_service_account_is_refused() {
    for username in ["", "alice", "system:node:a", "system:serviceaccount:shop", "system:serviceaccount:a:b:c"] {
        let refused = changed(|review| review.username = username.to_owned()).unwrap_err();
        assert_eq!(refused.label(), "token_subject", "{username:?}");
    }
    for kept in [&[][..], &["system:serviceaccounts"], &["system:serviceaccounts:shop"]] {
        let refused = changed(|review| review.groups.retain(|group| kept.contains(&group.as_str())));
        assert_eq!(refused.unwrap_err(), AttestError::Groups, "a name alone can be had by a certificate too: {kept:?}");
    }
    let other = changed(|review| review.groups[1] = "system:serviceaccounts:bank".to_owned());
    assert_eq!(other.unwrap_err(), AttestError::Groups);
}

#[test]
fn names_that_kubernetes_does_not_allow_are_refused() {
    for name in ["../x", "UPPER", "a/b", "-a", &"a".repeat(254)] {
        let refused = changed(|review| {
            review.extra.insert(POD_NAME.to_owned(), vec![name.to_owned()]);
        });
        assert_eq!(refused.unwrap_err(), AttestError::Name("pod name"), "{name}");
    }
}
