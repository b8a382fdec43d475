//! `countersign status`: asks running processes how they are, by their admin sockets.
//!
//! Called by `main`. It must never show a process that did not answer as well: no answer is exit code 1, no socket 2.

pub(crate) mod admin;
mod row;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::args::{SocketArgs, StatusArgs};
use crate::output::{self, Format, Style, Verdict};

/// Where sockets are looked for when nothing is said.
const DEFAULT_DIR: &str = "/run/countersign";
/// How deep below `--dir` sockets are looked for.
const DEPTH: usize = 4;

/// Asks all, prints all.
pub fn run(args: &StatusArgs, format: Format) -> Result<Verdict> {
    let sockets = sockets(&args.sockets)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    let answers: Vec<(PathBuf, Result<Value>)> = runtime.block_on(async {
        let mut answers = Vec::new();
        for socket in sockets {
            let answer = admin::status(&socket).await;
            answers.push((socket, answer));
        }
        answers
    });
    let all_well = answers.iter().all(|(_, answer)| answer.as_ref().is_ok_and(row::is_well));
    let values: Vec<Value> = answers.iter().map(|(socket, answer)| value(socket, answer)).collect();
    output::either(format, &values, || table(&answers, Style::detect()))?;
    Ok(Verdict::of(all_well))
}

fn value(socket: &Path, answer: &Result<Value>) -> Value {
    match answer {
        Ok(status) => json!({ "socket": socket, "status": status }),
        Err(error) => json!({ "socket": socket, "error": format!("{error:#}") }),
    }
}

fn table(answers: &[(PathBuf, Result<Value>)], style: Style) -> String {
    let now = time::OffsetDateTime::now_utc();
    let rows: Vec<_> = answers.iter().map(|(socket, answer)| row::row(socket, answer, now)).collect();
    let mut text = output::table(row::HEAD, &rows);
    for (socket, answer) in answers {
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
    text
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
