//! Programs that run in a pod: started, watched by their log lines, bounded in time, killed with all they forked.
//!
//! Made by [`crate::PodCommand`]. It must never leave a process behind: each has a process group of its own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::lacks::Here as _;

/// The log keeps this many of the newest lines, each cut to [`LINE`] bytes.
const LINES: usize = 20_000;
const LINE: u64 = 64 * 1024;
/// What `finish` keeps of each output stream.
const OUTPUT: u64 = 64 * 1024 * 1024;

/// What a program left when it was over.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// At most 64 MiB of it.
    pub stdout: Vec<u8>,
    /// At most 64 MiB of it.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Runs `command` to its end, at most for `limit`, feeding it `stdin`.
pub(crate) fn finish(mut command: Command, stdin: Vec<u8>, limit: Duration) -> Result<Finished> {
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Group(command.spawn().with_context(|| format!("{command:?}")).here()?);
    let (input, out, err) = (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
    std::thread::spawn(move || input.map(|mut input| input.write_all(&stdin)));
    let (stdout, stderr) = (collect(out), collect(err));
    let status = child.wait(limit).with_context(|| format!("{command:?}"));
    drop(child); // whatever it forked holds the pipes: end it first, then the collectors end
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    let status = status.with_context(|| format!("it said: {}", String::from_utf8_lossy(&stderr)))?;
    Ok(Finished { status, stdout, stderr })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.by_ref().take(OUTPUT).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        bytes
    })
}

/// A child that leads a process group; all of the group dies on drop.
struct Group(Child);

impl Group {
    fn signal(&self, signal: Signal) {
        // After it was reaped its number may be another's: `try_wait` first, see `exited`.
        let _ = killpg(Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(i32::MAX)), signal);
    }

    fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() >= limit {
                bail!("still running after {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group's number is not given away while any member lives, and ours is a private pid namespace.
        self.signal(Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// A program that runs until it is dropped or told to end. Both its output streams are read all the time, as one log.
pub struct Running {
    group: Group,
    log: Arc<Log>,
    name: String,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Default)]
struct Lines {
    newest: VecDeque<String>,
    dropped: usize,
    open: usize,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, stream: Option<impl Read + Send + 'static>) {
        let Some(stream) = stream else { return };
        self.lock().open += 1;
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(reader.by_ref().take(LINE).read_until(b'\n', &mut line), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let mut lines = log.lock();
                if lines.newest.len() == LINES {
                    lines.newest.pop_front();
                    lines.dropped += 1;
                }
                lines.newest.push_back(text);
                log.more.notify_all();
            }
            log.lock().open -= 1;
            log.more.notify_all();
        });
    }
}

impl Running {
    pub(crate) fn start(mut command: Command, name: String) -> Result<Self> {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{command:?}")).here()?;
        let log = Arc::new(Log::default());
        log.follow(child.stdout.take());
        log.follow(child.stderr.take());
        Ok(Self { group: Group(child), log, name })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.0.id()
    }

    /// What it has written so far, both streams, the newest 20,000 lines.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lock().newest.iter().cloned().collect()
    }

    /// The same once it has closed its output, or after `limit`: what a program that has ended said last may not be read yet.
    #[must_use]
    pub fn log_to_its_end(&self, limit: Duration) -> Vec<String> {
        let lines = self.log.lock();
        let waited = self.log.more.wait_timeout_while(lines, limit, |lines| lines.open > 0);
        let lines = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(lines, _)| lines);
        lines.newest.iter().cloned().collect()
    }

    /// The first line, from the start of its log on, that `wanted` accepts; waits for it at most `limit`.
    ///
    /// # Errors
    /// With the end of the log, if the line did not come in time or the program closed its output without it.
    pub fn wait_for_line(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let start = Instant::now();
        let mut seen = 0;
        let mut lines = self.log.lock();
        loop {
            let skip = seen.max(lines.dropped) - lines.dropped;
            if let Some(line) = lines.newest.iter().skip(skip).find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = lines.dropped + lines.newest.len();
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() || lines.open == 0 {
                let tail: Vec<&str> = lines.newest.iter().rev().take(30).rev().map(String::as_str).collect();
                let why = if left.is_zero() { format!("not within {limit:?}") } else { "it ended its output".into() };
                bail!("{}: the line did not come ({why}); its log ends:\n{}", self.name, tail.join("\n"));
            }
            lines = self
                .log
                .more
                .wait_timeout(lines, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(lines, _)| lines);
        }
    }

    /// Sends a signal to it and all it forked.
    pub fn signal(&self, signal: Signal) {
        self.group.signal(signal);
    }

    /// Sends a signal to the program alone (an nginx master, not its workers).
    pub fn signal_leader(&self, signal: Signal) {
        let _ = nix::sys::signal::kill(Pid::from_raw(i32::try_from(self.pid()).unwrap_or(i32::MAX)), signal);
    }

    /// Ctrl-C, to the program alone: a tracer that ends so prints what it counted.
    pub fn interrupt(&self) {
        self.signal_leader(Signal::SIGINT);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.group.wait(limit).with_context(|| self.name.clone())
    }

    /// Has it ended?
    pub fn ended(&mut self) -> bool {
        matches!(self.group.0.try_wait(), Ok(Some(_)))
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid())
    }
}
