use super::*;
use crate::testing::Temp;

fn check(temp: &Temp, more: &[&str]) -> Result<Config, String> {
    temp.put("token", "t");
    temp.put("roots.pem", "r");
    let path = |name: &str| temp.join(name).display().to_string();
    let mut line = vec!["countersign-controller".to_owned()];
    for (flag, value) in [
        ("--source", format!("dir:{}", temp.path().display())),
        ("--ca-address", "ca.example:15030".to_owned()),
        ("--token-file", path("token")),
        ("--bootstrap-bundle", path("roots.pem")),
        ("--trust-domain", "cluster.local".to_owned()),
        ("--system-namespace", "countersign-system".to_owned()),
        ("--admin-socket", "/run/x.sock".to_owned()),
    ] {
        if !more.iter().any(|given| given.starts_with(flag)) {
            line.push(format!("{flag}={value}"));
        }
    }
    line.extend(more.iter().map(|given| given.to_string()));
    let args = Args::try_parse_from(line).map_err(|error| error.to_string())?;
    Config::check(args).map_err(|error| error.to_string())
}

#[test]
fn a_good_line_names_both_identities() {
    let temp = Temp::new();
    let config = check(&temp, &["--listen=127.0.0.1:0", "--svid-ttl=10m"]).unwrap();
    assert_eq!(config.own_id.as_str(), "spiffe://cluster.local/ns/countersign-system/sa/countersign-controller");
    assert_eq!(config.ca.ca_id.as_str(), "spiffe://cluster.local/ns/countersign-system/sa/countersign-ca");
    assert_eq!(config.ca.ttl, Some(Duration::from_secs(600)));
    assert_eq!(config.health_listen.port(), ports::CONTROLLER_HEALTH);
    assert!(config.dump()["source"].as_str().unwrap().starts_with("dir:/"));
}

#[test]
fn each_bad_value_is_named_by_its_flag() {
    let temp = Temp::new();
    let file = format!("--source=dir:{}", temp.join("token").display());
    let long = format!("--admin-socket=/{}", "x".repeat(200));
    for (given, named) in [
        ("--source=cluster", "--source \"cluster\": want dir:PATH or kubernetes"),
        ("--source=dir:", "--source \"dir:\": want dir:PATH"),
        ("--source=dir:/nowhere/at/all", "--source dir:/nowhere/at/all: No such file"),
        (&file, "is not a directory"),
        ("--trust-domain=a/b", "--trust-domain \"a/b\": "),
        ("--system-namespace=..", "--system-namespace \"..\": "),
        ("--ca-address=ca", "--ca-address \"ca\": want host:port"),
        ("--ca-address=ca:0", "--ca-address"),
        ("--ca-address=fd77::1:15030", "--ca-address"),
        ("--ca-address=a:1,:2", "--ca-address"),
        ("--token-file=/nowhere", "--token-file /nowhere: No such file"),
        ("--bootstrap-bundle=/nowhere", "--bootstrap-bundle /nowhere: No such file"),
        (&long, "longer than 107 bytes"),
        ("--svid-ttl=10", "is not a duration"),
        ("--drain=0s", "is not a duration"),
        ("--listen=localhost", "--listen"),
        ("--unknown=1", "--unknown"),
    ] {
        let error = check(&temp, &[given]).unwrap_err();
        assert!(error.contains(named), "{given}: {error}");
    }
}

#[test]
fn addresses_of_both_families_and_names_are_good() {
    for good in ["10.0.0.1:1", "[fd77::1]:15030", "ca.svc:15030", "a:1, b:2"] {
        assert!(good.split(',').all(is_host_and_port), "{good}");
    }
}

#[test]
fn a_cluster_is_a_source_with_ranges_or_without() {
    let temp = Temp::new();
    let ranges = |more: &[&str]| {
        let line: Vec<&str> = std::iter::once("--source=kubernetes").chain(more.iter().copied()).collect();
        check(&temp, &line).map(|config| match config.source {
            Source::Kubernetes(ranges) => (ranges.pods.len(), ranges.services.len()),
            Source::Directory(_) => (usize::MAX, usize::MAX),
        })
    };
    assert_eq!(ranges(&[]), Ok((0, 0)));
    assert_eq!(ranges(&["--pod-range=10.77.0.0/16,fd77::/64", "--pod-range=10.78.0.0/16"]), Ok((3, 0)));
    assert_eq!(ranges(&["--pod-range=10.77.0.0/16", "--service-range=10.96.0.0/12"]), Ok((1, 1)));
    for (line, want) in [
        (&["--pod-range=10.77.0.1/16"][..], "--pod-range \"10.77.0.1/16\": has host bits set; 10.77.0.0/16 is meant?"),
        (&["--service-range=all"], "--service-range \"all\": is not a CIDR"),
        (
            &["--pod-range=10.0.0.0/8", "--service-range=10.96.0.0/12"],
            "--service-range \"10.96.0.0/12\": overlaps --pod-range 10.0.0.0/8",
        ),
        (&["--pod-range=::ffff:10.0.0.0/104"], "write the range as IPv4"),
    ] {
        let error = ranges(line).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    let error = check(&temp, &["--pod-range=10.77.0.0/16"]).unwrap_err();
    assert!(error.contains("has no meaning with --source dir:PATH"), "{error}");
}
