//! `countersign demo`: a whole mesh on this machine, each claim of it shown and checked.
//!
//! Called by `main` before any thread runs, since it enters namespaces of its own. Exit 0: all claims hold. 1: one is
//! false. 2: one could not be shown here, and why. It must never print a figure that was not measured just then, and
//! never change anything outside of its own namespaces.

mod apps;
mod claims;
mod exec;
mod keep;
mod say;
mod stage;

use std::time::Instant;

use anyhow::Result;
use countersign_kit::enter;
use countersign_kit::programs::there;

use crate::args::{DemoArgs, DemoCommand};
use crate::output::{Format, Verdict};
use say::{Say, seconds};
use stage::Stage;

/// The real programs that it shows, and those that make its pods.
const PROGRAMS: &[&str] = &["curl", "nginx", "ip", "nsenter", "unshare", "setpriv"];

/// Runs it.
pub fn run(args: &DemoArgs, format: Format) -> Result<Verdict> {
    if let Some(DemoCommand::Exec { pod, command }) = &args.command {
        format.is_of_no_use("what is printed is the command's own (its own options stand behind POD)")?;
        match exec::run(pod, command)? {}
    }
    if let Some(why) = lacking() {
        return nothing(format, &why);
    }
    let inside = match enter() {
        Ok(inside) => inside,
        Err(error) => return nothing(format, &error.to_string()),
    };
    let mut say = Say::new(format);
    let who = if inside.rootless() { "an ordinary user, in a user namespace" } else { "root" };
    say.line(&say.style().strong(&format!("Countersign: a mesh on this machine, run by {who}")));
    let began = Instant::now();
    let stage = match Stage::start(inside) {
        Ok(stage) => stage,
        Err(error) => {
            say.claim(0, "The mesh starts", |_| Err(error));
            return say.finish();
        }
    };
    say.line(&format!(
        "   CA, controller, 4 sidecars, 3 nginx, each pod a network namespace: up in {}",
        seconds(began.elapsed())
    ));
    show(&stage, &args.claims, &mut say);
    let verdict = say.finish()?;
    if args.keep {
        keep::wait(&stage, &say)?;
    }
    Ok(verdict)
}

type Check = fn(&Stage, &mut Say) -> Result<()>;

const CLAIMS: [(u8, &str, Check); 7] = [
    (1, "An unmodified curl reaches an unmodified nginx over mutual TLS", claims::encrypted::check),
    (2, "A protocol in which the server speaks first does not stall", claims::server_first::check),
    (3, "Who is not allowed is refused, with a reason", claims::refused::check),
    (4, "What it costs in latency", claims::latency::check),
    (
        5,
        "A rule that goes ends the connections that it allowed, and no other; the denial explains itself",
        claims::rules::check,
    ),
    (6, "The root certificate is replaced under load, and nothing fails", claims::rotation::check),
    (7, "The CA goes away for a while, and nothing fails", claims::outage::check),
];

fn show(stage: &Stage, wanted: &[u8], say: &mut Say) {
    for (number, title, check) in CLAIMS {
        if wanted.is_empty() || wanted.contains(&number) {
            say.claim(number, title, |say| check(stage, say));
        }
    }
}

fn nothing(format: Format, why: &str) -> Result<Verdict> {
    let mut say = Say::new(format);
    say.nothing(why);
    say.finish()
}

/// Programs that are not there, with the line to type.
fn lacking() -> Option<String> {
    if let Err(error) = stage::binaries() {
        return Some(format!("{error:#}"));
    }
    there(PROGRAMS).err().map(|missing| missing.to_string())
}
