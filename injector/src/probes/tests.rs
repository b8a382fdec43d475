use super::*;

const TOKEN: &str = "00112233445566778899aabbccddeeff";

fn token() -> Token {
    Token::of(TOKEN).unwrap()
}

#[test]
fn a_token_is_random_and_never_printed() {
    let (one, two) = (Token::random().unwrap(), Token::random().unwrap());
    assert_ne!(one, two);
    assert!(Token::of(one.as_str()).is_some());
    assert_eq!(format!("{one:?}"), "Token(..)");
    for bad in ["", "0", "00112233445566778899AABBCCDDEEFF", "00112233445566778899aabbccddee/x"] {
        assert!(Token::of(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_pod_without_hooks_has_no_token() {
    let (after, taken) = taken(json!({ "name": "a", "livenessProbe": { "tcpSocket": { "port": 80 } } }));
    assert_eq!(taken.token, None);
    assert_eq!(after["livenessProbe"]["httpGet"]["path"], "/app/a/liveness");
}

fn pod(container: Value) -> Pod {
    Pod::read(&json!({ "spec": { "terminationGracePeriodSeconds": 7, "containers": [container] } })).unwrap()
}

fn taken(container: Value) -> (Value, Taken) {
    let mut pod = pod(container);
    let mut problems = Vec::new();
    let taken = take(&mut pod, &token(), &mut problems);
    assert_eq!(problems, []);
    (pod.list("containers")[0].clone(), taken)
}

fn problem(container: Value) -> String {
    let mut problems = Vec::new();
    let _ = take(&mut pod(container), &token(), &mut problems);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].to_string()
}

#[test]
fn all_three_kinds_and_http_hooks_are_turned() {
    let container = json!({
        "name": "web",
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "livenessProbe": { "httpGet": {
            "path": "/live?deep=1", "port": "http", "scheme": "HTTPS",
            "httpHeaders": [{ "name": "Host", "value": "web" }, { "name": "X" }],
        }, "periodSeconds": 5, "timeoutSeconds": 3 },
        "readinessProbe": { "tcpSocket": { "port": 8081 } },
        "startupProbe": { "grpc": { "port": 8082, "service": "s" }, "timeoutSeconds": 0 },
        "lifecycle": {
            "postStart": { "httpGet": { "port": "8083" } },
            "preStop": { "httpGet": { "path": "/stop", "port": 8080 } },
        },
    });
    let (after, taken) = taken(container.clone());
    assert_eq!(
        after["livenessProbe"],
        json!({
            "httpGet": { "path": "/app/web/liveness", "port": 15020, "scheme": "HTTP" }, "periodSeconds": 5, "timeoutSeconds": 3,
        })
    );
    assert_eq!(
        after["readinessProbe"],
        json!({ "httpGet": { "path": "/app/web/readiness", "port": 15020, "scheme": "HTTP" } })
    );
    assert_eq!(after["lifecycle"]["preStop"]["httpGet"]["path"], format!("/app/web/preStop/{TOKEN}"));
    let headers = vec![("Host".to_owned(), "web".to_owned()), ("X".to_owned(), String::new())];
    let expected = BTreeMap::from([
        (
            Kind::Liveness,
            Probe {
                timeout_seconds: 3,
                ask: Ask::Http { port: 8080, path: "/live?deep=1".into(), https: true, headers },
                token: None,
            },
        ),
        (Kind::Readiness, Probe { timeout_seconds: 1, ask: Ask::Tcp { port: 8081 }, token: None }),
        (Kind::Startup, Probe { timeout_seconds: 1, ask: Ask::Grpc { port: 8082, service: "s".into() }, token: None }),
        (
            Kind::PostStart,
            Probe {
                timeout_seconds: 300,
                ask: Ask::Http { port: 8083, path: String::new(), https: false, headers: vec![] },
                token: Some(TOKEN.to_owned()),
            },
        ),
        (
            Kind::PreStop,
            Probe {
                timeout_seconds: 7,
                ask: Ask::Http { port: 8080, path: "/stop".into(), https: false, headers: vec![] },
                token: Some(TOKEN.to_owned()),
            },
        ),
    ]);
    assert_eq!(taken.probes, BTreeMap::from([("web".to_owned(), expected)]));
    let mut back = pod(after);
    give_back(&mut back, &taken.originals, taken.token.as_ref());
    assert_eq!(back, pod(container));
}

#[test]
fn what_does_not_come_over_the_pods_network_is_left_alone() {
    let container = json!({
        "name": "web",
        "livenessProbe": { "exec": { "command": ["true"] } },
        "readinessProbe": { "httpGet": { "host": "192.0.2.1", "port": 80 } },
        "startupProbe": { "tcpSocket": { "host": "192.0.2.1", "port": 80 } },
        "lifecycle": { "preStop": { "sleep": { "seconds": 1 } }, "postStart": { "tcpSocket": { "port": 80 } } },
    });
    let (after, taken) = taken(container.clone());
    assert_eq!((after, taken), (container, Taken::default()));
}

#[test]
fn probes_of_native_sidecars_are_turned_and_other_init_containers_have_none() {
    let probe = json!({ "tcpSocket": { "port": 80 } });
    let mut pod = Pod::read(&json!({ "spec": { "initContainers": [
        { "name": "log", "restartPolicy": "Always", "readinessProbe": probe },
        { "name": "once", "readinessProbe": probe },
    ] } }));
    let taken = take(pod.as_mut().unwrap(), &token(), &mut Vec::new());
    assert_eq!(taken.probes.keys().collect::<Vec<_>>(), ["log"]);
}

#[test]
fn a_port_that_the_kubelet_could_not_find_is_refused() {
    for (port, said) in [
        (json!("web"), "\"web\" is no port of this container"),
        (json!(0), "0 is not a port"),
        (json!(65536), "65536 is not a port"),
        (json!(null), "null is not a port"),
        (json!(15020), "15020 is a port of the sidecar itself"),
        (json!("15021"), "15021 is a port of the sidecar itself"),
    ] {
        let said = format!("spec.containers[0].livenessProbe.httpGet.port: {said}");
        let message = problem(json!({ "name": "a", "livenessProbe": { "httpGet": { "port": port } } }));
        assert!(message.starts_with(&said), "{message}");
    }
}

#[test]
fn a_broken_probe_is_refused_by_its_field() {
    let get = |change: Value| {
        let mut get = json!({ "port": 80 });
        get.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        problem(json!({ "name": "a", "readinessProbe": { "httpGet": get } }))
    };
    assert!(get(json!({ "scheme": "FTP" })).contains("readinessProbe.httpGet.scheme: \"FTP\""));
    assert!(get(json!({ "path": 1 })).contains("readinessProbe.httpGet.path: is not a string"));
    assert!(get(json!({ "httpHeaders": [{}] })).contains("httpGet.httpHeaders[0].name: is missing"));
    assert!(get(json!({ "httpHeaders": [{ "name": "a b" }] })).contains("httpHeaders[0].name: "));
    assert!(get(json!({ "httpHeaders": [{ "name": "a", "value": "b\nc" }] })).contains("httpHeaders[0].value: "));
    let many: Vec<_> = (0..65).map(|i| json!({ "name": format!("h{i}") })).collect();
    assert!(get(json!({ "httpHeaders": many })).contains("httpGet.httpHeaders: are more than"));
    let long = json!({ "name": "a", "readinessProbe": { "tcpSocket": { "port": 1 }, "timeoutSeconds": 3601 } });
    assert!(problem(long).contains("timeoutSeconds: 3601 is more than a sidecar waits"));
    let slow = json!({ "name": "a", "readinessProbe": { "tcpSocket": { "port": 1 }, "timeoutSeconds": -1 } });
    assert!(problem(slow).contains("readinessProbe.timeoutSeconds: -1 is not a number of seconds"));
}

#[test]
fn what_somebody_changed_since_stays_as_it_is() {
    let (mut after, taken) = taken(json!({ "name": "a", "livenessProbe": { "tcpSocket": { "port": 80 } } }));
    after["livenessProbe"] = json!({ "exec": { "command": ["true"] } });
    let mut changed = pod(after.clone());
    give_back(&mut changed, &taken.originals, None);
    assert_eq!(changed, pod(after));
}

#[test]
fn what_the_sidecar_would_not_start_with_is_refused_here() {
    let many: Vec<_> =
        (0..129).map(|i| json!({ "name": format!("a{i}"), "livenessProbe": { "tcpSocket": { "port": 1 } } })).collect();
    let mut problems = Vec::new();
    let _ = take(&mut Pod::read(&json!({ "spec": { "containers": many } })).unwrap(), &token(), &mut problems);
    assert!(problems[0].to_string().starts_with("spec.containers: have 129 probes"), "{problems:?}");
    for (grace, expected) in [(0, 1), (100_000, 3600)] {
        let hook = json!({ "preStop": { "httpGet": { "port": 1 } } });
        let spec =
            json!({ "terminationGracePeriodSeconds": grace, "containers": [{ "name": "a", "lifecycle": hook }] });
        let taken = take(&mut Pod::read(&json!({ "spec": spec })).unwrap(), &token(), &mut Vec::new());
        assert_eq!(taken.probes["a"][&Kind::PreStop].timeout_seconds, expected);
    }
}
