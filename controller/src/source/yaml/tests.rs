use super::*;
use crate::testing::{MESH, SERVICES, objects, policy, workload, workloads};

fn refused(text: &str) -> String {
    parse("f.yaml", text, &Limits::default()).unwrap_err().to_string()
}

#[test]
fn every_kind_is_read() {
    let all = [MESH, &workloads(), SERVICES, &policy("shop", "p", None, "Deny")].join("---\n");
    let kinds: Vec<_> = objects("f.yaml", &all).iter().map(ToString::to_string).collect();
    assert_eq!(
        kinds,
        [
            "Mesh mesh",
            "Namespace shop",
            "Workload shop/frontend",
            "Workload shop/backend-1",
            "Workload shop/backend-2",
            "Workload shop/database",
            "Workload other/stranger",
            "Service shop/backend",
            "Service shop/database",
            "Service shop/elsewhere",
            "AuthorizationPolicy shop/p",
        ]
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let read = objects("f.yaml", SERVICES);
    let Kind::Service(service) = &read[0].kind else { panic!() };
    assert_eq!((service.local_only, service.affinity_seconds), (false, 0));
    assert_eq!(service.ports[1], ServicePort { port: 9090, target_port: Some(9090) });
    let Kind::Service(service) = &read[1].kind else { panic!() };
    assert_eq!((service.local_only, service.affinity_seconds), (true, 10_800));
    let affinity = "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}";
    let read = objects("f.yaml", &SERVICES.replace("  sessionAffinity: ClientIP", affinity));
    let Kind::Service(service) = &read[1].kind else { panic!() };
    assert_eq!(service.affinity_seconds, 60);
    let read = objects("f.yaml", &workload("shop", "a", "a", "10.0.0.1", "fd77::1", "").replace(", node: node-a", ""));
    let Kind::Workload(workload) = &read[0].kind else { panic!() };
    assert!(workload.ready && workload.node.is_empty());
}

#[test]
fn each_mistake_is_named_by_line_column_and_field() {
    let one = workload("shop", "a", "a", "10.0.0.1", "fd77::1", "");
    let service = SERVICES.split("---").next().unwrap();
    let mut wrong = Vec::new();
    for (text, expected) in [
        (one.replace("meshed", "mesht"), "f.yaml:4:73: spec.mesht: unknown field `mesht`"),
        (one.replace("meshed: true", "meshed: yes"), "f.yaml:4:81: spec.meshed: invalid boolean"),
        (one.replace(", meshed: true", ""), "f.yaml:4:73: spec: missing field `meshed`"),
        (one.replace("10.0.0.1", "10.0.0.256"), "f.yaml:4:51: spec.addresses[0]: \"10.0.0.256\" is not an IP address"),
        (one.replace("10.0.0.1", "224.0.0.1"), "f.yaml:4:51: spec.addresses[0]: 224.0.0.1 is nobody's own address"),
        (
            one.replace("10.0.0.1", "'::ffff:224.0.0.1'"),
            "f.yaml:4:51: spec.addresses[0]: 224.0.0.1 is nobody's own address",
        ),
        (one.replace("uid-a", "''"), "f.yaml:4:13: spec.uid: is empty or longer than 128 bytes"),
        (
            one.replace("serviceAccount: a", "serviceAccount: A/b"),
            "f.yaml:4:36: spec.serviceAccount: \"A/b\" is not a name",
        ),
        (
            one.replace("serviceAccount: a", "serviceAccount: .."),
            "f.yaml:4:36: spec.serviceAccount: \"..\" is not a name",
        ),
        (one.replace("namespace: shop", "namespace: ''"), "f.yaml:3:32: metadata.namespace: \"\" is not a name"),
        (one.replace(", namespace: shop", ""), "f.yaml:3:18: metadata.namespace: is missing"),
        (one.replace("app: a}", "app: a, app: b}"), "f.yaml:3:"),
        (one.replace("uid: uid-a", "uid: &x uid-a"), "f.yaml:"),
        (one.replace("uid: uid-a", "uid: !!binary uid-a"), "f.yaml:4"),
        (
            service.replace("targetPort: 8080", "targetPort: 70000"),
            "f.yaml:7:34: spec.ports[0].targetPort: 70000 is not a port (1-65535)",
        ),
        (service.replace("port: 9090", "port: 80"), "f.yaml:7:48: spec.ports[1].port: 80 stands there twice"),
        (service.replace("port: 9090", "port: http"), "f.yaml:7:48: spec.ports[1].port: "),
        (service.replace("{app: backend}", "{}"), "f.yaml:1:1: spec.selector: is empty; omit it"),
        (SERVICES.replace("Local", "local"), "f.yaml:16:26: spec.internalTrafficPolicy: "),
        (
            service.replace("  selector", "  sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}\n  selector"),
            "f.yaml:1:1: spec.sessionAffinityConfig: has no meaning without sessionAffinity: ClientIP",
        ),
        (
            MESH.replace("10.77.0.0/24", "10.77.0.1/24"),
            "f.yaml:6:15: spec.podRanges[0]: 10.77.0.1/24 has host bits set; 10.77.0.0/24 is meant?",
        ),
        (
            MESH.replace("10.77.0.0/24", "10.77.0.0/33"),
            "f.yaml:6:15: spec.podRanges[0]: \"10.77.0.0/33\" is not a CIDR",
        ),
        (
            MESH.replace("10.96.0.0/16", "10.0.0.0/8"),
            "f.yaml:1:1: spec.serviceRanges: 10.0.0.0/8 and 10.77.0.0/24 of podRanges overlap",
        ),
        (MESH.replace("trustDomain: cluster.local", "trustDomain: a/b"), "f.yaml:5:16: spec.trustDomain: \"a/b\": "),
        (
            MESH.replace("name: shop", "name: shop, namespace: x"),
            "f.yaml:11:35: metadata.namespace: a Namespace lives in no namespace",
        ),
        (policy("shop", "p", None, "Allow").replace("Allow", "allow"), "f.yaml:4:"),
        (
            "apiVersion: v1\nkind: Pod\n".to_owned(),
            "f.yaml:1:1: kind: \"Pod\" of apiVersion \"v1\" is not known; known are v1 Namespace",
        ),
        ("a: [b".to_owned(), "f.yaml:"),
        ("- a".to_owned(), "f.yaml:"),
    ] {
        let said = refused(&text);
        if !said.starts_with(expected) {
            wrong.push(format!("{said}\n  expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lines_are_those_of_the_file_also_in_a_later_document() {
    let bad = workload("shop", "b", "b", "10.0.0.x", "fd77::1", "");
    let text = format!("# a comment\n{MESH}---\n# another\n\n{bad}");
    assert_eq!(refused(&text), "f.yaml:19:51: spec.addresses[0]: \"10.0.0.x\" is not an IP address");
}

#[test]
fn an_alias_bomb_is_refused_quickly() {
    let mut text = "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {name: a, namespace: b}\nspec:\n  a0: &a0 [x]\n".to_owned();
    for i in 1..40 {
        text.push_str(&format!("  a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1));
    }
    assert!(refused(&text).starts_with("f.yaml:"), "{}", refused(&text));
    let deep = format!("apiVersion: countersign.dev/v1alpha1\nkind: Mesh\nspec: {}\n", "[".repeat(100_000));
    assert!(refused(&deep).starts_with("f.yaml:"));
}

#[test]
fn an_empty_file_is_a_mistake_and_a_comment_is_not() {
    assert_eq!(refused(""), "f.yaml: is empty; delete the file to remove its objects");
    assert_eq!(refused(" \n\n"), "f.yaml: is empty; delete the file to remove its objects");
    assert!(objects("f.yaml", "# nothing yet\n").is_empty());
}

#[test]
fn however_long_a_mistake_is_its_text_is_short_and_on_one_line() {
    let one = workload("shop", "a", "a", "10.0.0.1", "fd77::1", "");
    let long = "x".repeat(100_000);
    let mut wrong = Vec::new();
    for (what, text) in [
        ("field", one.replace("meshed", &long)),
        ("quoted field", one.replace("meshed", &format!("\"a\\n\\e[31m{long}\""))),
        ("kind", one.replace("Workload", &long)),
        ("version", one.replace("countersign.dev/v1alpha1", &long)),
        ("kind in quotes", one.replace("Workload", &format!("\"a\\n{long}\""))),
        ("bool", one.replace("meshed: true", &format!("meshed: {long}"))),
        ("port", SERVICES.replace("port: 9090", &format!("port: {long}"))),
        ("big port", SERVICES.replace("port: 9090", &format!("port: {}", "9".repeat(100_000)))),
        ("word", SERVICES.replace("Local", &long)),
        ("quoted word", SERVICES.replace("Local", &format!("\"a\\n{long}\""))),
        ("address", one.replace("10.0.0.1", &long)),
        ("name", one.replace("name: a,", &format!("name: {long},"))),
        ("label", one.replace("app:", &format!("{long}:"))),
        ("uid", one.replace("uid-a", &long)),
        ("map for text", one.replace("uid-a", &format!("{{{long}: 1}}"))),
        ("domain", MESH.replace("cluster.local", &long)),
        ("range", MESH.replace("10.77.0.0/24", &long)),
        ("policy field", policy("shop", "p", None, "Deny").replace("action", &long)),
        ("yaml", format!("{one}: {long}")),
        ("tag", one.replace("uid-a", &format!("!{long} uid-a"))),
    ] {
        let said = refused(&text);
        if said.len() > 1000 || said.chars().any(char::is_control) {
            wrong.push(format!("{what}: {} bytes: {:.150?}", said.len(), said));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
