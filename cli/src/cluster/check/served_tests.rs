use serde_json::json;

use super::*;
use crate::cluster::check::world::tests::world;
use crate::cluster::kinds::Name;

/// The metrics of a CA whose certificates end at these times.
fn ca(root: i64, issuer: i64, own: i64) -> String {
    let line = |label: &str, end: i64| {
        format!("countersign_ca_certificate_expiration_timestamp_seconds{{certificate=\"{label}\"}} {end}.0\n")
    };
    let head = "# TYPE countersign_ca_certificate_expiration_timestamp_seconds gauge\n";
    format!("{head}{}{}{}# EOF\n", line("root", root), line("issuer", issuer), line("own", own))
}

fn controller(end: i64) -> String {
    format!("up 1\ncountersign_controller_identity_cert_expiration_timestamp_seconds {end}.0\n")
}

fn injector(end: i64) -> String {
    format!("countersign_injector_certificate_expiration_timestamp_seconds {end}\n")
}

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// All is as it is soon after an install, at second 0.
fn well() -> [(&'static str, Result<String, CallError>); 3] {
    [
        (names::CA_ACCOUNT, Ok(ca(3_650 * DAY, 30 * DAY, HOUR))),
        (names::CONTROLLER_ACCOUNT, Ok(controller(HOUR - 60))),
        (names::INJECTOR_ACCOUNT, Ok(injector(DAY))),
    ]
}

fn with(said: impl IntoIterator<Item = (&'static str, Result<String, CallError>)>) -> Finding {
    let served = said.into_iter().map(|(process, metrics)| Served { process, pod: format!("{process}-1"), metrics });
    finding(&World { served: served.collect(), ours: installed(), ..world() })
}

/// The flags that say how long certificates live, as installed.
fn installed() -> Vec<(Name, Result<Option<Value>, CallError>)> {
    let deployment = |account: &str, args: Value| {
        let object = json!({ "spec": { "template": { "spec": { "containers": [{ "args": args }] } } } });
        (Name::new("Deployment", Some("countersign-system"), account).unwrap(), Ok(Some(object)))
    };
    vec![
        deployment(names::CA_ACCOUNT, json!(["--listen=x", "--leaf-ttl=1h", "--issuer-ttl=30d", "--root-ttl=3650d"])),
        deployment(names::INJECTOR_ACCOUNT, json!(["--certificate-life=24h"])),
    ]
}

#[test]
fn where_all_were_renewed_the_first_to_end_is_told() {
    let found = with(well());
    assert_eq!(found.state, State::Ok, "{found:?}");
    assert!(found.says.contains("3 processes"), "{found:?}");
    assert!(found.says.contains("countersign-controller-1: its certificate in 59 min"), "{found:?}");
}

#[test]
fn one_that_was_not_renewed_is_a_problem_before_it_ends() {
    // A little more than a fifth of each life, and a little less.
    for (issuer, own, leaf, serving, late) in [
        (6 * DAY + 1, HOUR / 5 + 1, HOUR / 5 + 1, DAY / 5 + 1, None),
        (6 * DAY - 1, HOUR, HOUR, DAY, Some("countersign-ca-1: its issuer in 5 d 23 h, of a life of 30 d")),
        (30 * DAY, HOUR / 5 - 1, HOUR, DAY, Some("countersign-ca-1: its own in 11 min, of a life of 1 h")),
        (30 * DAY, HOUR, HOUR / 5 - 1, DAY, Some("countersign-controller-1: its certificate in 11 min")),
        (30 * DAY, HOUR, HOUR, DAY / 5 - 1, Some("countersign-injector-1: its certificate in 4 h 47 min")),
    ] {
        let found = with([
            (names::CA_ACCOUNT, Ok(ca(3_650 * DAY, issuer, own))),
            (names::CONTROLLER_ACCOUNT, Ok(controller(leaf))),
            (names::INJECTOR_ACCOUNT, Ok(injector(serving))),
        ]);
        assert_eq!(found.state, if late.is_some() { State::Problem } else { State::Ok }, "{found:?}");
        let late = late.map(|late| format!("not renewed in time: {late}"));
        assert!(late.is_none_or(|late| found.says.contains(&late)), "{found:?}");
    }
}

#[test]
fn an_issuer_of_before_its_life_was_made_longer_is_no_problem() {
    let mut world = World { ours: installed(), ..world() };
    let args =
        &mut world.ours[0].1.as_mut().unwrap().as_mut().unwrap()["spec"]["template"]["spec"]["containers"][0]["args"];
    *args = json!(["--leaf-ttl=1h", "--issuer-ttl=365d"]);
    let served = well().map(|(process, metrics)| Served { process, pod: process.to_owned(), metrics });
    let found = finding(&World { served: served.into(), ..world });
    assert_eq!(found.state, State::Ok, "{found:?}");
}

/// The injector goes on with the short one for a while, and the controller with its leaf.
#[test]
fn a_short_one_of_before_its_life_was_made_longer_is_no_problem_until_it_should_be_over() {
    let pod = |account: &str, made: &str| {
        json!({
            "metadata": { "namespace": "countersign-system", "creationTimestamp": made, "labels": { "app.kubernetes.io/name": account } },
            "status": { "phase": "Running" },
        })
    };
    let found = |injector_made: &str, ca_made: &str| {
        let mut said = well();
        said[1].1 = Ok(controller(2 * DAY + 60));
        said[2].1 = Ok(injector(2 * DAY + 60));
        said[0].1 = Ok(ca(3_650 * DAY, 30 * DAY, 2 * DAY + HOUR));
        let served = said.map(|(process, metrics)| Served { process, pod: process.to_owned(), metrics });
        let old = "1970-01-01T00:00:00Z";
        let pods = [
            pod(names::INJECTOR_ACCOUNT, old),
            pod(names::INJECTOR_ACCOUNT, injector_made),
            pod(names::CA_ACCOUNT, ca_made),
        ];
        let date = Some("Sat, 03 Jan 1970 00:00:00 GMT".to_owned());
        finding(&World { served: served.into(), ours: installed(), pods: Ok(pods.into()), date, ..world() })
    };
    let (old, new) = ("1970-01-01T00:00:00Z", "1970-01-02T23:50:00Z");
    assert_eq!(found(new, new).state, State::Ok, "{:?}", found(new, new));
    assert!(found(old, new).says.starts_with("not renewed in time: countersign-injector: "), "{:?}", found(old, new));
    assert!(found(new, old).says.starts_with("not renewed in time: countersign-controller: "), "{:?}", found(new, old));
}

#[test]
fn one_that_has_ended_is_a_problem_whatever_is_known_of_its_life() {
    let date = || Some("Thu, 01 Jan 1970 00:00:10 GMT".to_owned());
    for (at, metrics, told) in [
        (0, ca(3_650 * DAY, 1, HOUR), "ended: countersign-ca: its issuer 9 s ago"),
        (0, ca(10, 30 * DAY, HOUR), "ended: countersign-ca: its root in 0 s"),
        (1, controller(5), "ended: countersign-controller: its certificate 5 s ago"),
        (2, injector(5), "ended: countersign-injector: its certificate 5 s ago"),
    ] {
        let mut said = well();
        said[at].1 = Ok(metrics);
        let served = said.map(|(process, metrics)| Served { process, pod: process.to_owned(), metrics });
        let found = finding(&World { served: served.into(), date: date(), ..world() });
        assert_eq!((found.state, found.says.as_str()), (State::Problem, told));
    }
}

#[test]
fn a_ca_that_tells_of_a_part_of_its_certificates_is_a_problem() {
    for (missing, told) in
        [("its issuer", ca(DAY, 0, HOUR)), ("its own", ca(DAY, 30 * DAY, 0)), ("its root", "up 1\n".into())]
    {
        let mut said = well();
        said[0].1 = Ok(told);
        let found = with(said);
        assert_eq!(found.state, State::Problem, "{found:?}");
        assert!(found.says.contains(&format!("countersign-ca-1 does not tell of {missing}")), "{found:?}");
    }
}

#[test]
fn what_could_not_be_asked_is_never_well_and_what_to_do_fits_the_reason() {
    for at in 0..3 {
        let mut said = well();
        said[at].1 = Err(CallError::Forbidden("pods \"x\" is forbidden".to_owned()));
        let found = with(said);
        assert_eq!(found.state, State::Unknown, "{found:?}");
        assert!(found.todo.unwrap().contains("get pods/proxy"));
    }
    // The API server's proxy does not get through to the pod.
    for error in [
        CallError::Unavailable("503 error trying to reach service: dial tcp: i/o timeout".to_owned()),
        CallError::Unavailable("no answer within 20 s".to_owned()),
        CallError::Refused { code: 502, message: "proxy error".to_owned() },
    ] {
        let mut said = well();
        said[0].1 = Err(error);
        let found = with(said);
        assert_eq!(found.state, State::Unknown, "{found:?}");
        let todo = found.todo.unwrap();
        assert!(todo.contains("networkPolicies.metricsFrom") && todo.contains("port-forward POD 15031"), "{todo}");
    }
    // What has ended is worse than what could not be seen.
    let mut said = well();
    said[0].1 = Err(CallError::Forbidden("no".to_owned()));
    said[1].1 = Ok(controller(0));
    assert_eq!(with(said).state, State::Problem);
}

#[test]
fn a_process_that_nobody_asked_is_never_well() {
    let found = with(well().into_iter().skip(1));
    assert_eq!((found.state, found.says.as_str()), (State::Unknown, "no countersign-ca runs"));
    assert_eq!(with([]).state, State::Unknown);
    let pods = Err(CallError::Forbidden("pods".to_owned()));
    let found = finding(&World { pods, ..world() });
    assert_eq!((found.state, found.says.as_str()), (State::Unknown, "not permitted: pods"));
}

#[test]
fn lives_are_read_as_the_processes_read_them() {
    let read = ["90s", "5m", "1h", "30d", "1", "h", "", "1.5h"].map(seconds);
    assert_eq!(read, [Some(90), Some(300), Some(HOUR), Some(30 * DAY), None, None, None, None]);
}
