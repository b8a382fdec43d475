//! Having packages installed by `apt-get`, without a question and without a service that starts.

use std::process::{Command, Stdio};

/// The shell keeps the promise that no service starts, and cleans up after itself even when it is interrupted: a policy-rc.d of ours
/// (never one that was there before) forbids every start while packages are configured.
const SCRIPT: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ] || grep -qs 'made by countersign' $policy; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n# made by countersign (cargo xtask) while it installs packages; safe to delete\nexit 101\n' >$policy
    chmod 755 $policy
fi
apt() { apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@"; }
apt update || true
if ! apt install --no-install-recommends "$@"; then
    failed=0
    for package in "$@"; do apt install --no-install-recommends "$package" || failed=1; done
    exit $failed
fi
"#;

/// Installs packages; what can be installed is, though one of them cannot.
///
/// # Errors
/// What `apt-get` said last.
pub fn install(packages: &[&str]) -> Result<(), String> {
    let ran = Command::new("sh")
        .args(["-c", SCRIPT, "sh"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("NEEDRESTART_SUSPEND", "1")
        .stdin(Stdio::null())
        .output();
    match ran {
        Ok(ran) if ran.status.success() => Ok(()),
        Ok(ran) => Err(last_words(&String::from_utf8_lossy(&ran.stderr))),
        Err(error) => Err(error.to_string()),
    }
}

/// Its last few lines.
fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_one_for_every_shell() {
        assert!(Command::new("sh").args(["-n", "-c", SCRIPT]).status().unwrap().success());
    }

    #[test]
    fn the_last_words_are_few() {
        assert_eq!(last_words("a\n\nb\n c\nd\ne\nf\n"), "b; c; d; e; f");
        assert_eq!(last_words(""), "");
    }
}
