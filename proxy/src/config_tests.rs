//! What a command line must not get past.

use clap::Parser as _;

use super::values::MAX_SOCKET_PATH;
use super::*;
use countersign_api::ports;

const REQUIRED: &[&str] = &[
    "countersign-proxy",
    "--ca-address=ca.countersign-system:15030",
    "--controller-address=10.0.0.1:15040, [fd77::1]:15040",
    "--pod-name=backend-1",
    "--pod-uid=0b4c",
    "--pod-namespace=shop",
    "--service-account=backend",
    "--pod-ips=10.77.0.11,fd77::11",
    "--admin-socket=/tmp/proxy.sock",
];

fn read(more: &[&str]) -> Result<Config, String> {
    let cli = Cli::try_parse_from(REQUIRED.iter().chain(more)).map_err(|e| e.to_string())?;
    Config::read(&cli.run).map_err(|e| e.to_string())
}

fn refusal(more: &str) -> String {
    match read(&[more]) {
        Ok(_) => panic!("{more} was accepted"),
        Err(message) => message,
    }
}

#[test]
fn the_documented_defaults_are_good() {
    let config = read(&[]).unwrap();
    assert_eq!(config.id.as_str(), "spiffe://cluster.local/ns/shop/sa/backend");
    assert_eq!(config.ca.id.as_str(), "spiffe://cluster.local/ns/countersign-system/sa/countersign-ca");
    assert_eq!(config.controller.id.as_str(), "spiffe://cluster.local/ns/countersign-system/sa/countersign-controller");
    assert_eq!(config.controller.addresses, ["10.0.0.1:15040", "[fd77::1]:15040"]);
    assert_eq!(config.pod.ips, [IpAddr::from([10, 77, 0, 11]), "fd77::11".parse().unwrap()]);
    let ports = config.ports;
    assert_eq!((ports.inbound, ports.outbound, ports.health), (15006, 15001, 15020));
    assert_eq!(config.limits.permissive_hello, Duration::from_millis(500));
    assert!(config.access_log && config.mark.is_none() && config.worker_threads == 1);
}

#[test]
fn defaults_are_those_that_api_names() {
    let config = read(&[]).unwrap();
    assert_eq!(config.ports.inbound, ports::INBOUND);
    assert_eq!(config.ports.outbound, ports::OUTBOUND);
    assert_eq!(config.ports.health, ports::PROXY_HEALTH);
}

#[test]
fn every_bad_value_is_named_at_once_with_flag_and_variable() {
    let more = ["--inbound-port=70000", "--pod-ips=10.77.0.11,nonsense", "--drain-deadline=25", "--access-log=maybe"];
    let message = {
        let all = REQUIRED.iter().filter(|arg| !arg.starts_with("--pod-ips")).chain(&more);
        let cli = Cli::try_parse_from(all).unwrap();
        Config::read(&cli.run).unwrap_err().to_string()
    };
    let expected = [
        r#"error: --pod-ips (POD_IPS): "nonsense" is not an IP address"#,
        r#"error: --inbound-port (COUNTERSIGN_INBOUND_PORT): "70000" is not a port (1-65535)"#,
        r#"error: --drain-deadline (COUNTERSIGN_DRAIN_DEADLINE): "25" is not a time such as 250ms, 10s, 5m or 1h"#,
        r#"error: --access-log (COUNTERSIGN_ACCESS_LOG): "maybe" is neither on nor off"#,
    ];
    assert_eq!(message.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn what_is_required_is_named_when_missing() {
    let cli = Cli::try_parse_from(["countersign-proxy", "--admin-socket=/tmp/proxy.sock"]).unwrap();
    let message = Config::read(&cli.run).unwrap_err().to_string();
    for variable in [
        "COUNTERSIGN_CA_ADDRESS",
        "COUNTERSIGN_CONTROLLER_ADDRESS",
        "POD_NAME",
        "POD_UID",
        "POD_NAMESPACE",
        "SERVICE_ACCOUNT",
        "POD_IPS",
    ] {
        assert!(message.contains(&format!("({variable}): is required")), "{variable} in {message}");
    }
    assert_eq!(message.lines().count(), 7);
}

#[test]
fn bad_values_are_refused() {
    for bad in [
        "--trust-domain=Not A Domain",
        "--system-namespace=",
        "--ca-address=ca",
        "--ca-address=ca:0",
        "--ca-address=http://ca:1",
        "--ca-address=::1:15030",
        "--controller-address=a:1,,b:2",
        "--pod-namespace=../../etc",
        "--pod-name=a\nb",
        "--service-account=a/sa/b",
        "--pod-ips=127.0.0.1",
        "--pod-ips=::ffff:127.0.0.1",
        "--pod-ips=0.0.0.0",
        "--outbound-port=0",
        "--outbound-port=15006",
        "--health-port=15001",
        "--health-port=15021",
        "--mark=0",
        "--worker-threads=0",
        "--worker-threads=1000",
        "--svid-ttl=5s",
        "--admin-socket=/tmp/",
        "--admin-socket=/no/such/folder/proxy.sock",
        "--token-file=/tmp",
        "--log=proxy=loud",
        "--max-connections=0",
        "--handshake-slots=3",
        "--first-bytes-timeout=0s",
        "--first-bytes-timeout=99999999999999999999s",
        "--connect-timeout=2h",
        "--pool-idle-timeout=90s",
        "--link-idle-timeout=30s",
    ] {
        let name = bad.trim_start_matches("--").split('=').next().unwrap();
        // A second mention of a required flag is what clap refuses first; replace it instead.
        let flag = format!("--{name}=");
        let args = REQUIRED.iter().copied().filter(|arg| !arg.starts_with(&flag)).chain([bad]);
        let cli = Cli::try_parse_from(args).unwrap();
        assert!(Config::read(&cli.run).is_err(), "{bad:?} was accepted");
    }
    let long = format!("--admin-socket=/tmp/{}", "a".repeat(MAX_SOCKET_PATH));
    assert!(read(&[&long]).is_err());
}

#[test]
fn an_error_does_not_repeat_an_endless_value() {
    let message = refusal(&format!("--inbound-port={}", "9".repeat(100_000)));
    assert!(message.len() < 300, "{} bytes", message.len());
}

#[test]
fn a_flag_that_nobody_knows_stops_the_start() {
    assert!(refusal("--strict=off").contains("--strict"));
}

#[test]
fn run_is_the_default_and_may_be_spelled() {
    let cli = Cli::try_parse_from(["countersign-proxy", "run", "--pod-name=x"]).unwrap();
    let Some(args::Command::Run(run)) = cli.command else {
        panic!("not run");
    };
    assert_eq!(run.pod_name.as_deref(), Some("x"));
}

#[test]
fn every_setting_of_run_has_a_variable_that_api_names_and_no_two_share_one() {
    let command = Cli::command();
    let variables: Vec<_> =
        command.get_arguments().filter(|arg| arg.get_long().is_some()).map(|arg| arg.get_env()).collect();
    let mut seen = std::collections::HashSet::new();
    for variable in variables {
        assert!(seen.insert(variable.expect("a setting without a variable")), "{variable:?} twice");
    }
}

#[test]
fn a_misspelled_variable_is_found_and_kubernetes_own_are_not_taken_for_one() {
    let present = [
        "COUNTERSIGN_INBOUND_PORT",
        "COUNTERSIGN_INBUOND_PORT",
        "COUNTERSIGN_CA_SERVICE_HOST",
        "COUNTERSIGN_CA_SERVICE_PORT_GRPC",
        "COUNTERSIGN_CA_PORT_15030_TCP_ADDR",
        "COUNTERSIGN_CA_PORT",
        "PATH",
    ];
    assert_eq!(unknown_variables(&present.map(str::to_owned)), ["COUNTERSIGN_INBUOND_PORT"]);
}

#[test]
fn a_probe_of_the_proxys_own_ports_is_refused() {
    let probe = |port: u16| {
        format!(r#"--probes={{"web":{{"liveness":{{"timeoutSeconds":1,"ask":{{"tcp":{{"port":{port}}}}}}}}}}}"#)
    };
    assert_eq!(read(&[&probe(8080)]).unwrap().probes[0].path(), "/app/web/liveness");
    for port in [15001, 15006, 15020, 15021] {
        let message = refusal(&probe(port));
        let expected = format!("error: --probes (COUNTERSIGN_PROBES): web.liveness: port {port} is the proxy's own");
        assert_eq!(message, expected);
    }
    assert!(refusal("--probes={").contains("--probes (COUNTERSIGN_PROBES): "));
}
