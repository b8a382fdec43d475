//! Where processes of the mesh are asked: an admin socket on this machine, or a pod of a cluster through `kubectl exec`.
//!
//! Called by `status`, `explain` and `policy why`; `ca` shares its parts. It must never leave out a process that should have been asked: what
//! does not answer is an error that bears its place.

pub mod admin;
pub mod kubectl;
mod pods;
mod sockets;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use self::pods::Member;
use crate::args::PlaceArgs;
use crate::output;

/// Places that are asked at once.
const AT_ONCE: usize = 8;

/// What a place said; `None` where it has nothing under that path.
pub type Answer = Result<Option<Value>>;

/// Whose places are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// Sidecars', and with `kubectl` those of controller and CA in this namespace.
    All { system_namespace: &'a str },
    /// Those that decide about connections. (What a socket belongs to is known only once it is asked.)
    Sidecars,
}

/// Where one process is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Socket(PathBuf),
    Pod(Member),
    /// A process that a namespace should have, and has no pod of.
    Missing {
        program: &'static str,
        namespace: String,
    },
}

impl Place {
    /// A `GET` of its admin socket, bounded in time.
    pub async fn get(&self, path: &str) -> Answer {
        match self {
            Self::Socket(socket) => admin::get(socket, path).await,
            Self::Pod(member) => member.get(path).await,
            Self::Missing { namespace, .. } => bail!("no pod of it in namespace {namespace}"),
        }
    }

    /// What to call it while it has not said its own name.
    pub fn name(&self) -> String {
        match self {
            Self::Socket(socket) => socket.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Pod(member) => member.name(),
            Self::Missing { program, .. } => (*program).to_owned(),
        }
    }

    /// The pod of a sidecar, `namespace/name`, if it is known without asking.
    pub fn sidecar_of(&self) -> Option<String> {
        match self {
            Self::Pod(member) if member.is_sidecar() => Some(member.name()),
            _ => None,
        }
    }

    /// Whether what it says may count for others. Whoever may make a pod may put a program of his own in a sidecar's place: it speaks for
    /// itself alone, and under its own pod's UID. A socket of this machine is opened by our own user and root only.
    pub fn may_say(&self, status: &Value) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Pod(member) if member.is_sidecar() => {
                status["drift"].is_null() && status["pod"]["uid"] == member.uid.as_str()
            }
            Self::Pod(_) | Self::Missing { .. } => true,
        }
    }

    /// For programs.
    pub fn value(&self) -> Map<String, Value> {
        let (key, value) = match self {
            Self::Socket(socket) => ("socket", socket.display().to_string()),
            Self::Pod(member) => ("pod", member.name()),
            Self::Missing { program, .. } => ("missing", (*program).to_owned()),
        };
        Map::from_iter([(key.to_owned(), value.into())])
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => write!(f, "{}", socket.display()),
            Self::Pod(member) => write!(f, "pod {}", member.name()),
            Self::Missing { program, .. } => f.write_str(program),
        }
    }
}

/// Looks anew each time: processes come and go.
///
/// # Errors
/// A folder cannot be read, or the cluster not be asked; or there is no place at all.
pub async fn find(args: &PlaceArgs, whose: Whose<'_>) -> Result<Vec<Place>> {
    match args.kubectl {
        true => pods::find(args.namespace.as_deref(), whose).await,
        false => sockets::find(args),
    }
}

/// Asks places for `path`, [`AT_ONCE`] at a time, until an answer is `enough`; what was answered by then, in the order of the places.
pub async fn ask(places: Vec<Place>, path: &str, enough: fn(&Answer) -> bool) -> Result<Vec<(Place, Answer)>> {
    let (mut waiting, mut running) = (places.into_iter().enumerate(), JoinSet::new());
    let mut answers = Vec::new();
    loop {
        while running.len() < AT_ONCE
            && let Some((at, place)) = waiting.next()
        {
            let path = path.to_owned();
            running.spawn(async move {
                let answer = place.get(&path).await;
                (at, place, answer)
            });
        }
        let Some(ended) = running.join_next().await else { break };
        let (at, place, answer) = ended.context("asking")?;
        let last = enough(&answer);
        answers.push((at, place, answer));
        if last {
            break;
        }
    }
    answers.sort_by_key(|(at, ..)| *at);
    Ok(answers.into_iter().map(|(_, place, answer)| (place, answer)).collect())
}

/// What a place that did not answer is told as.
pub fn problem(place: &Place, error: &anyhow::Error) -> String {
    output::one_line(&format!("{place}: {error:#}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sidecars_program_speaks_for_its_own_pod_alone() {
        let member =
            |program| Place::Pod(Member { namespace: "shop".into(), pod: "a".into(), uid: "uid-a".into(), program });
        let sidecar = member(countersign_api::names::SIDECAR_CONTAINER);
        let own = json!({ "pod": { "uid": "uid-a" } });
        assert!(sidecar.may_say(&own));
        assert!(!sidecar.may_say(&json!({ "pod": { "uid": "uid-b" } })) && !sidecar.may_say(&json!({})));
        assert!(!sidecar.may_say(&json!({ "pod": { "uid": "uid-a" }, "drift": {} })));
        let controller = member(countersign_api::names::CONTROLLER_ACCOUNT);
        assert!(controller.may_say(&json!({ "drift": {} })));
        assert!(Place::Socket("/x.sock".into()).may_say(&json!({ "drift": {} })));
    }

    #[tokio::test]
    async fn no_more_is_asked_than_is_enough_and_answers_keep_their_order() {
        let missing = |namespace: &str| Place::Missing { program: "countersign-ca", namespace: namespace.to_owned() };
        let places: Vec<_> = (0..20).map(|n| missing(&format!("n{n:02}"))).collect();
        let all = ask(places.clone(), "/status", |_| false).await.unwrap();
        assert_eq!(all.iter().map(|(place, _)| place.clone()).collect::<Vec<_>>(), places);
        assert!(all.iter().all(|(_, answer)| answer.is_err()));
        assert_eq!(ask(places, "/status", Result::is_err).await.unwrap().len(), 1);
    }
}
