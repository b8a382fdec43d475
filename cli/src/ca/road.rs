//! How the CA is asked: by its admin socket, or through `kubectl exec`, where its image's own program asks that socket (`countersign-ca ask`).
//!
//! Called by `ca`. It must never take an answer that it does not understand for a yes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use countersign_api::names::CA_ACCOUNT;
use serde_json::Value;

use crate::args::RoadArgs;
use crate::cluster::block_on;
use crate::places::{admin, kubectl};

/// Any of its pods.
const TARGET: &str = "deployment/countersign-ca";

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
                let asked = block_on(admin::call(socket, post, path, LIMIT));
                let (code, body) = asked.with_context(|| socket.display().to_string())?;
                let value = serde_json::from_slice(&body).context("the answer is not JSON");
                match code {
                    200 => Ok(Answer::Done(value?)),
                    409 => Ok(Answer::Refused(value?)),
                    code => bail!("{}: {path} was answered with {code}", socket.display()),
                }
            }
            Self::Kubectl { namespace } => {
                let words = if post { &["--post", path][..] } else { &[path] };
                let said = block_on(kubectl::ask(namespace, TARGET, CA_ACCOUNT, words, LIMIT + kubectl::LIMIT))?;
                match said.code {
                    Some(0) => Ok(Answer::Done(said.json()?)),
                    // kubectl's own failures have the same code, and say nothing on standard output.
                    Some(REFUSED) if !said.stdout.is_empty() => Ok(Answer::Refused(said.json()?)),
                    _ => bail!(said.failure()),
                }
            }
        }
    }
}
