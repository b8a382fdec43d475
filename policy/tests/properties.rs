//! What must hold of all policies and all attempts.
#![allow(clippy::unwrap_used, missing_docs)]

mod reference;

use countersign_policy::{Action, Decision, Modes, Policy, PolicySet, Received, decide, documents, parse, trace};
use proptest::collection::vec;
use proptest::prelude::*;
use reference::{AnAttempt, OWN, Verdict, attempt, modes, policies, policy, received, verdict};

fn compile(modes: Modes, received: Vec<Received>) -> PolicySet {
    PolicySet::compile(OWN, modes, "r1", received)
}

fn decided(set: &PolicySet, attempt: &AnAttempt) -> Decision {
    attempt.ask(|attempt| decide(set, attempt))
}

fn as_verdict(decision: &Decision) -> Verdict {
    let audit = decision.audit().iter();
    Verdict {
        allowed: decision.allowed(),
        reason: decision.reason().label(),
        rule: decision.rule().map(ToString::to_string),
        audit: audit.map(|a| (a.rule.to_string(), a.action == Action::Deny)).collect(),
    }
}

/// Text from the vocabulary of policies and of YAML, mostly nonsense.
fn soup() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        8 => prop::sample::select(&[
            "apiVersion: policy.countersign.dev/v1alpha1\n", "kind: AuthorizationPolicy\n",
            "metadata: {name: a, namespace: b}\n", "spec:\n", "  action: Allow\n", "  rules:\n", "  - ",
            "from:", "to:", "ports:", "namespaces:", "ipBlocks:", "unauthenticated: true", "[", "]", "{", "}",
            ",", ":", " ", "\n", "\r\n", "\r", "\t", "---\n", "---", "...\n", "--- ", "- ", "# c\n", "%YAML 1.2\n",
            "&a", "*a", "*", "!!str ", "!x ", "<<: ", "\"", "'", "|\n", ">\n", "? ", "~", "null", "80", "70000",
            "0x50", "1e400", ".nan", "a", "é", "\u{feff}", "\u{2028}", "\u{85}", "\u{0}",
        ][..]).prop_map(String::from),
        1 => any::<String>(),
    ];
    vec(word, 0..40).prop_map(|words| words.concat())
}

/// Well-formed documents between all the markers and line breaks that YAML knows.
fn stream() -> impl Strategy<Value = String> {
    let document = prop::sample::select(
        &[
            "",
            "# c",
            "a: 1",
            "- x\n- y",
            "b: |\n  ---\n  ...",
            "q: 'r\n  --- s'",
            "[a,\n b]",
            "~",
            "w ---",
            "  # c\na: ---x",
        ][..],
    );
    let marker = prop::sample::select(
        &[
            "---\n",
            "--- ",
            "---\t# c\n",
            "...\n",
            "... # c\n---\n",
            "...\n%YAML 1.2\n---\n",
            "---\n---\n",
            "...\n# c\n",
        ][..],
    );
    let line_break = prop::sample::select(&["\n", "\r\n", "\r"][..]);
    (vec((marker, document), 0..6), line_break).prop_map(|(parts, line_break)| {
        let text: String = parts.iter().map(|(marker, document)| format!("{marker}{document}\n")).collect();
        text.replace('\n', line_break)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn decide_is_what_the_naive_reference_says(
        modes in modes(),
        policies in policies(),
        attempts in vec(attempt(), 12),
    ) {
        let set = compile(modes, received(&policies));
        for attempt in attempts {
            prop_assert_eq!(as_verdict(&decided(&set, &attempt)), verdict(modes, &policies, &attempt), "{:?}", attempt);
        }
    }

    #[test]
    fn order_never_matters(
        modes in modes(),
        (policies, shuffled) in policies().prop_map(|p| received(&p)).prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle())),
        attempts in vec(attempt(), 8),
    ) {
        let (set, other) = (compile(modes, policies), compile(modes, shuffled));
        for attempt in attempts {
            prop_assert_eq!(decided(&set, &attempt), decided(&other, &attempt));
        }
    }

    #[test]
    fn order_of_rules_in_a_policy_never_admits(
        modes in modes(),
        policies in policies(),
        attempts in vec(attempt(), 8),
    ) {
        let mut turned = policies.clone();
        turned.iter_mut().for_each(|policy| policy.rules.reverse());
        let (set, other) = (compile(modes, received(&policies)), compile(modes, received(&turned)));
        for attempt in attempts {
            prop_assert_eq!(decided(&set, &attempt).allowed(), decided(&other, &attempt).allowed());
        }
    }

    #[test]
    fn adding_a_deny_never_opens(
        modes in modes(),
        mut policies in policies(),
        mut deny in policy(),
        attempts in vec(attempt(), 12),
    ) {
        let before = compile(modes, received(&policies));
        deny.deny = true;
        policies.push(deny);
        let after = compile(modes, received(&policies));
        for attempt in attempts {
            prop_assert!(decided(&before, &attempt).allowed() || !decided(&after, &attempt).allowed(), "{:?}", attempt);
            prop_assert_eq!(before.opens_unauthenticated(attempt.port), after.opens_unauthenticated(attempt.port));
        }
    }

    #[test]
    fn an_allow_that_is_audited_or_unknown_admits_nobody(
        modes in modes(),
        mut policies in policies(),
        mut allow in policy(),
        attempts in vec(attempt(), 12),
    ) {
        let before = compile(modes, received(&policies));
        allow.deny = false;
        allow.audit = true;
        policies.push(allow);
        let after = compile(modes, received(&policies));
        for attempt in attempts {
            prop_assert_eq!(decided(&before, &attempt).allowed(), decided(&after, &attempt).allowed());
            prop_assert_eq!(before.opens_unauthenticated(attempt.port), after.opens_unauthenticated(attempt.port));
        }
    }

    #[test]
    fn plaintext_is_admitted_under_strict_only_where_a_rule_opens(
        policies in policies(),
        modes in modes(),
        mut attempt in attempt(),
    ) {
        attempt.id = None;
        let set = compile(modes, received(&policies));
        let strict = modes.mtls == countersign_policy::Mtls::Strict;
        if strict && decided(&set, &attempt).allowed() {
            prop_assert!(set.opens_unauthenticated(attempt.port));
        }
    }

    #[test]
    fn a_port_that_no_rule_speaks_of_admits_nobody(
        policies in policies(),
        attempts in vec(attempt(), 12),
    ) {
        let set = compile(Modes::default(), received(&policies));
        for attempt in attempts {
            prop_assert!(set.speaks_of(attempt.port) || !decided(&set, &attempt).allowed());
        }
    }

    #[test]
    fn a_trace_says_what_the_decision_says(
        modes in modes(),
        policies in policies(),
        attempt in attempt(),
    ) {
        let set = compile(modes, received(&policies));
        let decision = decided(&set, &attempt);
        let trace = attempt.ask(|attempt| trace(&set, attempt));
        prop_assert_eq!(trace.allowed, decision.allowed());
        prop_assert_eq!(trace.reason, decision.reason());
        let matched = |action, mode| {
            let mut tried = trace.tried.iter();
            tried.find(|t| t.matched && t.action == action && t.mode == mode).map(|t| t.rule.clone())
        };
        use countersign_policy::{Mode::Enforce, Reason};
        let by_rules = matched(Action::Deny, Enforce).or(matched(Action::Allow, Enforce));
        if decision.reason() != Reason::NotEvaluated {
            prop_assert_eq!(by_rules, decision.rule().map(ToString::to_string));
        }
        for tried in &trace.tried {
            prop_assert_eq!(tried.matched, tried.failed.is_none());
            prop_assert_eq!(tried.matched, tried.held == tried.asked);
        }
        if let Some(nearest) = trace.nearest() {
            prop_assert!(!nearest.matched && nearest.action == Action::Allow && decision.rule().is_none());
        }
        prop_assert!(!trace.to_string().is_empty());
    }

    #[test]
    fn a_policy_survives_the_stream(policies in policies()) {
        for (at, policy) in policies.iter().enumerate() {
            let policy = policy.parsed(at);
            let json = policy.to_json();
            prop_assert_eq!(&Policy::from_json(&json).unwrap(), &policy);
            prop_assert_eq!(&parse("json", &json).unwrap()[0], &policy);
            let deny = policy.action() == Action::Deny;
            let (received, error) = Received::from_wire("n", policy.name(), deny, policy.feature_level(), &json);
            prop_assert_eq!((received, error), (Received::Known(policy), None));
        }
    }

    #[test]
    fn many_documents_are_read_as_each_alone(policies in policies()) {
        let texts: Vec<_> = policies.iter().enumerate().map(|(at, p)| p.text(at)).collect();
        let alone: Vec<_> = policies.iter().enumerate().map(|(at, p)| p.parsed(at)).collect();
        prop_assert_eq!(parse("all", &texts.join("---\n")).unwrap(), alone);
    }

    #[test]
    fn parsing_never_panics_and_errors_fit_a_line(text in prop_oneof![soup(), any::<String>()]) {
        for error in [parse("f", &text).err(), Policy::from_json(&text).err()].into_iter().flatten() {
            let shown = error.to_string();
            prop_assert!(!shown.contains(char::is_control) && shown.len() < 2000, "{:?}", shown);
        }
    }

    #[test]
    fn a_policy_with_a_byte_changed_never_panics(
        policy in policy(),
        at in any::<prop::sample::Index>(),
        byte in any::<char>(),
    ) {
        let mut text: Vec<char> = policy.text(0).chars().collect();
        let at = at.index(text.len());
        text[at] = byte;
        let _ = parse("f", &text.into_iter().collect::<String>());
    }

    #[test]
    fn documents_are_those_that_a_yaml_parser_sees(text in prop_oneof![1 => soup(), 3 => stream()]) {
        // A parser that gives scalars a type refuses some that we leave as they are, such as the number 1e400: then it sees nothing.
        let whole = serde_saphyr::from_multiple::<serde_saphyr::Spanned<serde::de::IgnoredAny>>(&text);
        if let (Ok(found), Ok(whole)) = (documents("f", &text), whole) {
            prop_assert_eq!(found.len(), whole.len(), "{:?}", text);
        }
    }
}
