use base64::Engine as _;

use super::*;

const BASE: [&str; 7] =
    ["countersign-ca", "--state-dir", "/s", "--jwks-file", "/j", "--token-issuer", "https://issuer"];

fn key() -> String {
    base64::engine::general_purpose::STANDARD.encode([7; 32])
}

fn parse(more: &[&str]) -> Result<Config, String> {
    let args = Args::try_parse_from(BASE.iter().chain(more)).map_err(|error| error.to_string())?;
    Config::check(args, Some(&key())).map_err(|error| error.to_string())
}

#[test]
fn the_defaults_are_good() {
    let config = parse(&[]).unwrap();
    assert_eq!(config.own_id.as_str(), "spiffe://cluster.local/ns/countersign-system/sa/countersign-ca");
    assert_eq!(config.terms.default, Duration::from_secs(3600));
    assert_eq!(config.bundle_files, [PathBuf::from("/s/bundle.pem")]);
    assert_eq!(config.admin_socket, PathBuf::from("/s/admin.sock"));
    assert!(config.warnings().is_empty());
}

#[test]
fn a_bad_value_is_named() {
    for (arguments, said) in [
        (&["--trust-domain", "Bad_Domain!"][..], "--trust-domain"),
        (&["--system-namespace", "a/b"], "--system-namespace"),
        (&["--leaf-ttl", "9s"], "--leaf-ttl"),
        (&["--leaf-ttl", "1h30"], "--leaf-ttl"),
        (&["--leaf-ttl", "3600"], "units s, m, h, d"),
        (&["--leaf-ttl=-1s"], "--leaf-ttl"),
        (&["--leaf-ttl", "2h", "--max-leaf-ttl", "1h"], "--max-leaf-ttl"),
        (&["--issuer-ttl", "2d"], "--issuer-ttl"),
        (&["--root-ttl", "1d"], "--root-ttl"),
        (&["--root-ttl", "99999999999999d"], "--root-ttl"),
        (&["--root-ttl", "80000d"], "--root-ttl"),
        (&["--max-calls", "0"], "--max-calls"),
        (&["--caller-rate", "0/1"], "RATE/BURST"),
        (&["--caller-rate", "NaN/1"], "RATE/BURST"),
        (&["--caller-rate", "1"], "RATE/BURST"),
        (&["--token-algorithms", "RS256,HS256"], "HS256"),
        (&["--token-algorithms", "none"], "none"),
        (&["--token-audience", ""], "--token-audience"),
        (&["--attest", "token-review"], "--jwks-file"),
        (&["--attest", "oidc"], "--attest"),
        (&["--max-token-reviews", "0"], "--max-token-reviews"),
        (&["--state-secret", "A_b"], "--state-secret"),
        (&["--state-secret", ""], "--state-secret"),
        (&["--listen", "15030"], "--listen"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let error = parse(arguments).unwrap_err();
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}

#[test]
fn each_attestation_has_its_own_flags() {
    let parse = |more: &[&str]| {
        let args = ["countersign-ca", "--state-dir", "/s"].iter().chain(more);
        Config::check(Args::try_parse_from(args).unwrap(), Some(&key())).map_err(|error| error.to_string())
    };
    let reviewed = parse(&["--attest", "token-review"]).unwrap();
    assert!(matches!(&reviewed.attest, Attestation::TokenReview { audience, .. } if audience == "countersign-ca"));
    assert!(parse(&["--attest", "token-review", "--token-issuer", "x"]).unwrap_err().contains("--token-issuer"));
    assert!(parse(&["--token-issuer", "x"]).unwrap_err().contains("--jwks-file"));
    assert!(parse(&["--jwks-file", "/j"]).unwrap_err().contains("--token-issuer"));
    assert!(parse(&["--jwks-file", "/j", "--token-issuer", ""]).unwrap_err().contains("--token-issuer"));
}

#[test]
fn a_short_default_life_is_allowed_with_a_warning() {
    let config = parse(&["--leaf-ttl", "30s"]).unwrap();
    assert!(config.warnings()[0].contains("--leaf-ttl"));
}

#[test]
fn exactly_one_state_key_must_be_given() {
    let args = || Args::try_parse_from(BASE).unwrap();
    assert!(matches!(Config::check(args(), None), Err(ConfigError::NoKey)));
    let mut two = args();
    two.state_key_file = Some("/k".into());
    assert!(matches!(Config::check(two, Some(&key())), Err(ConfigError::TwoKeys)));
    two = args();
    two.state_key_secret = Some("k".to_owned());
    assert!(matches!(Config::check(two.clone(), Some(&key())), Err(ConfigError::TwoKeys)));
    assert!(matches!(Config::check(two, None).unwrap().state_key, KeyFrom::Secret(name) if name == "k"));
    assert!(matches!(Config::check(args(), Some("short")), Err(ConfigError::Key(_))));
}

#[test]
fn state_and_state_key_never_share_a_secret() {
    let parse = |key| {
        let more = ["--state-secret", "one", "--state-key-secret", key];
        Config::check(Args::try_parse_from(BASE.iter().chain(&more)).unwrap(), None)
    };
    assert!(parse("one").unwrap_err().to_string().contains("--state-key-secret"));
    assert_eq!(parse("two").unwrap().state_secret.as_deref(), Some("one"));
}

#[test]
fn the_dump_holds_no_secret() {
    let dump = parse(&[]).unwrap().dump().to_string();
    assert!(!dump.contains(&key()) && !dump.contains("7, 7, 7"), "{dump}");
    assert!(dump.contains("StateKey("));
}

#[test]
fn durations_have_one_unit() {
    for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("30d", 2_592_000)] {
        assert_eq!(duration(text).unwrap().as_secs(), seconds);
    }
    for bad in ["", "s", "1", "1hh", "1 h", "1ms", "é"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}
