//! The demo as a test: as who we are and, as root, as an ordinary user too. Whoever is not root is told what they cannot run.
//!
//! Called by `test` with the binaries that it built. What the demo could not show is a skip, with the demo's own reason.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Run;
use crate::report::Tally;
use crate::{cargo, programs, suite};

/// What the demo promises after the build. On two cores it takes 50 s.
const LIMIT: Duration = Duration::from_secs(90);
/// The same until its fourth claim is shown; that takes 15 s. The claims behind it wait for certificates to be renewed.
const FOUR_LIMIT: Duration = Duration::from_secs(60);

impl Run {
    /// All runs of the demo.
    pub fn demos(&mut self) -> Result<()> {
        let built = cargo::target_dir()?.join("debug");
        let mut own = Command::new(built.join("countersign"));
        own.arg("demo");
        self.demo("demo", own);
        if !programs::is_root() {
            self.report.skip_step("demo as root", "this run is an ordinary user's; as root: cargo xtask test");
            return Ok(());
        }
        let name = "demo as an ordinary user";
        if programs::find("setpriv").is_none() {
            self.report.skip_step(name, "no setpriv (package util-linux) to become an ordinary user with");
            return Ok(());
        }
        let copy = readable_copy(&built)?;
        let mut nobody = Command::new("setpriv");
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        nobody
            .arg(copy.join("countersign"))
            .arg("demo")
            .current_dir("/")
            .env("HOME", "/")
            .env_remove("XDG_RUNTIME_DIR");
        self.demo(name, nobody);
        std::fs::remove_dir_all(&copy).context("removing the copied binaries")
    }

    fn demo(&mut self, name: &str, command: Command) {
        let began = self.report.begin(name);
        let tally = match suite::capture(command, LIMIT, true) {
            Ok((output, Some(status))) if status.success() => match four_claims(&output) {
                Ok(took) => {
                    println!("   the mesh and the first four claims took {:.1} s", took.as_secs_f64());
                    Tally::one(true)
                }
                Err(why) => self.demo_failed(name, &why),
            },
            Ok((output, Some(status))) if status.code() == Some(2) => {
                self.report.skipped(name, not_shown(&output));
                self.report.skip_tally(1)
            }
            Ok((_, Some(status))) => self.demo_failed(name, &format!("a claim is false ({status})")),
            Ok((_, None)) => self.demo_failed(name, &format!("no end after {} s", LIMIT.as_secs())),
            Err(problem) => self.demo_failed(name, &format!("{problem:#}")),
        };
        self.report.end(name, began, tally);
    }

    fn demo_failed(&mut self, name: &str, why: &str) -> Tally {
        self.report.failure(&format!("{name}: {why}"));
        Tally::one(false)
    }
}

/// How long the mesh took to come up, and the first four claims after it, as the demo tells it.
///
/// # Errors
/// Longer than it may, or not told.
fn four_claims(output: &str) -> Result<Duration, String> {
    let seconds = |text: &str| text.split_once(" s")?.0.parse::<f64>().ok();
    let behind = |words: &'static str| {
        let told = output.lines().filter_map(move |line| line.split_once(words));
        told.filter_map(move |(_, rest)| seconds(rest))
    };
    let told: Vec<f64> = behind(": up in ").take(1).chain(behind("SHOWN (").take(4)).collect();
    let took = Duration::from_secs_f64(told.iter().sum());
    match told.len() {
        5 if took < FOUR_LIMIT => Ok(took),
        5 => Err(format!("its first four claims took {} s, not less than {}", took.as_secs(), FOUR_LIMIT.as_secs())),
        _ => Err("it does not tell how long its first four claims took".to_owned()),
    }
}

/// The line in which the demo says why something could not be shown.
fn not_shown(output: &str) -> &str {
    output
        .lines()
        .find(|line| line.contains("NOT SHOWN"))
        .or_else(|| output.lines().last())
        .unwrap_or("it said nothing")
        .trim()
}

/// The target directory may lie where an ordinary user cannot read.
fn readable_copy(built: &Path) -> Result<PathBuf> {
    let dir = programs::scratch("countersign-bin").context("making a directory for the binaries")?;
    for name in crate::demo::BINARIES {
        let copy = dir.join(name);
        let copied = std::fs::copy(built.join(name), &copy).and_then(|_| programs::open(&copy));
        copied.with_context(|| format!("copying {name}"))?;
    }
    Ok(dir)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_time_of_the_first_four_claims_is_read_as_the_demo_tells_it_and_is_bounded() {
        // Of a run that the page shows.
        let shown = fs::read_to_string(cargo::root().join("README.md")).unwrap();
        let took = four_claims(&shown).unwrap();
        assert!(took > Duration::from_secs(5), "{took:?}");
        let output = |fourth: &str| {
            format!(
                "   all: up in 0.7 s\n   SHOWN (0.8 s)\n   SHOWN (0.0 s)\n   SHOWN (0.1 s)\n{fourth}   SHOWN (70.0 s)\n"
            )
        };
        assert_eq!(four_claims(&output("   SHOWN (13.5 s)\n")).unwrap(), Duration::from_millis(15_100));
        assert!(four_claims(&output("   SHOWN (58.5 s)\n")).unwrap_err().contains("took 60 s"));
        assert!(four_claims(&output("")).unwrap_err().contains("took 71 s"));
        for said in
            ["", "7 of 7 claims shown, in 49.4 s\n", &shown.replace(": up in 0", ": up"), &shown.replace(" s)", ")")]
        {
            assert!(four_claims(said).unwrap_err().contains("does not tell"), "{said}");
        }
    }

    const UMASK: &str = "COUNTERSIGN_TEST_UMASK";

    /// The umask is a process's own: the test runs itself once more, under a strict one.
    #[test]
    fn whatever_the_umask_everybody_may_run_the_copied_binaries() {
        if std::env::var_os(UMASK).is_none() {
            let mut strict = Command::new("sh");
            strict.args(["-c", "umask 077 && exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
            strict.args(["--exact", "test::demos::tests::whatever_the_umask_everybody_may_run_the_copied_binaries"]);
            let done = strict.env(UMASK, "077").output().unwrap();
            let said = String::from_utf8_lossy(&done.stdout);
            return assert!(done.status.success() && said.contains("1 passed"), "{said}");
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let built = programs::scratch("countersign-built-test").unwrap();
        for name in crate::demo::BINARIES {
            fs::write(built.join(name), "").unwrap();
            assert_eq!(mode(&built.join(name)), 0o600, "the umask is not strict");
        }
        let copy = readable_copy(&built).unwrap();
        assert_eq!(mode(&copy), 0o755);
        for name in crate::demo::BINARIES {
            assert_eq!(mode(&copy.join(name)), 0o755, "{name}");
        }
        fs::remove_dir_all(&copy).unwrap();
        fs::remove_dir_all(&built).unwrap();
    }

    #[test]
    fn what_could_not_be_shown_is_quoted() {
        assert_eq!(not_shown("a\n  NOT SHOWN: user namespaces are off\nb\n"), "NOT SHOWN: user namespaces are off");
        assert_eq!(not_shown(""), "it said nothing");
    }
}
