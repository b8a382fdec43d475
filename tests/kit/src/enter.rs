//! Entering the private namespaces in which everything of this kit happens.
//!
//! Called first thing in `main` by test programs, the demo and the benches, while they are still single-threaded.
//! It must never change anything outside: mounts, network devices, rules and processes made
//! afterwards are invisible to the rest of the machine and end with the caller, however it ends.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use countersign_api::ports;

/// Set in the environment of the re-executed program; its value is also in a file that only our own `/run` holds.
const MARK: &str = "COUNTERSIGN_KIT_INSIDE";
const MARK_FILE: &str = "/run/countersign-kit/inside";
const SCRATCH: &str = "/run/countersign-kit";

/// The first process inside. It stays (no `exec`): process 1 ignores signals that it did not ask for, and
/// Ctrl-C must reach the program, alone; it also reaps orphans. Everything under /run is ours and in memory.
const SETUP: &str = r#"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run || exit 125
mkdir -p /run/netns /run/lock /run/countersign-kit || exit 125
printf %s "$COUNTERSIGN_KIT_INSIDE" > /run/countersign-kit/inside || exit 125
env --default-signal=INT "$@"
exit $?
"#;

/// Proof that we are inside: [`crate::Net`] cannot be made without.
#[derive(Clone, Copy, Debug)]
pub struct Inside {
    rootless: bool,
}

impl Inside {
    /// True in a user namespace with one UID: no other UID can be taken, so the proxy is exempted by mark.
    #[must_use]
    pub fn rootless(self) -> bool {
        self.rootless
    }

    /// A folder in memory that goes away with the namespaces. World-readable, as foreign programs drop to other UIDs.
    #[must_use]
    pub fn scratch(self) -> PathBuf {
        PathBuf::from(SCRATCH)
    }
}

/// Why the private namespaces could not be entered. The caller is to say "not shown here", never to go on without.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// `unshare`, `setpriv` or a shell is not there.
    #[error("cannot run {program}: {source}; on Debian and Ubuntu: apt-get install util-linux")]
    NoProgram {
        /// Which.
        program: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system forbids user namespaces, or what root needs for its own.
    #[error("private namespaces are not allowed here ({said}): {remedy}")]
    Forbidden {
        /// What `unshare` or `mount` said.
        said: String,
        /// What to type or to ask for; names the sysctl where one is the reason.
        remedy: String,
    },
    /// Anything else of the system.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Returns inside the private namespaces. The process that called it first stays outside, waits, and ends
/// with the exit code of the one inside; it must not have started threads.
///
/// # Errors
/// See [`EnterError`]; nothing was changed then.
pub fn enter() -> Result<Inside, EnterError> {
    let rootless = match std::env::var(MARK) {
        Ok(mark) if is_inside(&mark) => {
            return Ok(Inside { rootless: mark.starts_with("user") });
        }
        _ => !nix::unistd::geteuid().is_root() || one_uid_only(),
    };
    probe(rootless)?;
    let program = std::env::current_exe().map_err(|source| EnterError::System { what: "own program", source })?;
    let mut command = unshare(rootless);
    command.arg(program).args(std::env::args_os().skip(1));
    // Ctrl-C is for the program inside alone; we take its exit code. (The child starts with no signal blocked.)
    let mut interrupt = nix::sys::signal::SigSet::empty();
    interrupt.add(nix::sys::signal::Signal::SIGINT);
    let _ = interrupt.thread_block();
    let status = command.status().map_err(|source| EnterError::NoProgram { program: "setpriv", source })?;
    std::process::exit(exit_code(status))
}

/// Have we entered already?
pub(crate) fn entered() -> bool {
    std::env::var(MARK).is_ok_and(|mark| is_inside(&mark))
}

/// Root of a user namespace into which the sidecar's UID is not mapped, as `unshare --map-root-user` makes one: no more than an ordinary user.
fn one_uid_only() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps(&map, ports::PROXY_UID))
}

/// Whether a `uid_map` (user_namespaces(7): first UID inside, first outside, how many) knows a UID.
fn maps(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        matches!(numbers[..], [inside, _, count] if (inside..inside + count).contains(&u64::from(uid)))
    })
}

fn is_inside(mark: &str) -> bool {
    fs::read_to_string(MARK_FILE).is_ok_and(|there| there == mark)
}

/// `setpriv` lets all of it die with us, even of SIGKILL: `unshare` dies with its parent, its child with it. Of Ctrl-C, which a terminal
/// sends to all of us, `unshare` must not die: the program would be killed in the middle of its own end.
fn unshare(rootless: bool) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "env", "--ignore-signal=INT", "unshare"]);
    if rootless {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
        "sh",
        "-c",
        SETUP,
        "sh",
    ]);
    command.env(MARK, format!("{}-{}", if rootless { "user" } else { "root" }, std::process::id()));
    command.env("PATH", path_with_sbin());
    command
}

/// An ordinary user's PATH often lacks the sbin folders, where `ip`, `nft` and `nginx` live.
fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !std::env::split_paths(&path).any(|entry| entry == Path::new(folder)) {
            path.push(":");
            path.push(folder);
        }
    }
    path
}

/// Does nothing inside, to tell a refusal of the system from a failure of the program.
fn probe(rootless: bool) -> Result<(), EnterError> {
    let output = unshare(rootless)
        .arg("true")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| EnterError::NoProgram { program: "setpriv", source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let remedy = remedy(rootless, |name| fs::read_to_string(Path::new("/proc/sys").join(name)).ok());
    Err(EnterError::Forbidden { said, remedy })
}

/// Which setting forbids it, by what `read` finds under /proc/sys.
fn remedy(rootless: bool, read: impl Fn(&str) -> Option<String>) -> String {
    let number = |name| read(name).and_then(|text| text.trim().parse::<u64>().ok());
    if !rootless {
        return "root lacks CAP_SYS_ADMIN here (a container without privileges?): run on the machine itself, or as \
                an ordinary user where user namespaces are allowed"
            .into();
    }
    let mut remedies = Vec::new();
    if number("user/max_user_namespaces") == Some(0) {
        remedies.push("sudo sysctl -w user.max_user_namespaces=15000");
    }
    if number("kernel/unprivileged_userns_clone") == Some(0) {
        remedies.push("sudo sysctl -w kernel.unprivileged_userns_clone=1");
    }
    if number("kernel/apparmor_restrict_unprivileged_userns").is_some_and(|value| value != 0) {
        remedies.push("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0");
    }
    if remedies.is_empty() {
        return "no sysctl explains it; a seccomp filter or security module may (a container?): run as root, or \
                outside the container"
            .into();
    }
    format!("run: {}", remedies.join(" && "))
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctls(set: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| format!("{value}\n"))
    }

    #[test]
    fn the_sysctl_that_forbids_is_named() {
        let ubuntu = remedy(
            true,
            sysctls(&[("kernel/apparmor_restrict_unprivileged_userns", "1"), ("user/max_user_namespaces", "9")]),
        );
        assert_eq!(ubuntu, "run: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0");
        let hardened =
            remedy(true, sysctls(&[("kernel/unprivileged_userns_clone", "0"), ("user/max_user_namespaces", "0")]));
        assert!(
            hardened.contains("user.max_user_namespaces=15000 && sudo sysctl -w kernel.unprivileged_userns_clone=1")
        );
        assert!(remedy(true, sysctls(&[])).contains("seccomp"));
        assert!(remedy(false, sysctls(&[])).contains("CAP_SYS_ADMIN"));
    }

    #[test]
    fn root_of_a_user_namespace_with_one_uid_is_no_more_than_an_ordinary_user() {
        assert!(maps("         0          0 4294967295\n", 1337));
        assert!(!maps("         0       1000          1\n", 1337));
        assert!(maps("0 1000 1\n1 100000 65536\n", 1337));
        assert!(!maps("", 1337) && !maps("0 0 many\n", 1337));
    }

    #[test]
    fn a_mark_alone_does_not_make_inside() {
        assert!(!is_inside("root-1"));
    }
}
