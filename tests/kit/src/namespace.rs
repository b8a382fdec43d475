//! One network namespace: run programs and closures in it.
//!
//! Made by [`crate::Net`] only; a pod is one with addresses, the link between the pods is one with the bridge.
//! It must never touch the namespace of the calling thread: all work is done by threads of its own, or by children.

use std::fs::{self, File};
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::PodCommand;
use crate::lacks::Here as _;
use crate::programs::need;

/// A network namespace with a name under /run/netns, so that `ip netns` knows it too.
pub struct Namespace {
    name: String,
    handle: File,
    rootless: bool,
}

impl Namespace {
    pub(crate) fn create(name: &str, rootless: bool) -> Result<Self> {
        run_ip(&["netns", "add", name]).here()?;
        let path = PathBuf::from("/run/netns").join(name);
        let handle = File::open(&path).with_context(|| path.display().to_string()).here()?;
        Ok(Self { name: name.into(), handle, rootless })
    }

    /// Its name under /run/netns.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.name
    }

    /// A program to be run here.
    #[must_use]
    pub fn command(&self, program: impl Into<std::ffi::OsString>) -> PodCommand {
        PodCommand::new(&self.name, self.rootless, program.into())
    }

    /// Runs a blocking closure on a thread in this namespace; sockets opened there stay there. A panic is passed on.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                step_in(&self.handle);
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs an async closure to its end, on a thread in this namespace with a runtime of its own. A panic is passed on.
    pub fn run<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.inside(|| runtime().block_on(work()))
    }

    /// Starts an async closure and comes back at once. The thread is not stopped by dropping the handle.
    ///
    /// # Errors
    /// If no thread can be started, or too many files are open.
    pub fn start<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> Result<Task<T>>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let handle = self.handle.try_clone()?;
        let thread = std::thread::Builder::new().name(self.name.clone()).spawn(move || {
            step_in(&handle);
            runtime().block_on(work())
        })?;
        Ok(Task(thread))
    }

    /// Sets a sysctl of this namespace, `net.ipv4.ip_forward` by its path `ipv4/ip_forward`.
    ///
    /// # Errors
    /// If the kernel has no such setting or refuses the value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = PathBuf::from("/proc/sys/net").join(path);
        self.inside(|| fs::write(&file, value)).with_context(|| format!("{} = {value}", file.display()))
    }

    /// Runs lines of `ip -batch` here, stopping at the first that fails.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let done = self.command("ip").args(["-batch", "-"]).stdin(lines).finish()?;
        ensure!(done.status.success(), "ip in {}: {} in:\n{lines}", self.name, done.errors().trim());
        Ok(())
    }

    /// Loads an nftables ruleset here by the `nft` program (the tests' judge and adversary; the product never calls it).
    ///
    /// # Errors
    /// With what `nft` said.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        let done = self.command("nft").args(["-f", "-"]).stdin(ruleset).finish()?;
        ensure!(done.status.success(), "nft in {}: {}", self.name, done.errors().trim());
        Ok(())
    }

    /// Process ids of all that run here (by their main thread), but for ourselves.
    fn processes(&self) -> Vec<Pid> {
        let Ok(own) = self.handle.metadata() else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| u32::try_from(*pid) != Ok(std::process::id()))
            .filter(|pid| {
                fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino()))
            })
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A fork may slip through one reading of /proc, not through many.
        for _ in 0..50 {
            let processes = self.processes();
            if processes.is_empty() {
                break;
            }
            for process in processes {
                let _ = kill(process, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = run_ip(&["netns", "del", &self.name]);
    }
}

/// Work that goes on in a namespace.
pub struct Task<T>(JoinHandle<T>);

impl<T> Task<T> {
    /// Waits for its end; a panic there is passed on here.
    pub fn join(self) -> T {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Has it ended?
    #[must_use]
    pub fn ended(&self) -> bool {
        self.0.is_finished()
    }
}

/// Moves the calling thread, which must be one of ours, for good.
fn step_in(handle: &File) {
    if let Err(error) = setns(handle, CloneFlags::CLONE_NEWNET) {
        panic!("setns: {error} (was enter() called first?)");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => panic!("runtime: {error}"),
    }
}

/// Runs `ip` where the process itself is.
fn run_ip(args: &[&str]) -> Result<()> {
    let done = std::process::Command::new(need("ip")?).args(args).output().context("ip")?;
    ensure!(done.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}
