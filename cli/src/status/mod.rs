//! `countersign status`: asks running processes how they are, by their admin sockets.
//!
//! Called by `main`. It must never show a process that did not answer as well: no answer is exit code 1, no socket 2.
//! Drift (`drift`) is exit code 1 too.

pub(crate) mod admin;
mod drift;
mod row;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::drift::Picture;
use crate::args::{SocketArgs, StatusArgs};
use crate::output::{self, Format, Style, Verdict};

/// Where sockets are looked for when nothing is said.
const DEFAULT_DIR: &str = "/run/countersign";
/// How deep below `--dir` sockets are looked for.
const DEPTH: usize = 4;

/// Sockets that are asked at once.
const AT_ONCE: usize = 16;

/// Asks all, prints all; once, or until told to end.
pub fn run(args: &StatusArgs, format: Format) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    if args.watch {
        return runtime.block_on(watch::watch(args, format));
    }
    let look = runtime.block_on(Look::take(&args.sockets))?;
    output::either(format, &look.value(), || look.table(Style::detect()))?;
    Ok(look.verdict())
}

/// What all of them said at one time.
struct Look {
    answers: Vec<(PathBuf, Result<Value>)>,
    picture: Picture,
}

impl Look {
    /// Sockets are looked for anew each time: processes come and go.
    async fn take(args: &SocketArgs) -> Result<Self> {
        let sockets = sockets(args)?;
        let mut answers: Vec<Option<Result<Value>>> = sockets.iter().map(|_| None).collect();
        let mut asked = sockets.clone().into_iter().enumerate();
        let mut running = tokio::task::JoinSet::new();
        let next = |(at, socket): (usize, PathBuf)| async move { (at, admin::status(&socket).await) };
        asked.by_ref().take(AT_ONCE).for_each(|one| drop(running.spawn(next(one))));
        while let Some(ended) = running.join_next().await {
            let (at, answer) = ended.context("asking")?;
            answers[at] = Some(answer);
            asked.next().map(|one| running.spawn(next(one)));
        }
        let answers = answers.into_iter().flatten();
        let answers: Vec<_> = sockets.into_iter().zip(answers).collect();
        let picture = Picture::of(answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()));
        Ok(Self { answers, picture })
    }

    fn verdict(&self) -> Verdict {
        let all_answer = self.answers.iter().all(|(_, answer)| answer.as_ref().is_ok_and(row::is_well));
        Verdict::of(all_answer && self.picture.is_well())
    }

    fn value(&self) -> Value {
        let processes: Vec<Value> = self.answers.iter().map(|(socket, answer)| value(socket, answer)).collect();
        json!({ "processes": processes, "drift": self.picture.value() })
    }

    fn table(&self, style: Style) -> String {
        let now = time::OffsetDateTime::now_utc();
        let lag = |answer: &Result<Value>| answer.as_ref().ok().and_then(|status| self.picture.lag(status));
        let rows = self.answers.iter().map(|(socket, answer)| row::row(socket, answer, lag(answer), now));
        let mut text = output::table(row::HEAD, &rows.collect::<Vec<_>>());
        for (socket, answer) in &self.answers {
            let problems = match answer {
                Ok(status) => row::problems(status),
                Err(error) => vec![format!("{error:#}")],
            };
            for problem in problems {
                text += &format!("{} {}: {problem}\n", style.bad("problem"), socket.display());
            }
            for note in answer.iter().flat_map(row::notes) {
                text += &format!("{} {}: {note}\n", style.unsure("note"), socket.display());
            }
        }
        for line in self.picture.lines() {
            text += &format!("{} {line}\n", style.bad("drift"));
        }
        text
    }
}

fn value(socket: &Path, answer: &Result<Value>) -> Value {
    match answer {
        Ok(status) => json!({ "socket": socket, "status": status }),
        Err(error) => json!({ "socket": socket, "error": format!("{error:#}") }),
    }
}

/// The sockets named, and those in the folders named.
pub(crate) fn sockets(args: &SocketArgs) -> Result<Vec<PathBuf>> {
    let mut all = args.sockets.clone();
    let default = [PathBuf::from(DEFAULT_DIR)];
    let dirs = if args.sockets.is_empty() && args.dirs.is_empty() { &default[..] } else { &args.dirs[..] };
    for dir in dirs {
        let before = all.len();
        walk(dir, DEPTH, &mut all).with_context(|| {
            let hint = if args.dirs.is_empty() { "; say --socket PATH or --dir FOLDER" } else { "" };
            format!("looking for sockets in {}{hint}", dir.display())
        })?;
        all[before..].sort();
    }
    if all.is_empty() {
        bail!("no admin socket found; say --socket PATH or --dir FOLDER");
    }
    Ok(all)
}

fn walk(dir: &Path, depth: usize, sockets: &mut Vec<PathBuf>) -> std::io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 1 {
            walk(&entry.path(), depth - 1, sockets)?;
        } else if kind.is_socket() && entry.path().extension().is_some_and(|extension| extension == "sock") {
            sockets.push(entry.path());
        }
    }
    Ok(())
}
