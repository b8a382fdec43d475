//! What the parser refuses and how it says so; what it keeps.

use crate::{Action, FEATURE_LEVEL, Mode, ParseError, Policy, documents, parse, parse_document};

const FULL: &str = r#"# who may speak to the backend
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: frontend-to-backend
  namespace: shop
  labels: {team: shop}
  annotations: {why: "an order needs it"}
spec:
  selector: {matchLabels: {app: backend, app.kubernetes.io/part-of: shop}}
  action: Allow
  mode: Audit
  rules:
  - from:
    - spiffeIds: ["spiffe://cluster.local/ns/shop/sa/frontend"]
      serviceAccounts: [{namespace: shop, name: frontend}, {namespace: jobs, name: "*"}]
      namespaces: [shop, jobs]
      trustDomains: [cluster.local]
      ipBlocks: ["fd00::/8"]
    - trustDomains: ["*"]
      namespaces: ["*"]
    - unauthenticated: true
      ipBlocks: [10.0.0.0/8, 192.0.2.1/32]
    to:
    - ports: [8080, 8443]
    - ports: [9090]
  - from: []
  - {}
"#;

/// A policy whose `spec` holds `rules: [{rule}]`.
fn with_rule(rule: &str) -> String {
    format!(
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: a, namespace: n}}\nspec:\n  action: Allow\n  rules:\n  - {rule}\n"
    )
}

fn refused(text: &str) -> ParseError {
    parse("rules.yaml", text).unwrap_err()
}

/// Field and message of the refusal of a rule.
fn refused_rule(rule: &str) -> (String, String) {
    let error = refused(&with_rule(rule));
    assert!(error.line >= 7, "{error}");
    (error.field, error.message)
}

/// The page that people read is right: its example holds, and its tables name what there is.
#[test]
fn the_example_of_docs_rules_md_is_read_and_its_tables_name_every_label_and_word() {
    let page = include_str!("../../../docs/rules.md");
    let example = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let policies = parse("docs/rules.md", example).unwrap();
    assert_eq!(policies.iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop/frontend-to-backend"]);
    let row = |label: &str| page.lines().find(|line| line.starts_with(&format!("| `{label}` |"))).unwrap();
    for (label, words) in [
        (crate::LABEL_MTLS, crate::Mtls::ALL.iter().map(|word| word.as_str()).collect::<Vec<_>>()),
        (crate::LABEL_POSTURE, crate::Posture::ALL.iter().map(|word| word.as_str()).collect()),
        (crate::LABEL_EGRESS, crate::Egress::ALL.iter().map(|word| word.as_str()).collect()),
    ] {
        words.iter().for_each(|word| assert!(row(label).contains(&format!("`{word}`")), "{label}: {word}"));
    }
}

#[test]
fn everything_a_policy_may_say_is_read() {
    let policies = parse("rules.yaml", FULL).unwrap();
    assert_eq!(policies.len(), 1);
    let policy = &policies[0];
    assert_eq!(policy.to_string(), "shop/frontend-to-backend");
    assert_eq!((policy.action(), policy.mode()), (Action::Allow, Mode::Audit));
    assert_eq!(policy.feature_level(), 1);
    assert!(policy.feature_level() <= FEATURE_LEVEL);
}

#[test]
fn json_says_all_that_the_text_said() {
    let policy = parse("rules.yaml", FULL).unwrap().remove(0);
    let json = policy.to_json();
    assert_eq!(Policy::from_json(&json).unwrap(), policy);
    assert_eq!(parse("json is yaml", &json).unwrap(), vec![policy]);
    assert_eq!(
        json,
        concat!(
            r#"{"apiVersion":"policy.countersign.dev/v1alpha1","kind":"AuthorizationPolicy","#,
            r#""metadata":{"name":"frontend-to-backend","namespace":"shop"},"spec":{"#,
            r#""selector":{"matchLabels":{"app":"backend","app.kubernetes.io/part-of":"shop"}},"#,
            r#""action":"Allow","mode":"Audit","rules":[{"from":["#,
            r#"{"spiffeIds":["spiffe://cluster.local/ns/shop/sa/frontend"],"#,
            r#""serviceAccounts":[{"namespace":"shop","name":"frontend"},{"namespace":"jobs","name":"*"}],"#,
            r#""namespaces":["shop","jobs"],"trustDomains":["cluster.local"],"ipBlocks":["fd00::/8"]},"#,
            r#"{"namespaces":["*"],"trustDomains":["*"]},"#,
            r#"{"unauthenticated":true,"ipBlocks":["10.0.0.0/8","192.0.2.1/32"]}],"#,
            r#""to":[{"ports":[8080,8443]},{"ports":[9090]}]},{"from":[]},{}]}}"#
        )
    );
}

#[test]
fn an_error_names_file_line_column_and_field() {
    let text = FULL.replace("8443", "70000");
    assert_eq!(
        refused(&text).to_string(),
        "rules.yaml:25:21: spec.rules[0].to[0].ports[1]: 70000 is not a port (1-65535)"
    );
    let second = format!("---\n{FULL}---\n{text}");
    assert_eq!(refused(&second).line, 1 + 28 + 1 + 25);
}

#[test]
fn json_errors_name_the_field() {
    let error = |json: &str| Policy::from_json(json).unwrap_err().to_string();
    let json = parse("t", FULL).unwrap()[0].to_json();
    assert_eq!(error(&json.replace("8443", "0")), "json: spec.rules[0].to[0].ports[1]: 0 is not a port (1-65535)");
    assert_eq!(
        error(&json.replace(r#""mode":"Audit""#, r#""mode":"Audit","mode":"Enforce""#)),
        "json: spec.mode: is given twice"
    );
    assert_eq!(error("{"), "json:1:1: EOF while parsing an object at line 1 column 1");
    assert_eq!(error(""), "json:1:0: EOF while parsing a value at line 1 column 0");
    assert!(error(&"[".repeat(10_000)).contains("recursion limit"));
    assert!(error(&" ".repeat(5_000_000)).contains("longer than"));
}

#[test]
fn unknown_fields_are_refused_everywhere() {
    for (good, bad, field) in [
        ("spec:", "status: {}\nspec:", "status"),
        ("  name: f", "  uid: x\n  name: f", "metadata.uid"),
        ("  action:", "  actions: Allow\n  action:", "spec.actions"),
        ("{matchLabels:", "{matchExpressions: [], matchLabels:", "spec.selector.matchExpressions"),
        ("  - from: []", "  - from: []\n    when: []", "spec.rules[1].when"),
        ("    - trustDomains", "    - principals: []\n      trustDomains", "spec.rules[0].from[1].principals"),
        (
            "{namespace: shop, name: frontend}",
            "{namespace: shop, name: frontend, x: y}",
            "spec.rules[0].from[0].serviceAccounts[0].x",
        ),
        ("    - ports: [9090]", "    - ports: [9090]\n      methods: [GET]", "spec.rules[0].to[1].methods"),
    ] {
        let error = refused(&FULL.replacen(good, bad, 1));
        assert_eq!(error.field, field);
        assert!(error.message.starts_with("unknown field (known here: "), "{error}");
        assert!(error.line > 0 && error.column > 0);
    }
}

#[test]
fn required_fields_are_missed_by_name() {
    for (line, field) in [
        ("apiVersion: policy.countersign.dev/v1alpha1\n", "apiVersion"),
        ("kind: AuthorizationPolicy\n", "kind"),
        ("  name: frontend-to-backend\n", "metadata.name"),
        ("  namespace: shop\n", "metadata.namespace"),
        ("  action: Allow\n", "spec.action"),
    ] {
        let error = refused(&FULL.replacen(line, "", 1));
        assert_eq!((error.field.as_str(), error.message.as_str()), (field, "is required"));
    }
    assert_eq!(refused("apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n").field, "metadata");
    let text = with_rule("{}").replace("  rules:\n  - {}\n", "");
    assert_eq!(refused(&text).field, "spec.rules");
}

#[test]
fn other_kinds_and_versions_are_refused() {
    let error = refused(&FULL.replace("kind: AuthorizationPolicy", "kind: Service"));
    assert_eq!(error.to_string(), "rules.yaml:3:7: kind: \"Service\" is not AuthorizationPolicy");
    let error = refused(&FULL.replace("v1alpha1", "v1"));
    assert_eq!(error.field, "apiVersion");
    assert_eq!(refused("just words").message, "is text where a map is needed");
    assert_eq!(refused("- a").message, "is a list where a map is needed");
}

#[test]
fn words_are_taken_only_as_spelled() {
    for (good, bad, field) in [
        ("action: Allow", "action: allow", "spec.action"),
        ("action: Allow", "action: ALLOW", "spec.action"),
        ("action: Allow", "action: Audit", "spec.action"),
        ("mode: Audit", "mode: audit", "spec.mode"),
        ("mode: Audit", "mode: \"\"", "spec.mode"),
    ] {
        assert_eq!(refused(&FULL.replace(good, bad)).field, field);
    }
    let error = refused(&FULL.replace("action: Allow", "action: allow"));
    assert_eq!(error.message, "\"allow\" is not Allow or Deny");
}

#[test]
fn an_empty_matcher_is_refused_but_for_from() {
    for (rule, field) in [
        ("to: []", "spec.rules[0].to"),
        ("to: [{}]", "spec.rules[0].to[0]"),
        ("to: [{ports: []}]", "spec.rules[0].to[0].ports"),
        ("from: [{}]", "spec.rules[0].from[0]"),
        ("from: [{spiffeIds: []}]", "spec.rules[0].from[0].spiffeIds"),
        ("from: [{serviceAccounts: []}]", "spec.rules[0].from[0].serviceAccounts"),
        ("from: [{namespaces: []}]", "spec.rules[0].from[0].namespaces"),
        ("from: [{trustDomains: []}]", "spec.rules[0].from[0].trustDomains"),
        ("from: [{unauthenticated: true, ipBlocks: []}]", "spec.rules[0].from[0].ipBlocks"),
    ] {
        let (at, message) = refused_rule(rule);
        assert_eq!(at, field);
        assert!(message.starts_with("is empty: "), "{message}");
    }
    assert!(parse("t", &with_rule("from: []")).is_ok());
    let error = refused(&FULL.replace("{app: backend, app.kubernetes.io/part-of: shop}", "{}"));
    assert_eq!(error.field, "spec.selector.matchLabels");
    assert_eq!(
        refused(
            &FULL.replace("selector: {matchLabels: {app: backend, app.kubernetes.io/part-of: shop}}", "selector: {}")
        )
        .field,
        "spec.selector.matchLabels"
    );
    let text = with_rule("{}").replace("  rules:\n  - {}\n", "  rules: []\n");
    assert_eq!(refused(&text).field, "spec.rules");
}

#[test]
fn a_field_without_a_value_is_neither_omitted_nor_empty() {
    for (rule, field) in [
        ("from:", "spec.rules[0].from"),
        ("from: ~", "spec.rules[0].from"),
        ("to: null", "spec.rules[0].to"),
        ("from: [{namespaces: }]", "spec.rules[0].from[0].namespaces"),
        ("from: [{namespaces: [shop, ]}, ]", ""),
        ("from: [{namespaces: [null]}]", "spec.rules[0].from[0].namespaces[0]"),
        ("from: [null]", "spec.rules[0].from[0]"),
        ("", "spec.rules[0]"),
    ] {
        if field.is_empty() {
            assert!(parse("t", &with_rule(rule)).is_ok(), "a trailing comma is no entry");
            continue;
        }
        let (at, message) = refused_rule(rule);
        assert_eq!(at, field);
        assert!(message.starts_with("has no value where "), "{message}");
    }
}

#[test]
fn a_star_means_something_only_where_it_is_said_to() {
    for good in [
        r#"from: [{trustDomains: ["*"]}]"#,
        r#"from: [{namespaces: ["*"]}]"#,
        r#"from: [{serviceAccounts: [{namespace: a, name: "*"}]}]"#,
    ] {
        parse("t", &with_rule(good)).unwrap();
    }
    for bad in [
        r#"from: [{spiffeIds: ["*"]}]"#,
        r#"from: [{spiffeIds: ["spiffe://td/ns/*/sa/a"]}]"#,
        r#"from: [{spiffeIds: ["spiffe://*/ns/a/sa/a"]}]"#,
        r#"from: [{serviceAccounts: [{namespace: "*", name: a}]}]"#,
        r#"from: [{serviceAccounts: [{namespace: "*", name: "*"}]}]"#,
        r#"from: [{serviceAccounts: [{namespace: a, name: "a*"}]}]"#,
        r#"from: [{serviceAccounts: ["*"]}]"#,
        r#"from: [{namespaces: ["*", a]}]"#,
        r#"from: [{namespaces: [a, "*"]}]"#,
        r#"from: [{namespaces: ["a*"]}]"#,
        r#"from: [{trustDomains: ["*", "*"]}]"#,
        r#"from: [{trustDomains: ["*.local"]}]"#,
        r#"from: "*""#,
        r#"from: ["*"]"#,
        r#"to: ["*"]"#,
        r#"to: [{ports: ["*"]}]"#,
        r#"from: [{unauthenticated: true, ipBlocks: ["*"]}]"#,
    ] {
        let (field, _) = refused_rule(bad);
        assert!(field.starts_with("spec.rules[0]."), "{bad}");
    }
}

#[test]
fn names_that_nobody_can_carry_are_refused() {
    for bad in [
        "from: [{namespaces: [Shop]}]",
        "from: [{namespaces: [a.b]}]",
        "from: [{namespaces: [\"\"]}]",
        "from: [{serviceAccounts: [{namespace: a, name: B}]}]",
        "from: [{serviceAccounts: [{namespace: a}]}]",
        "from: [{serviceAccounts: [{name: a}]}]",
        "from: [{trustDomains: [\"spiffe://td\"]}]",
        "from: [{trustDomains: [TD]}]",
        "from: [{spiffeIds: [\"spiffe://td\"]}]",
        "from: [{spiffeIds: [\"spiffe://td/\"]}]",
        "from: [{spiffeIds: [\"spiffe://td/a//b\"]}]",
        "from: [{spiffeIds: [\"td/a\"]}]",
        "from: [{spiffeIds: [\"spiffe://TD/a\"]}]",
    ] {
        refused_rule(bad);
    }
    for (good, bad) in [
        ("namespace: shop\n", "namespace: Shop\n"),
        ("name: frontend-to-backend", "name: frontend_to_backend"),
        ("app: backend", "\"app/a/b\": backend"),
        ("app: backend", "app: \"back end\""),
    ] {
        refused(&FULL.replacen(good, bad, 1));
    }
}

#[test]
fn ports_are_whole_numbers_in_range() {
    for bad in ["0", "65536", "-1", "99999999999999999999", "80.5", "1e3", "\"80\"", "0777", "true", "http", "[80]"] {
        let (field, _) = refused_rule(&format!("to: [{{ports: [{bad}]}}]"));
        assert_eq!(field, "spec.rules[0].to[0].ports[0]", "{bad}");
    }
    parse("t", &with_rule("to: [{ports: [1, 65535]}]")).unwrap();
}

#[test]
fn text_that_yaml_takes_for_something_else_must_be_quoted() {
    let (_, message) = refused_rule("from: [{namespaces: [123]}]");
    assert_eq!(message, "is a number where text is needed: put it in quotes");
    refused_rule("from: [{namespaces: [true]}]");
    refused_rule("from: [{trustDomains: [1.5]}]");
    parse("t", &with_rule("from: [{namespaces: [\"123\", \"true\", no]}]")).unwrap();
}

#[test]
fn ip_blocks_are_canonical_networks() {
    let message = |block: &str| refused_rule(&format!("from: [{{ipBlocks: [\"{block}\"]}}]")).1;
    assert_eq!(message("10.1.2.3/8"), "\"10.1.2.3/8\" has host bits set: write 10.0.0.0/8");
    assert_eq!(message("fd00::1/64"), "\"fd00::1/64\" has host bits set: write fd00::/64");
    assert_eq!(message("10.0.0.1"), "\"10.0.0.1\" has no prefix length: write 10.0.0.1/32");
    assert_eq!(message("::1"), "\"::1\" has no prefix length: write ::1/128");
    assert_eq!(message("::ffff:10.0.0.0/104"), "\"::ffff:10.0.0.0/104\" is IPv4 in IPv6's clothes: write 10.0.0.0/8");
    for bad in [
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0/8",
        "010.0.0.0/8",
        "a.b.c.d/8",
        "",
        "10.0.0.0/8 ",
        "10.0.0.0/08",
        "10.0.0.0/+8",
        "10.0.0.0/",
        "10.0.0.0/8/8",
        "/8",
    ] {
        assert!(message(bad).contains("is not a CIDR"), "{bad}");
    }
    parse("t", &with_rule("from: [{ipBlocks: [0.0.0.0/0, \"::/0\", \"::1/128\", \"fd00::/8\"]}]")).unwrap();
}

#[test]
fn unauthenticated_says_from_where_and_nothing_else() {
    let (field, message) = refused_rule("from: [{unauthenticated: true}]");
    assert_eq!(field, "spec.rules[0].from[0].unauthenticated");
    assert!(message.starts_with("needs `ipBlocks`"), "{message}");
    for other in [
        "namespaces: [a]",
        "trustDomains: [\"*\"]",
        "spiffeIds: [\"spiffe://td/a\"]",
        "serviceAccounts: [{namespace: a, name: b}]",
    ] {
        let (_, message) = refused_rule(&format!("from: [{{unauthenticated: true, ipBlocks: [10.0.0.0/8], {other}}}]"));
        assert!(message.starts_with("cannot stand beside `unauthenticated`"), "{message}");
    }
    refused_rule("from: [{unauthenticated: false, ipBlocks: [10.0.0.0/8]}]");
    refused_rule("from: [{unauthenticated: \"true\", ipBlocks: [10.0.0.0/8]}]");
    refused_rule("from: [{unauthenticated: yes, ipBlocks: [10.0.0.0/8]}]");
    let deny = with_rule("from: [{unauthenticated: true, ipBlocks: [10.0.0.0/8]}]").replace("Allow", "Deny");
    parse("t", &deny).unwrap();
}

#[test]
fn a_key_given_twice_is_refused() {
    let error = refused(&FULL.replacen("  mode: Audit", "  mode: Audit\n  mode: Enforce", 1));
    assert_eq!(error.to_string(), "rules.yaml:13:3: mode: is given twice");
    let error = refused(&FULL.replacen("app: backend", "app: backend, app: frontend", 1));
    assert_eq!((error.line, error.message.as_str()), (10, "is given twice"));
}

#[test]
fn a_policy_defined_twice_is_refused() {
    let error = refused(&format!("{FULL}---\n{FULL}"));
    assert_eq!(
        error.to_string(),
        "rules.yaml:31:1: shop/frontend-to-backend is already defined by the document at line 1"
    );
}

#[test]
fn yaml_cleverness_is_refused() {
    let message = |rule: &str| refused(&with_rule(rule)).message;
    assert!(message("from: &a [{namespaces: [a]}]").starts_with("anchors (&) and aliases (*)"));
    assert!(message("from: [{namespaces: [*]}]").ends_with("is a \"*\" without quotes?"));
    assert!(message("{<<: {to: [{ports: [80]}]}}").contains("merge keys"));
    refused(&with_rule("from: !!set {a, b}"));
    refused(&with_rule("from: !custom []"));
    let deep = format!("from: {}{}", "[".repeat(40), "]".repeat(40));
    assert_eq!(message(&deep), "is nested deeper than 16");
    let wide = format!("from: [{}]", "a,".repeat(100_001));
    assert!(message(&wide).contains("more than 100000 values"));
}

#[test]
fn lists_are_bounded() {
    let ports = vec!["80"; crate::MAX_ENTRIES + 1].join(",");
    let (field, message) = refused_rule(&format!("to: [{{ports: [{ports}]}}]"));
    assert_eq!((field.as_str(), message.as_str()), ("spec.rules[0].to[0].ports", "has more than 4096 entries"));
    let rules = with_rule("{}") + &"  - {}\n".repeat(crate::MAX_RULES);
    assert_eq!(refused(&rules).message, "has more than 1024 entries");
}

#[test]
fn what_is_not_yaml_says_where() {
    for (text, line) in [
        ("kind: [a\n", 2),
        ("a: b\n c: d\n", 2),
        ("a: \"b\n", 2),
        ("a: b\n---\nb: [\n", 4),
        ("%YAML 1.2\n", 2),
        ("a: \u{0}\n", 1),
    ] {
        let error = refused(text);
        assert!(error.field.is_empty() && !error.message.is_empty(), "{error}");
        assert!((1..=line).contains(&error.line), "{text:?}: {error}");
        assert!(error.column > 0, "{error}");
    }
}

#[test]
fn what_is_quoted_from_the_text_is_bounded_and_printable() {
    let long = "x".repeat(100_000);
    for text in [
        with_rule(&format!("from: [{{namespaces: [\"{long}\"]}}]")),
        with_rule(&format!("{{\"{long}\": 1}}")),
        with_rule("from: [{namespaces: [\"a\\e[31m\\nb\"]}]"),
        with_rule("{\"\\e[31m\\r\": 1}"),
        long,
    ] {
        let shown = refused(&text).to_string();
        assert!(shown.len() < 400, "{}", shown.len());
        assert!(!shown.contains(|c: char| c.is_control()), "{shown:?}");
    }
}

#[test]
fn a_caller_with_several_kinds_sorts_documents_first() {
    let text = format!("apiVersion: v1\nkind: Namespace\n---\n{FULL}");
    let found = documents("all.yaml", &text).unwrap();
    assert_eq!(found.len(), 2);
    assert!(!found[0].is_policy() && found[1].is_policy());
    assert_eq!((found[0].api_version.as_str(), found[0].kind.as_str()), ("v1", "Namespace"));
    assert_eq!(parse_document("all.yaml", &found[1]).unwrap().name(), "frontend-to-backend");
    assert_eq!(parse_document("all.yaml", &found[0]).unwrap_err().field, "apiVersion");
    let bad = text.replace("8443", "70000");
    let found = documents("all.yaml", &bad).unwrap();
    assert_eq!(parse_document("all.yaml", &found[1]).unwrap_err().line, 3 + 25);
}

#[test]
fn selectors_bind_by_namespace_and_all_labels() {
    let policy = &parse("t", FULL).unwrap()[0];
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let part = ("app.kubernetes.io/part-of", "shop");
    assert!(policy.binds("shop", &labels(&[("app", "backend"), part, ("x", "y")])));
    assert!(!policy.binds("shop", &labels(&[("app", "backend")])));
    assert!(!policy.binds("shop", &labels(&[("app", "frontend"), part])));
    assert!(!policy.binds("jobs", &labels(&[("app", "backend"), part])));
    let whole = &parse("t", &with_rule("{}")).unwrap()[0];
    assert!(whole.binds("n", &labels(&[])) && !whole.binds("m", &labels(&[])));
}
