//! What the demo says: narration for people as it goes, one JSON value for programs at the end.
//!
//! Called by `demo` and the claims. It must never say that something holds which was not just measured.

use std::time::{Duration, Instant};

use anyhow::Result;
use countersign_kit::Lacks;
use serde_json::{Value, json};

use crate::output::{Format, Style, Verdict, emit};

/// The narrator.
pub struct Say {
    style: Style,
    format: Format,
    started: Instant,
    claims: Vec<Value>,
    facts: Vec<String>,
    figures: serde_json::Map<String, Value>,
    worst: Verdict,
}

impl Say {
    /// With JSON wanted, the narration goes to standard error.
    pub fn new(format: Format) -> Self {
        Self {
            style: Style::detect(),
            format,
            started: Instant::now(),
            claims: Vec::new(),
            facts: Vec::new(),
            figures: serde_json::Map::new(),
            worst: Verdict::Yes,
        }
    }

    /// A line of narration.
    pub fn line(&self, text: &str) {
        match self.format {
            // A reader that went away does not stop the demo: its exit code still counts.
            Format::Table => drop(emit(&format!("{text}\n"))),
            Format::Json => eprintln!("{text}"),
        }
    }

    /// What is typed in a pod.
    pub fn command(&self, pod: &str, command: &str) {
        self.line(&format!("   {} {command}", self.style.faint(&format!("{pod}$"))));
    }

    /// Something seen just now.
    pub fn fact(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.line(&format!("   {text}"));
        self.facts.push(text);
    }

    /// A measured number, for programs.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Runs one claim and says what came of it: an error of the machine ([`Lacks`]) is no answer, any other makes it false.
    pub fn claim(&mut self, number: u8, title: &str, check: impl FnOnce(&mut Self) -> Result<()>) {
        self.line("");
        self.line(&self.style.strong(&format!("{number}. {title}")));
        let began = Instant::now();
        let result = check(self);
        let took = seconds(began.elapsed());
        let (word, reason) = match &result {
            Ok(()) => ("SHOWN", None),
            Err(error) => match Lacks::reason(error) {
                Some(reason) => ("NOT SHOWN", Some(reason)),
                None => ("FALSE", Some(format!("{error:#}"))),
            },
        };
        self.line(&match &reason {
            None => format!("   {} ({took})", self.style.good(word)),
            Some(why) if word == "FALSE" => format!("   {}: {why}", self.style.bad(word)),
            Some(why) => format!("   {}: {why}", self.style.unsure(word)),
        });
        self.worst = worse(self.worst, word);
        self.claims.push(json!({
            "number": number,
            "title": title,
            "verdict": word,
            "reason": reason,
            "facts": std::mem::take(&mut self.facts),
            "figures": std::mem::take(&mut self.figures),
        }));
    }

    /// Says that nothing could be shown.
    pub fn nothing(&mut self, why: &str) {
        self.line(&format!("{}: {why}", self.style.unsure("NOT SHOWN")));
        self.claims.push(json!({ "verdict": "NOT SHOWN", "reason": why }));
        self.worst = worse(self.worst, "NOT SHOWN");
    }

    /// The summary; gives what the exit code is made of.
    pub fn finish(&self) -> Result<Verdict> {
        let shown = self.claims.iter().filter(|claim| claim["verdict"] == "SHOWN").count();
        let took = seconds(self.started.elapsed());
        self.line("");
        self.line(&self.style.strong(&format!("{shown} of {} claims shown, in {took}", self.claims.len())));
        if self.format == Format::Json {
            let value = json!({ "seconds": self.started.elapsed().as_secs_f64(), "claims": self.claims });
            emit(&(serde_json::to_string_pretty(&value)? + "\n"))?;
        }
        Ok(self.worst)
    }

    /// The style in use.
    pub fn style(&self) -> Style {
        self.style
    }
}

/// False is worse than unknown, unknown worse than shown.
fn worse(so_far: Verdict, word: &str) -> Verdict {
    match (so_far, word) {
        (Verdict::No, _) | (_, "FALSE") => Verdict::No,
        (_, "NOT SHOWN") => Verdict::Unknown,
        (other, _) => other,
    }
}

/// A short time for people.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A latency for people.
pub fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use countersign_kit::Here as _;

    use super::*;

    fn run(results: Vec<Result<()>>) -> Verdict {
        let mut say = Say::new(Format::Json);
        for result in results {
            say.claim(1, "title", |_| result);
        }
        say.worst
    }

    fn not_shown() -> Result<()> {
        Err::<(), _>(anyhow::anyhow!("no packet socket")).here()
    }

    #[test]
    fn one_false_claim_makes_it_false_whatever_else() {
        assert_eq!(run(vec![Ok(()), Err(anyhow::anyhow!("seen in the clear")), not_shown(), Ok(())]), Verdict::No);
        assert_eq!(run(vec![not_shown(), Err(anyhow::anyhow!("x"))]), Verdict::No);
    }

    #[test]
    fn what_could_not_be_shown_is_neither_yes_nor_no() {
        assert_eq!(run(vec![Ok(()), not_shown()]), Verdict::Unknown);
        assert_eq!(run(vec![Ok(()), not_shown().context("while capturing")]), Verdict::Unknown);
        assert_eq!(run(vec![Ok(()), Ok(())]), Verdict::Yes);
    }

    #[test]
    fn a_program_that_is_missing_and_a_port_that_is_taken_are_the_machines() {
        let missing = countersign_kit::programs::need("no-such-program").map(drop);
        assert_eq!(run(vec![Ok(()), missing.map_err(Into::into)]), Verdict::Unknown);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let again = || std::net::TcpListener::bind(taken.local_addr().unwrap()).map(drop);
        assert_eq!(run(vec![again().context("a plain relay").here()]), Verdict::Unknown);
        assert_eq!(run(vec![again().context("the same, of the product")]), Verdict::No);
    }
}
