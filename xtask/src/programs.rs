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
    if find("apt-get").is_none() {
        println!("These programs are missing, and this system has no apt-get to install them:");
    } else if !is_root() {
        println!("These programs are missing. To install them, type:");
        println!("    {}", line(&packages));
    } else {
        println!("Installing {} (apt-get, no service is started) ...", packages.join(" "));
        if let Err(said) = install(&packages) {
            println!("    not everything could be installed; apt-get said: {said}");
        }
    }
    let still = missing(who);
    for program in &still {
        println!("    missing: {} (package {}): {}", program.name, program.package, program.used_for);
    }
    still
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
