//! `countersign status`: asks running processes how they are, by their admin sockets, or in a cluster through `kubectl exec`.
//!
//! Called by `main`. It must never show a process that did not answer as well: no answer is exit code 1, nobody to ask 2.
//! Drift (`drift`) is exit code 1 too.

mod drift;
mod row;
mod watch;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::drift::Picture;
use crate::args::StatusArgs;
use crate::cluster::block_on;
use crate::output::{self, Format, Style, Verdict};
use crate::places::{self, Place, Whose};

/// Asks all, prints all; once, or until told to end.
pub fn run(args: &StatusArgs, format: Format) -> Result<Verdict> {
    if args.watch {
        return block_on(watch::watch(args, format));
    }
    let look = block_on(Look::take(args))?;
    output::either(format, &look.value(), || look.table(Style::detect()))?;
    Ok(look.verdict())
}

/// What all of them said at one time.
struct Look {
    answers: Vec<(Place, Result<Value>)>,
    picture: Picture,
}

impl Look {
    /// Places are looked for anew each time: processes come and go.
    async fn take(args: &StatusArgs) -> Result<Self> {
        let whose = Whose::All { system_namespace: &args.system_namespace };
        let asked = places::ask(places::find(&args.places, whose).await?, "/status", |_| false).await?;
        let status = |answer: places::Answer| answer?.context("/status was answered with 404 Not Found");
        let answers: Vec<_> = asked.into_iter().map(|(place, answer)| (place, status(answer))).collect();
        let good = answers.iter().filter_map(|(place, answer)| Some((place, answer.as_ref().ok()?)));
        let picture = Picture::of(good.filter(|(place, status)| place.may_say(status)).map(|(_, status)| status));
        Ok(Self { answers, picture })
    }

    fn verdict(&self) -> Verdict {
        let all_answer = self.answers.iter().all(|(_, answer)| answer.as_ref().is_ok_and(row::is_well));
        Verdict::of(all_answer && self.picture.is_well())
    }

    fn value(&self) -> Value {
        let processes: Vec<Value> = self.answers.iter().map(|(place, answer)| value(place, answer)).collect();
        json!({ "processes": processes, "drift": self.picture.value() })
    }

    fn table(&self, style: Style) -> String {
        let now = time::OffsetDateTime::now_utc();
        let lag = |answer: &Result<Value>| answer.as_ref().ok().and_then(|status| self.picture.lag(status));
        let rows = self.answers.iter().map(|(place, answer)| row::row(place, answer, lag(answer), now));
        let mut text = output::table(row::HEAD, &rows.collect::<Vec<_>>());
        for (place, answer) in &self.answers {
            let problems = match answer {
                Ok(status) => row::problems(status).into_iter().map(|problem| format!("{place}: {problem}")).collect(),
                Err(error) => vec![places::problem(place, error)],
            };
            for problem in problems {
                text += &format!("{} {problem}\n", style.bad("problem"));
            }
            for note in answer.iter().flat_map(row::notes) {
                text += &format!("{} {place}: {note}\n", style.unsure("note"));
            }
        }
        for line in self.picture.lines() {
            text += &format!("{} {line}\n", style.bad("drift"));
        }
        text
    }
}

fn value(place: &Place, answer: &Result<Value>) -> Value {
    let mut value = place.value();
    match answer {
        Ok(status) => value.insert("status".to_owned(), status.clone()),
        Err(error) => value.insert("error".to_owned(), format!("{error:#}").into()),
    };
    Value::Object(value)
}
