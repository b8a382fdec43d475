//! `countersign status --watch`: the same again and again, until Ctrl-C or until nobody reads any more. Called by `status`.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Look;
use crate::args::StatusArgs;
use crate::output::{Format, Style, Verdict};

/// Cursor to the corner, and what is below it away: no flicker.
const HOME: &str = "\x1b[H";
const REST: &str = "\x1b[J";
/// What follows on a line away.
const LINE: &str = "\x1b[K\n";

/// Ends by Ctrl-C, with what was found last.
pub async fn watch(args: &StatusArgs, format: Format) -> Result<Verdict> {
    let terminal = io::stdout().is_terminal();
    if terminal && format == Format::Table {
        print("\x1b[2J")?;
    }
    // From the end of one look to the begin of the next: however slow the answers, there is a pause.
    let pause = Duration::from_secs(args.interval);
    let mut verdict = Verdict::Unknown;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let look = tokio::select! {
            look = Look::take(args) => look?,
            _ = &mut interrupted => return Ok(verdict),
        };
        verdict = look.verdict();
        let text = match format {
            // A line for each look.
            Format::Json => serde_json::to_string(&look.value()).context("writing JSON")? + "\n",
            Format::Table if terminal => {
                let text = format!("{}\n{}", now(), look.table(Style::detect()));
                format!("{HOME}{}{REST}", text.replace('\n', LINE))
            }
            Format::Table => format!("{}\n{}\n", now(), look.table(Style::detect())),
        };
        if !print(&text)? {
            return Ok(verdict);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut interrupted => return Ok(verdict),
        }
    }
}

fn now() -> String {
    let now = time::OffsetDateTime::now_utc().replace_nanosecond(0).ok();
    now.and_then(|now| now.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}

/// False if nobody reads any more.
fn print(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("standard output"),
    }
}
