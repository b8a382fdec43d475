//! How the CA is asked: by its admin socket, or through `kubectl exec`, where its image's own program asks that socket (`countersign-ca ask`).
//!
//! Called by `ca`. It must never take an answer that it does not understand for a yes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::args::RoadArgs;
use crate::status::admin;

/// Exit code of `countersign-ca ask` for a refusal that was told.
const REFUSED: i32 = 1;
/// The CA writes its state and its log before it answers.
const LIMIT: Duration = Duration::from_secs(30);

/// What became of a step.
pub enum Answer {
    /// Taken; where that led.
    Done(Value),
    /// Not taken; why.
    Refused(Value),
}

impl Answer {
    /// Where a step led that has to be taken.
    pub fn done(self) -> Result<Value> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Refused(refusal) => bail!("{}", refusal["refused"].as_str().unwrap_or("the CA refuses")),
        }
    }
}

/// The way to the CA.
pub enum Road {
    Socket(PathBuf),
    Kubectl { namespace: String },
}

impl Road {
    pub fn of(args: &RoadArgs) -> Self {
        match args.kubectl {
            true => Self::Kubectl { namespace: args.namespace.clone() },
            false => Self::Socket(args.socket.clone()),
        }
    }

    /// Where the rotation is.
    pub fn status(&self) -> Result<Value> {
        self.ask(false, "/rotation")?.done()
    }

    /// The signed report.
    pub fn report(&self) -> Result<Value> {
        self.ask(false, "/rotation/report")?.done()
    }

    /// Asks for a step: `prepare`, `activate`, `activate/forced` and so on.
    pub fn step(&self, step: &str) -> Result<Answer> {
        self.ask(true, &format!("/rotation/{step}"))
    }

    fn ask(&self, post: bool, path: &str) -> Result<Answer> {
        match self {
            Self::Socket(socket) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
                let asked = runtime.block_on(admin::call(socket, post, path, LIMIT));
                let (code, body) = asked.with_context(|| socket.display().to_string())?;
                let value = serde_json::from_slice(&body).context("the answer is not JSON");
                match code {
                    200 => Ok(Answer::Done(value?)),
                    409 => Ok(Answer::Refused(value?)),
                    code => bail!("{}: {path} was answered with {code}", socket.display()),
                }
            }
            Self::Kubectl { namespace } => exec(namespace, post, path),
        }
    }
}

fn exec(namespace: &str, post: bool, path: &str) -> Result<Answer> {
    let mut command = Command::new("kubectl");
    command.args([
        "--namespace",
        namespace,
        "exec",
        "deployment/countersign-ca",
        "--container",
        "countersign-ca",
        "--",
    ]);
    command.args(["/countersign-ca", "ask"]).args(post.then_some("--post")).arg(path);
    let output = command.stdin(std::process::Stdio::null()).output().context("kubectl")?;
    let value = || serde_json::from_slice(&output.stdout).context("what the CA said is not JSON");
    match output.status.code() {
        Some(0) => Ok(Answer::Done(value()?)),
        // kubectl's own failures have the same code, and say nothing on standard output.
        Some(REFUSED) if !output.stdout.is_empty() => Ok(Answer::Refused(value()?)),
        _ => bail!("kubectl exec: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}
