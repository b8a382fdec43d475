//! `cargo xtask cluster up|test|down`: a real Kubernetes cluster on this machine, from the repository and the Go module proxy alone.
//!
//! Called by people, and by `test` for its last step. What runs where is in tests/cluster/README.md. It must never leave anything behind
//! that it started, and must say what it cannot do here and why.

mod apps;
mod golang;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::TestProgram;
use crate::programs::{self, For};
use crate::report::said;
use crate::test::test_command;
use crate::{cargo, image, statics, suite};

const USAGE: &str = "\
cargo xtask cluster build          build all that a cluster needs, and no more
cargo xtask cluster up             build all that is needed, start a cluster of two nodes with our images loaded
cargo xtask cluster test [FILTER]  the tests on it; starts and stops one if none is up
cargo xtask cluster down           stop it; nothing is left but its logs in target/cluster/log";

/// The package of the tests, and of the app that they run.
pub const PACKAGE: &str = "countersign-cluster-tests";
const UP_LIMIT: Duration = Duration::from_secs(5 * 60);
const DOWN_LIMIT: Duration = Duration::from_secs(2 * 60);
const LOAD_LIMIT: Duration = Duration::from_secs(3 * 60);
/// The kit's own name for what it makes (`CLUSTER_NAME` in tests/cluster/kit/lib).
const NAME: &str = "cs";

/// `cargo xtask cluster ahead`: what `build` does after our own programs are built. For `Ahead` alone.
const AHEAD: &str = "ahead";

/// Why there can be no cluster on this machine: not a failure of ours.
#[derive(Debug)]
pub struct Cannot(pub String);

impl fmt::Display for Cannot {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for Cannot {}

/// Runs the command; 2 where there can be no cluster here.
pub fn run(args: &[String]) -> Result<u8> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["up"] => {
            possible()?;
            cargo::build_all()?;
            let bed = Bed::up()?;
            println!(
                "\nThe cluster is up, our images are loaded (localhost/countersign-*:{}).",
                env!("CARGO_PKG_VERSION")
            );
            println!("    export KUBECONFIG={}", bed.kubeconfig().display());
            println!("    alias kubectl='{} kubectl'", bed.built.join("bin/kube").display());
            println!("To stop it: cargo xtask cluster down");
            Ok(0)
        }
        ["build"] => {
            possible()?;
            cargo::build_all()?;
            build().map(|_| 0)
        }
        [AHEAD] => build().map(|_| 0),
        ["test"] => test(None),
        ["test", filter] => test(Some(filter)),
        ["down"] => {
            down(&built()?)?;
            println!("The cluster is down.");
            Ok(0)
        }
        [] => {
            println!("{USAGE}");
            Ok(2)
        }
        other => bail!("cargo xtask cluster {}: no such command\n{USAGE}", other.join(" ")),
    }
}

fn test(filter: Option<&str>) -> Result<u8> {
    possible()?;
    let programs = cargo::build_all()?;
    let bed = Bed::up()?;
    let ours = programs.into_iter().filter(|program| program.package == PACKAGE && program.kind == "test");
    let ran: Result<Vec<u8>> = ours
        .map(|program| {
            let program = bed.with(program);
            let status = test_command(&program).args(filter).status();
            let status = status.with_context(|| format!("running {}", program.executable.display()))?;
            Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2))
        })
        .collect();
    bed.end()?;
    Ok(ran?.into_iter().max().unwrap_or(2))
}

/// Makes all of it that is not yet there, with our own programs as they were built last: the folder it is in, and that of the images for
/// the tests.
fn build() -> Result<(PathBuf, PathBuf)> {
    let built = built()?;
    let began = Instant::now();
    golang::build(&built)?;
    apps::of_the_cluster(&built)?;
    said("programs of the cluster", began);
    let began = Instant::now();
    let images = built.join("images/tests");
    let statics = statics::of_the_build()?;
    // Beside it first: the one that is there may be running.
    let (program, beside) = (built.join("bin/countersign"), built.join("bin/countersign.new"));
    std::fs::copy(statics.join("countersign"), &beside)
        .and_then(|_| std::fs::rename(&beside, &program))
        .context("copying countersign")?;
    image::ours(&statics, "localhost", env!("CARGO_PKG_VERSION"), &images)?;
    apps::of_the_tests(&statics, &images)?;
    apps::of_the_demo(&images)?;
    said("images of our programs and of the test apps", began);
    Ok((built, images))
}

/// All of it built while something else runs that waits more than it works: a process of its own, which gets what nobody else wants of the
/// processors (`SCHED_IDLE`).
pub struct Ahead(Child);

impl Ahead {
    /// Starts; nothing where there can be no cluster, or no such process. What fails in it is tried again, and told, where the cluster is wanted.
    pub fn begin() -> Option<Self> {
        possible().ok()?;
        let log = built().ok()?.join("log");
        std::fs::create_dir_all(&log).ok()?;
        let output = std::fs::File::create(log.join("build.log")).ok()?;
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]);
        // The same for the disk, where its scheduler knows of it.
        if programs::find("ionice").is_some() {
            command.args(["ionice", "-c", "3"]);
        }
        command.arg(own_program()?).args(["cluster", AHEAD]);
        // In our own group: Ctrl-C ends it with us.
        command.stdin(Stdio::null()).stdout(output.try_clone().ok()?).stderr(output);
        command.spawn().ok().map(Self)
    }

    /// Waits for its end; whether it did all of it. What it said is in target/cluster/log/build.log.
    pub fn join(mut self) -> bool {
        self.0.wait().is_ok_and(|status| status.success())
    }
}

/// Where this program lies. The step before may have linked it anew: then the kernel tells the old one's path with a word behind it.
fn own_program() -> Option<PathBuf> {
    let told = std::env::current_exe().ok()?;
    let there = told.to_str()?.trim_end_matches(" (deleted)");
    Some(PathBuf::from(there)).filter(|program| program.is_file())
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // What it has started ends by itself, when the crate or module at hand is built.
        if matches!(self.0.try_wait(), Ok(None)) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

/// A cluster that is up, with all images loaded.
pub struct Bed {
    /// Where built programs and images are.
    pub built: PathBuf,
    /// Somebody else's: it is not ours to stop.
    was_up: bool,
}

impl Bed {
    /// Makes all that is not yet there, starts a cluster where none is up, and loads the images.
    pub fn up() -> Result<Self> {
        possible()?;
        let (built, images) = build()?;
        let bed = Self { was_up: is_up(&built)?, built };
        let began = Instant::now();
        if !bed.was_up {
            kit(&bed.built, "up", &[], UP_LIMIT).inspect_err(|_| drop(down(&bed.built)))?;
            said("the cluster is up", began);
        }
        let began = Instant::now();
        bed.load(&images).inspect_err(|_| drop(bed.end()))?;
        said("images loaded", began);
        Ok(bed)
    }

    /// A program of tests, told where the cluster's own programs are.
    pub fn with(&self, program: TestProgram) -> TestProgram {
        TestProgram { built: Some(self.built.clone()), ..program }
    }

    fn load(&self, images: &Path) -> Result<()> {
        let entries = std::fs::read_dir(images).with_context(|| format!("reading {}", images.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "tar"));
        files.sort();
        let files: Vec<_> = files.iter().map(|file| file.to_string_lossy().into_owned()).collect();
        kit(&self.built, "load", &files, LOAD_LIMIT)
    }

    fn kubeconfig(&self) -> PathBuf {
        PathBuf::from(state()).join("admin.conf")
    }

    /// Stops it if it was started here.
    pub fn end(&self) -> Result<()> {
        if self.was_up {
            return Ok(());
        }
        down(&self.built)
    }
}

/// Stops whatever runs, and sees that nothing is left.
fn down(built: &Path) -> Result<()> {
    kit(built, "down", &[], DOWN_LIMIT)?;
    let left = left_over();
    if !left.is_empty() {
        bail!("the cluster is down, but has left: {}", left.join(", "));
    }
    Ok(())
}

/// What of a cluster is still on this machine.
fn left_over() -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["/run/netns", "/sys/class/net", "/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == NAME || name.starts_with(&format!("{NAME}-")) {
                left.push(entry.path().display().to_string());
            }
        }
    }
    left.extend(Some(state()).filter(|state| Path::new(state).exists()));
    left
}

/// Whether this machine can hold a cluster; installs Debian packages where that is what is missing.
fn possible() -> Result<()> {
    if !programs::is_root() {
        bail!(Cannot("a cluster needs root: nodes are namespaces with containers of their own in them".to_owned()));
    }
    let mut lacking: Vec<_> = programs::ensure(For::Cluster).iter().map(|program| program.name).collect();
    lacking.retain(|name| *name != "python3-pip"); // nothing is lacking where there is a Go, and else `golang` tells
    if !lacking.is_empty() {
        let (names, line) = (lacking.join(", "), programs::to_type(&lacking));
        bail!(Cannot(format!("missing programs: {names}; type: {line}")));
    }
    let version_2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let probe = PathBuf::from(if version_2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" }).join("cs-probe");
    match std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)) {
        Ok(()) => Ok(()),
        Err(problem) => bail!(Cannot(format!("no control group can be made ({}: {problem})", probe.display()))),
    }
}

/// Sees to it that the judges of the chart are built (Helm, kubeconform), where the tests of the chart look for them.
pub fn judges() -> Result<()> {
    golang::judges(&built()?)
}

/// Where everything that is built is kept.
fn built() -> Result<PathBuf> {
    Ok(cargo::target_dir()?.join("cluster"))
}

fn state() -> String {
    std::env::var("CLUSTER_DIR").unwrap_or_else(|_| "/var/tmp/countersign-cluster".to_owned())
}

/// Whether one runs, with all its machines. What is left of one that was killed, as by a restart of this machine, is none.
fn is_up(built: &Path) -> Result<bool> {
    let (_, status) = suite::capture(script(built, "running"), DOWN_LIMIT, false)?;
    Ok(status.is_some_and(|status| status.success()))
}

/// One of the kit's scripts.
fn script(built: &Path, name: &str) -> Command {
    let mut command = Command::new(cargo::root().join("tests/cluster/kit").join(name));
    command.env("CLUSTER_BUILT", built);
    command
}

/// Calls one of them.
fn kit(built: &Path, name: &str, args: &[String], limit: Duration) -> Result<()> {
    let mut command = script(built, name);
    command.args(args);
    let (output, status) = suite::capture(command, limit, false)?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("tests/cluster/kit/{name}: {status}\n{output}"),
        None => bail!("tests/cluster/kit/{name}: no end after {} s\n{output}", limit.as_secs()),
    }
}
