//! What a fresh machine lacks of the system programs (`countersign-programs` holds the table), installed or named.
//!
//! Called first by every command. It must never ask a question, and never fail a run by itself: what is missing is named, with
//! the line to type, and the step that needs it says that it was skipped.

use std::path::{Path, PathBuf};

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

/// A directory that is ours alone under the system's temporary one.
pub fn scratch(name: &str) -> std::io::Result<PathBuf> {
    let dir = Path::new("/tmp").join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

#[cfg(test)]
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
}
