//! `countersign check`: whether a cluster can take the mesh (`--pre`), and whether the mesh in it is as it should be. One line a check, and what
//! to do where it is not.
//!
//! Called by `main`. It changes nothing: what it makes, it makes with `dryRun`. It must never call well what it could not look at: that is
//! `unknown`, and exit code 2 if nothing is worse. The order: `world` asks, `cluster` and `mesh` conclude from what was answered, purely.

mod cluster;
mod mesh;
mod rights;
mod served;
mod world;

use anyhow::Result;
use countersign_api::names;
use serde::Serialize;

use super::api::{Api, CallError, ClusterArgs};
use super::block_on;
use crate::install::ValueArgs;
use crate::output::{self, Format, Style, Verdict};

/// What can be said to `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Namespace of the mesh's own processes
    #[arg(short, long, default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
    /// Before the mesh is installed: whether this cluster can take it, and whether you may install it
    #[arg(long)]
    pre: bool,
    #[command(flatten)]
    values: ValueArgs,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Not as it should be.
    Problem,
    /// Could not be looked at.
    Unknown,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// What it is.
    pub state: State,
    /// In words.
    pub says: String,
    /// What to do, where there is something to do.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, state: State::Ok, says: says.into(), todo: None }
    }

    fn problem(check: &'static str, says: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { check, state: State::Problem, says: says.into(), todo: Some(todo.into()) }
    }

    fn unknown(check: &'static str, why: &CallError) -> Self {
        let todo = match why {
            CallError::Forbidden(_) => "ask with an account that may",
            _ => "try again; if it stays, look at the API server",
        };
        Self { check, state: State::Unknown, says: why.to_string(), todo: Some(todo.to_owned()) }
    }

    /// A problem if there is any word, each of them named; else well.
    fn none_of(check: &'static str, well: impl Into<String>, problems: &[String], todo: &str) -> Self {
        match problems {
            [] => Self::ok(check, well),
            some => Self::problem(check, some_of(some), todo),
        }
    }
}

/// The first few, and how many more.
fn some_of(words: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = words.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match words.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown}; and {more} more"),
        _ => shown,
    }
}

/// Asks, concludes, prints.
pub fn run(args: &CheckArgs, format: Format) -> Result<Verdict> {
    let findings = block_on(async {
        let api = Api::connect(&args.cluster).await?;
        let values = args.values.read()?;
        let world = world::World::ask(&api, &args.namespace, args.pre, &values).await?;
        let mut findings = cluster::findings(&world);
        findings.extend(rights::findings(&api, &world).await?);
        if !args.pre {
            findings.extend(mesh::findings(&world));
        }
        Ok(findings)
    })?;
    output::either(format, &findings, || table(&findings, Style::detect()))?;
    Ok(verdict(&findings))
}

fn verdict(findings: &[Finding]) -> Verdict {
    let any = |state| findings.iter().any(|finding| finding.state == state);
    match (any(State::Problem), any(State::Unknown)) {
        (true, _) => Verdict::No,
        (false, true) => Verdict::Unknown,
        (false, false) => Verdict::Yes,
    }
}

fn table(findings: &[Finding], style: Style) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let line = |finding: &Finding| {
        let state = match finding.state {
            State::Ok => style.good("ok     "),
            State::Problem => style.bad("problem"),
            State::Unknown => style.unsure("unknown"),
        };
        let todo = finding.todo.as_ref().map(|todo| format!(". To do: {todo}")).unwrap_or_default();
        format!("{state}  {:width$}  {}{todo}\n", finding.check, finding.says)
    };
    findings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_1_what_could_not_be_seen_is_2_and_well_is_0() {
        let well = Finding::ok("a", "fine");
        let unknown = Finding::unknown("b", &CallError::Forbidden("no".to_owned()));
        let problem = Finding::problem("c", "bad", "mend it");
        assert_eq!(verdict(std::slice::from_ref(&well)), Verdict::Yes);
        assert_eq!(verdict(&[well.clone(), unknown.clone()]), Verdict::Unknown);
        assert_eq!(verdict(&[well, unknown, problem]), Verdict::No);
    }

    #[test]
    fn a_line_says_what_to_do() {
        let text = table(&[Finding::problem("kernel", "node0: 4.19", "upgrade it")], Style::detect());
        assert!(text.contains("kernel  node0: 4.19. To do: upgrade it\n"), "{text}");
    }
}
