//! Promises about any pod: made at random, reviewed once and twice, changed in between, and given back.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::containers::OUR_CONTAINERS;
use crate::mesh::tests::mesh;
use crate::pod::List;

fn handler() -> impl Strategy<Value = Value> {
    let port = prop_oneof![(1_u16..15000).prop_map(Value::from), Just(json!("http")), Just(json!("8080"))];
    prop_oneof![
        (port.clone(), prop::option::of("/[a-z$()]{0,6}"), any::<bool>()).prop_map(|(port, path, tls)| {
            let mut get = json!({ "port": port });
            if let Some(path) = path {
                get["path"] = path.into();
            }
            if tls {
                get["scheme"] = "HTTPS".into();
            }
            json!({ "httpGet": get })
        }),
        port.prop_map(|port| json!({ "tcpSocket": { "port": port } })),
        (1_u16..15000).prop_map(|port| json!({ "grpc": { "port": port } })),
        Just(json!({ "exec": { "command": ["true"] } })),
        Just(json!({ "httpGet": { "host": "192.0.2.1", "port": 1 } })),
    ]
}

/// A container with some probes and something that nobody here knows.
fn container(name: String, sidecar: bool) -> impl Strategy<Value = Value> {
    let probes = prop::collection::btree_map(
        prop::sample::select(vec!["livenessProbe", "readinessProbe", "startupProbe"]),
        (handler(), prop::option::of(1_u32..9)),
        0..3,
    );
    (probes, prop::option::of(handler()), any::<bool>()).prop_map(move |(probes, hook, ports)| {
        let mut container = json!({ "name": name, "image": "i", "aFieldOfTheFuture": { "x": [1, null] } });
        // A named port that a probe may ask for.
        container["ports"] = json!([{ "name": "http", "containerPort": 8080 }, { "containerPort": 1 }]);
        if ports {
            container["env"] = json!([{ "name": "A", "value": "$(B)" }]);
        }
        if sidecar {
            container["restartPolicy"] = "Always".into();
        }
        for (key, (handler, timeout)) in probes {
            container[key] = handler;
            if let Some(timeout) = timeout {
                container[key]["timeoutSeconds"] = timeout.into();
            }
        }
        if let Some(hook) = hook {
            container["lifecycle"] = json!({ "preStop": hook });
        }
        container
    })
}

fn containers(prefix: &'static str, least: usize) -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec(any::<bool>(), least..4).prop_flat_map(move |kinds| {
        let init = prefix == "i";
        let each = kinds.into_iter().enumerate().map(|(i, sidecar)| container(format!("{prefix}{i}"), init && sidecar));
        each.collect::<Vec<_>>()
    })
}

fn pod() -> impl Strategy<Value = Value> {
    let annotations = prop::sample::subsequence(
        vec![
            ("proxy.countersign.dev/log-level", "warn"),
            ("proxy.countersign.dev/skip-inbound-ports", "22"),
            ("x/y", "z"),
        ],
        0..=3,
    );
    let grace = prop::option::of(0_u32..90);
    (containers("i", 0), containers("a", 1), annotations, any::<bool>(), any::<bool>(), grace).prop_map(
        |(init, apps, annotations, volumes, labels, grace)| {
            let mut pod =
                json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": apps, "newInKubernetes": true } });
            if !init.is_empty() {
                pod["spec"]["initContainers"] = init.into();
            }
            if volumes {
                pod["spec"]["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
            }
            if let Some(grace) = grace {
                pod["spec"]["terminationGracePeriodSeconds"] = grace.into();
            }
            for (key, value) in annotations {
                pod["metadata"]["annotations"][key] = value.into();
            }
            if labels {
                pod["metadata"]["labels"] = json!({ "app": "a", "countersign.dev/inject": "enabled" });
            }
            pod
        },
    )
}

fn random() -> Token {
    Token::random().unwrap()
}

/// By a token that is another each time.
fn injected(pod: &Value, namespace: Namespace<'_>) -> Value {
    injected_by(pod, namespace, &random())
}

fn injected_by(pod: &Value, namespace: Namespace<'_>, token: &Token) -> Value {
    match review(&mesh(&[]).unwrap(), namespace, token, pod).unwrap() {
        Reviewed::Injected { pod: after, patch, .. } => {
            let mut patched = pod.clone();
            let patch: json_patch::Patch = serde_json::from_value(json!(patch)).unwrap();
            json_patch::patch(&mut patched, &patch).unwrap();
            assert_eq!(patched, after, "the patch is the pod");
            after
        }
        Reviewed::Skipped(why) => panic!("{why:?}"),
    }
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(names::LABEL_INJECT.to_owned(), "enabled".to_owned())])
}

fn names_of(pod: &Value, list: &str) -> Vec<String> {
    pod["spec"][list].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
}

/// What the API server adds to objects between two calls of a webhook.
fn defaulted(pod: &mut Value) {
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            container["terminationMessagePath"] = "/dev/termination-log".into();
            let mount =
                json!({ "name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" });
            container["volumeMounts"] = json!([mount]);
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if container.get(probe).is_some() {
                    container[probe]["successThreshold"] = 1.into();
                }
            }
        }
    }
    if let Some(volumes) = pod["spec"].get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.push(json!({ "name": "kube-api-access", "projected": {} }));
    }
}

proptest! {
    #[test]
    fn injecting_twice_is_injecting_once(pod in pod()) {
        let labels = labels();
        let once = injected(&pod, Namespace::Known(&labels));
        prop_assert_eq!(&injected(&once, Namespace::Known(&labels)), &once);
        let mesh = mesh(&[]).unwrap();
        let again = review(&mesh, Namespace::Known(&labels), &Token::random().unwrap(), &once).unwrap();
        let nothing = matches!(again, Reviewed::Injected { patch, .. } if patch.is_empty());
        prop_assert!(nothing);
    }

    #[test]
    fn a_file_injected_and_then_admitted_is_the_same(pod in pod()) {
        let labels = labels();
        let once = injected(&pod, Namespace::Asked);
        prop_assert_eq!(&injected(&once, Namespace::Asked), &once);
        prop_assert_eq!(&injected(&once, Namespace::Known(&labels)), &once);
    }

    #[test]
    fn uninject_gives_back_the_pod(pod in pod(), file in any::<bool>()) {
        let labels = labels();
        let namespace = if file { Namespace::Asked } else { Namespace::Known(&labels) };
        let mut once = Pod::read(&injected(&pod, namespace)).unwrap();
        prop_assert!(restore::uninject(&mut once).unwrap());
        prop_assert_eq!(once.value(), &pod);
        prop_assert!(!restore::uninject(&mut once).unwrap());
    }

    #[test]
    fn ours_come_first_and_others_keep_their_order(pod in pod()) {
        let labels = labels();
        let once = injected(&pod, Namespace::Known(&labels));
        let init = names_of(&once, "initContainers");
        prop_assert_eq!(&init[..2], &OUR_CONTAINERS);
        let before = if pod["spec"].get("initContainers").is_some() { names_of(&pod, "initContainers") } else { vec![] };
        prop_assert_eq!(&init[2..], &before[..]);
        prop_assert_eq!(names_of(&once, "containers"), names_of(&pod, "containers"));
    }

    #[test]
    fn what_another_webhook_adds_behind_us_is_taken_up_by_the_second_pass(
        pod in pod(), more in container("late".to_owned(), false), early in container("early".to_owned(), true),
    ) {
        let labels = labels();
        let mut changed = injected(&pod, Namespace::Known(&labels));
        defaulted(&mut changed);
        changed["spec"]["containers"].as_array_mut().unwrap().push(more.clone());
        changed["spec"]["initContainers"].as_array_mut().unwrap().insert(0, early.clone());
        let twice = injected(&changed, Namespace::Known(&labels));
        let init = names_of(&twice, "initContainers");
        prop_assert_eq!(&init[..3], &[OUR_CONTAINERS[0], OUR_CONTAINERS[1], "early"]);

        // As if all of it had been there at first.
        let mut at_once = pod.clone();
        at_once["spec"]["containers"].as_array_mut().unwrap().push(more);
        if at_once["spec"].get("initContainers").is_none() {
            at_once["spec"]["initContainers"] = json!([]);
        }
        at_once["spec"]["initContainers"].as_array_mut().unwrap().insert(0, early);
        // By the token that the first pass chose, where it chose one.
        let status = restore::restore(&mut Pod::read(&twice).unwrap()).unwrap().unwrap();
        let at_once = injected_by(&at_once, Namespace::Known(&labels), &status.token().unwrap_or_else(random));
        prop_assert_eq!(&twice["spec"]["initContainers"][0], &at_once["spec"]["initContainers"][0]);
        prop_assert_eq!(&twice["spec"]["initContainers"][1], &at_once["spec"]["initContainers"][1]);
        prop_assert_eq!(&twice["metadata"], &at_once["metadata"]);
    }

    #[test]
    fn the_kubelet_asks_no_port_of_the_app(pod in pod()) {
        let labels = labels();
        let once = injected(&pod, Namespace::Known(&labels));
        let read = Pod::read(&once).unwrap();
        let asked = |(list, _, container): &(List, usize, &Value)| *list == List::App || crate::pod::is_sidecar(container);
        for (_, _, container) in read.containers().filter(asked) {
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let Some(probe) = container.get(probe) else { continue };
                prop_assert!(probe.get("tcpSocket").is_none() && probe.get("grpc").is_none());
                if let Some(get) = probe.get("httpGet").filter(|get| get.get("host").is_none()) {
                    prop_assert!(matches!(get["port"].as_u64(), Some(15020 | 15021)), "{}", probe);
                }
            }
        }
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let pod = json!({
        "metadata": { "annotations": { "proxy.countersign.dev/log-level": "loud" } },
        "spec": { "containers": [
            { "name": "a", "ports": [{ "containerPort": 15021 }], "livenessProbe": { "tcpSocket": { "port": "x" } } },
        ] },
    });
    let Refusal(problems) = review(&mesh(&[]).unwrap(), Namespace::Asked, &Token::random().unwrap(), &pod).unwrap_err();
    let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "metadata.annotations[\"proxy.countersign.dev/log-level\"]",
            "spec.containers[0].ports[0].containerPort",
            "spec.containers[0].livenessProbe.tcpSocket.port",
        ]
    );
}

#[test]
fn a_forged_status_is_no_way_past_a_refusal() {
    let status = |text: &str| json!({ "annotations": { "countersign.dev/status": text } });
    let forged = |status: Value, spec: Value| {
        let token = Token::random().unwrap();
        review(&mesh(&[]).unwrap(), Namespace::Asked, &token, &json!({ "metadata": status, "spec": spec }))
    };
    // A sidecar of somebody's own making is replaced by ours.
    let own = json!({ "initContainers": [{ "name": "countersign-proxy", "image": "evil" }], "containers": [{ "name": "a" }] });
    let Reviewed::Injected { pod, .. } = forged(status(r#"{"version":"9"}"#), own).unwrap() else { panic!() };
    assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 2);
    assert_eq!(pod["spec"]["initContainers"][1]["image"], "registry/countersign-proxy:test");
    // A probe that it gives back is looked at like any other.
    let text = r#"{"version":"9","probes":{"a":{"liveness":{"tcpSocket":{"port":15020}}}}}"#;
    let turned = json!({ "httpGet": { "path": "/app/a/liveness", "port": 15020 } });
    let Refusal(problems) =
        forged(status(text), json!({ "containers": [{ "name": "a", "livenessProbe": turned }] })).unwrap_err();
    assert_eq!(problems[0].field, "spec.containers[0].livenessProbe.tcpSocket.port");
    // And without a status, so is one that already asks our port.
    let Refusal(problems) =
        forged(json!({}), json!({ "containers": [{ "name": "a", "livenessProbe": turned }] })).unwrap_err();
    assert_eq!(problems[0].field, "spec.containers[0].livenessProbe.httpGet.port");
    let Refusal(problems) = forged(status("{"), json!({ "containers": [] })).unwrap_err();
    assert_eq!(problems[0].field, "metadata.annotations[\"countersign.dev/status\"]");
}

#[test]
fn a_status_of_a_newer_injector_is_understood_as_far_as_it_goes() {
    let pod = json!({ "spec": { "containers": [{ "name": "a" }] } });
    let mut once = injected(&pod, Namespace::Asked);
    let status: Value =
        serde_json::from_str(once["metadata"]["annotations"][names::ANNOTATION_STATUS].as_str().unwrap()).unwrap();
    let mut newer = status.clone();
    newer["version"] = "99".into();
    newer["more"] = json!([1]);
    once["metadata"]["annotations"][names::ANNOTATION_STATUS] = newer.to_string().into();
    assert_eq!(
        injected(&once, Namespace::Asked)["metadata"]["annotations"][names::ANNOTATION_STATUS],
        status.to_string()
    );
}
