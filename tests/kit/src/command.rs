//! A foreign program, about to be run in a namespace.
//!
//! Made by [`crate::Namespace::command`]. It must never run anything outside that namespace.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::child::{Finished, Running, finish};
use crate::programs::need;

/// How long [`PodCommand::finish`] waits, if nothing else was said.
const LIMIT: Duration = Duration::from_secs(60);

/// A program with its arguments, to be run in a pod by `nsenter`.
#[derive(Debug)]
pub struct PodCommand {
    netns: String,
    rootless: bool,
    uid: Option<u32>,
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    stdin: Vec<u8>,
    limit: Duration,
}

impl PodCommand {
    pub(crate) fn new(netns: &str, rootless: bool, program: OsString) -> Self {
        Self {
            netns: netns.into(),
            rootless,
            uid: None,
            program,
            args: Vec::new(),
            envs: Vec::new(),
            folder: None,
            stdin: Vec::new(),
            limit: LIMIT,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((key.into(), value.into()));
        self
    }

    /// Runs it as this user and group, with no capability. Where there is only one UID (rootless) that is an error.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Its working folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// What it reads from standard input (`finish` only).
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long `finish` waits for its end; 60 s if not said.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end, whatever its exit code.
    ///
    /// # Errors
    /// If it is not installed or cannot be started (see [`crate::Lacks`]), or does not end in time.
    pub fn finish(mut self) -> Result<Finished> {
        let (stdin, limit) = (std::mem::take(&mut self.stdin), self.limit);
        finish(self.into_std()?, stdin, limit)
    }

    /// Runs it to its end and wants exit code 0; gives standard output.
    ///
    /// # Errors
    /// As `finish`, and with what it said if the exit code is another.
    pub fn succeed(self) -> Result<String> {
        let name = self.name();
        let done = self.finish()?;
        ensure!(done.status.success(), "{name}: {}: {}{}", done.status, done.text(), done.errors());
        Ok(done.text())
    }

    /// Starts it; it is killed, with all it forked, when the handle is dropped.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(self) -> Result<Running> {
        let name = self.name();
        Running::start(self.into_std()?, name)
    }

    /// As a standard command, for uses that this type does not know; give it to `tokio::process::Command::from`
    /// for async. What it starts is killed when its pod is dropped.
    ///
    /// # Errors
    /// If another user is asked for where there is only one; if the program is not installed ([`crate::programs::Missing`]).
    pub fn into_std(self) -> Result<Command> {
        // A program of ours is named by its path, and is no business of a package.
        let program = match self.program.to_str().filter(|name| !name.contains('/')) {
            Some(name) => need(name)?.into(),
            None => self.program.clone(),
        };
        let mut command = Command::new(need("nsenter")?);
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--");
        if let Some(uid) = self.uid {
            ensure!(!self.rootless, "user {uid}: there is only one user in a rootless namespace");
            need("setpriv")?;
            command.args(["setpriv", &format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--"]);
        }
        // Settings of ours in the caller's environment are not the program's.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("COUNTERSIGN_")) {
            command.env_remove(key);
        }
        command.arg(program).args(&self.args).envs(self.envs.iter().map(|(k, v)| (k, v)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        Ok(command)
    }

    fn name(&self) -> String {
        let program = std::path::Path::new(&self.program).file_name().unwrap_or(OsStr::new("?"));
        format!("{} in {}", program.display(), self.netns)
    }
}
