//! Our programs, linked a second time by the build that links them anyway: statically, for images that hold nothing else.
//!
//! Called by cargo in place of rustc (`RUSTC_WRAPPER`), and by `image` and `cluster` for what came of it. Building them with flags of
//! their own would compile all crates twice: rustc asks for static linking only when a program is linked. It must never keep a
//! program from being built as it is otherwise.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::{cargo, image};

/// Says that this program is called in place of rustc, and where the static programs go.
const FOLDER: &str = "COUNTERSIGN_STATICS";
/// The wrapper that was there before: it is called on.
const BEFORE: &str = "COUNTERSIGN_RUSTC_WRAPPER";
/// What runs on a cluster beside our own programs: the operators' command and the tests' app.
const OTHERS: &[&str] = &["countersign", "countersign-cluster-app"];

/// All programs that are linked twice.
fn programs() -> impl Iterator<Item = &'static str> {
    image::PROGRAMS.iter().map(|(name, _)| *name).chain(OTHERS.iter().copied())
}

/// Where cargo puts programs, and the folder in it for the static ones.
fn folders() -> Result<(PathBuf, PathBuf)> {
    let built = cargo::target_dir()?.join("debug");
    let folder = built.join("static");
    Ok((built, folder))
}

/// Has this cargo call us in place of rustc.
pub fn wrap(cargo: &mut Command) -> Result<()> {
    let (_, folder) = folders()?;
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    // The build links this very program anew, too: a copy stays where it is.
    let copy = folder.join("rustc");
    let beside = folder.join(format!("rustc.{}", std::process::id()));
    std::fs::copy("/proc/self/exe", &beside)
        .and_then(|_| std::fs::rename(&beside, &copy))
        .with_context(|| format!("copying this program to {}", copy.display()))?;
    if let Some(before) = std::env::var_os("RUSTC_WRAPPER").filter(|before| !before.is_empty()) {
        cargo.env(BEFORE, before);
    }
    cargo.env("RUSTC_WRAPPER", copy).env(FOLDER, folder);
    Ok(())
}

/// In place of rustc: does what rustc was told to do, and links one of our programs once more. `None`: we are not called so.
pub fn in_place_of_rustc() -> Option<ExitCode> {
    let folder = PathBuf::from(std::env::var_os(FOLDER)?);
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (rustc, args) = words.split_first()?;
    let call = |args: &[OsString]| {
        let mut command = match std::env::var_os(BEFORE) {
            Some(before) => {
                let mut command = Command::new(before);
                command.arg(rustc);
                command
            }
            None => Command::new(rustc),
        };
        command.args(args).env_remove(FOLDER).env_remove(BEFORE).env_remove("RUSTC_WRAPPER");
        command
    };
    let status = call(args).status();
    if let (Ok(status), Some(program)) = (&status, linked(args))
        && status.success()
    {
        link(call(&statically(args, &folder.join(&program))), &folder, &program);
    }
    Some(exit_code(status))
}

fn exit_code(status: std::io::Result<ExitStatus>) -> ExitCode {
    match status {
        Ok(status) => status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from),
        Err(problem) => {
            eprintln!("xtask: rustc does not start: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Links, and keeps what was said where it failed: whoever wants the program is told.
fn link(mut command: Command, folder: &Path, program: &str) {
    let (done, log) = (folder.join(program), folder.join(format!("{program}.log")));
    let said = match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() && std::fs::rename(done.with_extension("new"), &done).is_ok() => {
            drop(std::fs::remove_file(log));
            return;
        }
        Ok(output) => output.stderr,
        Err(problem) => problem.to_string().into_bytes(),
    };
    drop(std::fs::remove_file(done));
    drop(std::fs::write(log, said));
}

/// The name of the program of ours that these arguments link, as cargo tells it beside them.
fn linked(args: &[OsString]) -> Option<String> {
    let name = std::env::var("CARGO_BIN_NAME").ok()?;
    (links_a_program(args) && programs().any(|program| program == name)).then_some(name)
}

fn links_a_program(args: &[OsString]) -> bool {
    let has = |arg: &str| args.iter().any(|one| one == arg);
    let emitted = args.iter().filter_map(|arg| arg.to_str()?.strip_prefix("--emit="));
    has("--crate-type")
        && has("bin")
        && !has("--test")
        && emitted.flat_map(|kinds| kinds.split(',')).any(|kind| kind == "link")
}

/// The same arguments, for a static program at this path, and nothing beside it.
fn statically(args: &[OsString], program: &Path) -> Vec<OsString> {
    const ALONE: [&str; 3] = ["--emit=", "--error-format=", "--json="];
    const CODEGEN: [&str; 4] = ["incremental=", "extra-filename=", "debuginfo=", "strip="];
    let begins =
        |arg: &OsStr, with: &[&str]| arg.to_str().is_some_and(|arg| with.iter().any(|one| arg.starts_with(one)));
    let mut kept = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let takes_one = arg == "-C" || arg == "--out-dir";
        let value = if takes_one { rest.next() } else { None };
        if arg == "--out-dir" || begins(arg, &ALONE) || value.is_some_and(|value| begins(value, &CODEGEN)) {
            continue;
        }
        kept.push(arg.clone());
        kept.extend(value.cloned());
    }
    let further = ["--emit=link", "--cap-lints=allow", "-Cstrip=symbols", "-Ctarget-feature=+crt-static", "-o"];
    kept.extend(further.map(OsString::from));
    kept.push(program.with_extension("new").into());
    kept
}

/// The folder of the static programs of the last build. Where one is older than the program itself, which somebody has linked
/// without us, that is linked again.
///
/// # Errors
/// One cannot be linked statically here; what rustc said is in it.
pub fn of_the_build() -> Result<PathBuf> {
    let (built, folder) = folders()?;
    let stale: Vec<_> = programs().filter(|name| !as_new(&folder.join(name), &built.join(name))).collect();
    if !stale.is_empty() {
        for name in &stale {
            unlink(&built, name)?;
        }
        cargo::build_all()?;
    }
    for name in stale {
        if !as_new(&folder.join(name), &built.join(name)) {
            let why = std::fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
            bail!("{name} could not be linked statically: {}", why.trim());
        }
    }
    Ok(folder)
}

fn as_new(linked: &Path, program: &Path) -> bool {
    let when = |file: &Path| file.metadata().and_then(|meta| meta.modified());
    matches!((when(linked), when(program)), (Ok(linked), Ok(program)) if linked >= program)
}

/// Takes a program away, under both of its names, so that cargo links it again.
fn unlink(built: &Path, name: &str) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let program = built.join(name);
    let Ok(this) = program.metadata() else { return Ok(()) };
    let same = |file: &Path| file.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == (this.dev(), this.ino()));
    let deps = built.join("deps");
    let all = std::fs::read_dir(&deps).with_context(|| format!("reading {}", deps.display()))?;
    for file in all.flatten().map(|entry| entry.path()).filter(|file| same(file)).chain([program.clone()]) {
        std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn only_what_links_a_program_is_linked_twice() {
        assert!(links_a_program(&words("--crate-name a a.rs --crate-type bin --emit=dep-info,link -C opt-level=1")));
        for other in [
            "--crate-name a a.rs --crate-type lib --emit=dep-info,metadata,link",
            "--crate-name a a.rs --crate-type bin --emit=dep-info,metadata",
            "--crate-name a a.rs --emit=dep-info,link --test",
            "-vV",
        ] {
            assert!(!links_a_program(&words(other)), "{other}");
        }
    }

    #[test]
    fn a_static_program_is_told_apart_from_the_other_by_its_path_and_flags_alone() {
        let told = "--crate-name a a.rs --error-format=json --json=artifacts --crate-type bin --emit=dep-info,link -C opt-level=1 \
                    -C debuginfo=line-tables-only -C metadata=1f -C extra-filename=-2e --out-dir /t/deps -C incremental=/t/i -L dependency=/t/deps";
        let wanted = "--crate-name a a.rs --crate-type bin -C opt-level=1 -C metadata=1f -L dependency=/t/deps \
                      --emit=link --cap-lints=allow -Cstrip=symbols -Ctarget-feature=+crt-static -o /t/static/a.new";
        assert_eq!(statically(&words(told), Path::new("/t/static/a")), words(wanted));
    }
}
