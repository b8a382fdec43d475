//! What the commands print: aligned tables, JSON, colour.
//!
//! Called by every command. It must never fail because the reader closed its end (`countersign status | head`).

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

impl Format {
    /// For a command that has nothing to tell in another form.
    ///
    /// # Errors
    /// With the reason, if JSON was asked for.
    pub fn is_of_no_use(self, because: &str) -> Result<()> {
        match self {
            Self::Table => Ok(()),
            Self::Json => bail!("-o json means nothing here: {because}"),
        }
    }
}

/// What a command found; becomes the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is so: 0.
    Yes,
    /// It is not: 1.
    No,
    /// It could not be found out here: 2.
    Unknown,
}

impl Verdict {
    /// `Yes` if it holds.
    pub fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// Writes to standard output; a closed reader is no error.
pub fn emit(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

/// Prints `value` as JSON, or what `table` makes.
pub fn either<T: Serialize>(format: Format, value: &T, table: impl FnOnce() -> String) -> Result<()> {
    match format {
        Format::Table => emit(&table()),
        Format::Json => emit(&(serde_json::to_string_pretty(value).context("writing JSON")? + "\n")),
    }
}

/// Rows under a head, in columns as wide as their widest cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column)).map(|cell| cell.chars().count());
    let widths: Vec<usize> =
        head.iter().enumerate().map(|(i, name)| cells(i).chain([name.len()]).max().unwrap_or(0)).collect();
    let mut text = String::new();
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{}{}  ", cell, " ".repeat(width.saturating_sub(cell.chars().count())));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Colours, where they are wanted (https://no-color.org).
#[derive(Clone, Copy, Debug)]
pub struct Style {
    color: bool,
}

impl Style {
    /// Colours if standard output is a terminal and NO_COLOR is not set.
    pub fn detect() -> Self {
        Self::of(std::env::var_os("NO_COLOR").as_deref(), io::stdout().is_terminal())
    }

    /// The same from what was found: set to nothing is not set.
    pub fn of(no_color: Option<&OsStr>, terminal: bool) -> Self {
        Self { color: terminal && no_color.is_none_or(OsStr::is_empty) }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// For what holds.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For what does not.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// For what could not be found out.
    pub fn unsure(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// For headings.
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// For what is beside the point.
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Somebody else chose some of these words: nothing in them may act on the terminal.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// The same on one line.
pub fn one_line(text: &str) -> String {
    harmless(text).replace('\n', " ")
}

/// A time span as people say it: the two largest units.
pub fn span(seconds: i64) -> String {
    let s = seconds.unsigned_abs();
    let text = match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    };
    if seconds < 0 { format!("{text} ago") } else { format!("in {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let text = table(&["NAME", "STATE"], &[vec!["a".into(), "ready".into()], vec!["longer".into(), "no".into()]]);
        assert_eq!(text, "NAME    STATE\na       ready\nlonger  no\n");
    }

    #[test]
    fn spans_are_said_in_their_largest_units() {
        assert_eq!(span(42), "in 42 s");
        assert_eq!(span(-3_700), "1 h 1 min ago");
        assert_eq!(span(90_000), "in 1 d 1 h");
    }

    #[test]
    fn colours_are_for_terminals_whose_user_has_not_refused_them() {
        let colours = |no_color: Option<&str>, terminal| Style::of(no_color.map(OsStr::new), terminal).color;
        assert!(colours(None, true) && colours(Some(""), true));
        assert!(!colours(Some("1"), true) && !colours(Some("0"), true) && !colours(Some("no"), true));
        assert!(!colours(None, false) && !colours(Some("1"), false));
    }

    #[test]
    fn without_colour_text_is_plain() {
        assert_eq!(Style { color: false }.bad("x"), "x");
        assert_eq!(Style { color: true }.good("x"), "\x1b[32mx\x1b[0m");
    }
}
