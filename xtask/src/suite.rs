//! Runs one program that holds tests and reads what it says: libtest's format, which libtest-mimic prints too.
//!
//! Called by `test`. It must never count a program as passed that died, hung or said nothing.

use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::report::Tally;

/// What one program said.
#[derive(Debug, Default)]
pub struct Ran {
    /// Its counts; `skipped` holds what it ignored.
    pub tally: Tally,
    /// Tests that failed, each with what it said of that.
    pub failures: Vec<(String, String)>,
    /// Tests that did not run, each with its reason.
    pub skips: Vec<(String, String)>,
    /// All it printed.
    pub output: String,
}

/// So many lines of what a failed test said are told once more at the end, from its first and from its last: in front is what failed, and behind it what
/// others said of it.
const SAID: usize = 16;

/// How long a program may go on after its own end because a child of its holds the pipe open.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// Runs a program of tests for at most `limit`. With `live`, each line is printed as it comes.
pub fn run(command: Command, limit: Duration, live: bool) -> Result<Ran> {
    let (output, status) = capture(command, limit, live)?;
    let mut ran = read(&output);
    let silent = !output.contains("test result:");
    match status {
        None => ran.fail(format!("killed: no end after {} s", limit.as_secs())),
        // As with all our programs: 2 says that it could not be done here, and the last line why.
        Some(status) if status.code() == Some(2) && silent && ran.tally == Tally::default() => {
            ran.tally.skipped += 1;
            let why = output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
            ran.skips.push(("all of it".to_owned(), why.to_owned()));
        }
        Some(status) if !status.success() && (silent || ran.tally.failed == 0) => {
            ran.fail(format!("ended with {status}"))
        }
        Some(status) if status.success() && silent => ran.fail("said nothing about any test".to_owned()),
        Some(_) => {}
    }
    ran.output = output;
    Ok(ran)
}

/// Runs any program: all it printed on both streams, and how it ended (`None`: killed at `limit`).
pub fn capture(mut command: Command, limit: Duration, live: bool) -> Result<(String, Option<ExitStatus>)> {
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
    drop(command); // It holds the pipe's other end.
    follow(&mut child, &lines(reader), limit, live)
}

impl Ran {
    fn fail(&mut self, why: String) {
        self.tally.failed += 1;
        self.failures.push((why, String::new()));
    }
}

fn lines(reader: PipeReader) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receive
}

/// Reads until the program and its output have ended, or kills it at `limit` (`None`).
fn follow(
    child: &mut Child,
    lines: &Receiver<String>,
    limit: Duration,
    live: bool,
) -> Result<(String, Option<ExitStatus>)> {
    let mut output = String::new();
    let mut end = Instant::now() + limit;
    let mut status = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                if live {
                    println!("   | {line}");
                }
                output.push_str(&line);
                output.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) if status.is_some() => return Ok((output, status)),
            // The output is closed, the program is not gone yet.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(10)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if status.is_none() {
            status = child.try_wait().context("waiting for a test program")?;
            if status.is_some() {
                end = Instant::now() + STRAGGLERS;
            }
        }
        if Instant::now() > end {
            if status.is_none() {
                child.kill().context("killing a test program")?;
                child.wait().context("waiting for a killed test program")?;
            }
            return Ok((output, status));
        }
    }
}

/// Reads libtest's lines: results, and the names of what failed or was ignored. A test that finds that it cannot run here
/// says so in a line that begins with SKIPPED or NOT RUN, and passes: it counts as skipped.
fn read(output: &str) -> Ran {
    let mut ran = Ran::default();
    let mut test = "";
    // Told one by one, and not yet summed up in a result line: what a program that was killed had done by then.
    let mut told = Tally::default();
    let mut confessed: Vec<&str> = Vec::new();
    for line in output.lines() {
        if line.starts_with("test result: ") || ["successes:", "failures:"].contains(&line) {
            test = "";
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            ran.tally.passed += count(counts, "passed");
            ran.tally.failed += count(counts, "failed");
            ran.tally.skipped += count(counts, "ignored");
            told = Tally::default();
        } else if let Some((name, rest)) = line.strip_prefix("test ").and_then(|line| line.rsplit_once(" ... ")) {
            match rest {
                "ok" => told.passed += 1,
                "FAILED" => {
                    told.failed += 1;
                    ran.failures.push((name.trim().to_owned(), String::new()));
                }
                _ => {
                    if let Some(reason) = ignored(rest) {
                        told.skipped += 1;
                        ran.skips.push((name.trim().to_owned(), reason.to_owned()));
                    }
                }
            }
        } else if let Some(name) = line.strip_prefix("---- ").and_then(|line| line.split_whitespace().next()) {
            test = name;
        } else if ["SKIPPED", "NOT RUN"].iter().any(|word| line.starts_with(word)) && !confessed.contains(&test) {
            confessed.push(test);
            ran.skips.push((test.to_owned(), line.to_owned()));
        } else if let Some((_, said)) = ran.failures.iter_mut().find(|(name, _)| name == test) {
            said.push_str(line);
            said.push('\n');
        }
    }
    for (_, said) in &mut ran.failures {
        *said = shortened(said);
    }
    ran.tally.add(told);
    let skipped = confessed.len().min(ran.tally.passed);
    ran.tally.passed -= skipped;
    ran.tally.skipped += skipped;
    ran
}

/// The first and the last lines.
fn shortened(said: &str) -> String {
    let lines: Vec<_> = said.trim().lines().collect();
    match lines.len().checked_sub(2 * SAID) {
        None | Some(0) => lines.join("\n"),
        Some(more) => {
            let (first, last) = (lines[..SAID].join("\n"), lines[lines.len() - SAID..].join("\n"));
            format!("{first}\n({more} lines)\n{last}")
        }
    }
}

/// Why a test was ignored: libtest says `ignored, REASON`, libtest-mimic `ignored (REASON)`, both `ignored` where there is none.
fn ignored(rest: &str) -> Option<&str> {
    let reason = rest.strip_prefix("ignored")?;
    let inner = reason.strip_prefix(" (").and_then(|reason| reason.strip_suffix(')'));
    match inner.or_else(|| reason.strip_prefix(", ")) {
        Some(reason) => Some(reason),
        None => reason.is_empty().then_some("no reason given"),
    }
}

/// The number before `word` in `ok. 5 passed; 0 failed; 1 ignored; ...`.
fn count(counts: &str, word: &str) -> usize {
    let number = |part: &str| part.trim().strip_suffix(word)?.split_whitespace().next_back()?.parse().ok();
    counts.split(';').find_map(number).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_killed_program_had_done_is_counted() {
        let script = "echo 'test a ... ok'; echo 'test b  ... FAILED'; exec sleep 600";
        let ran = run(shell(script), Duration::from_millis(500), false).unwrap();
        assert_eq!(ran.tally, Tally { passed: 1, failed: 2, skipped: 0 });
        assert_eq!(ran.failures.len(), 2);
    }

    #[test]
    fn results_of_all_sections_are_summed() {
        let ran = read(
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(ran.tally, Tally { passed: 6, failed: 2, skipped: 1 });
    }

    #[test]
    fn what_failed_and_what_was_ignored_is_named() {
        let ran = read(
            "test a::b ... ok\ntest c ... FAILED\ntest d ... ignored, needs root\ntest e ... ignored\n\
             test f ... ignored (redis-cli, nginx not found; type: sudo apt-get (...))\n",
        );
        assert_eq!(ran.tally, Tally { passed: 1, failed: 1, skipped: 3 });
        assert_eq!(ran.failures, [("c".to_owned(), String::new())]);
        let why = ["needs root", "no reason given", "redis-cli, nginx not found; type: sudo apt-get (...)"];
        assert_eq!(
            ran.skips,
            ["d", "e", "f"].map(String::from).into_iter().zip(why.map(String::from)).collect::<Vec<_>>()
        );
    }

    /// Whoever has the end of the output alone has the reason.
    #[test]
    fn what_a_failed_test_said_is_told_with_its_name_and_is_bounded() {
        // libtest's form, and that of libtest-mimic.
        for kind in [" stdout", ""] {
            let ran = read(&format!(
                "test a ... ok\ntest b ... FAILED\ntest c ... FAILED\n\nsuccesses:\n\n---- a{kind} ----\nfine\n\n\
                 successes:\n    a\n\nfailures:\n\n---- b{kind} ----\nb broke\nhere\n\n---- c{kind} ----\n{}\n\n\
                 failures:\n    b\n    c\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored\n\nthe longest:\n",
                (1..=40).map(|n| n.to_string()).collect::<Vec<_>>().join("\n"),
            ));
            assert_eq!(ran.failures[0], ("b".to_owned(), "b broke\nhere".to_owned()));
            let lines: Vec<_> = ran.failures[1].1.lines().collect();
            assert_eq!((lines.len(), lines[15], lines[16], lines[17], lines[32]), (33, "16", "(8 lines)", "25", "40"));
        }
    }

    #[test]
    fn a_test_that_says_it_did_not_run_is_skipped_not_passed() {
        let ran = read(
            "test a ... ok\ntest b ... ok\n\nsuccesses:\n\n---- b stdout ----\nNOT RUN: no openssl\nNOT RUN: no openssl\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored\n",
        );
        assert_eq!(ran.tally, Tally { passed: 1, failed: 0, skipped: 1 });
        assert_eq!(ran.skips, [("b".into(), "NOT RUN: no openssl".to_owned())]);
    }

    #[test]
    fn a_program_that_dies_without_a_result_failed() {
        let ran = run(shell("exit 3"), Duration::from_secs(30), false).unwrap();
        assert_eq!(ran.tally.failed, 1);
        assert_eq!(run(shell("kill -9 $$"), Duration::from_secs(30), false).unwrap().tally.failed, 1);
    }

    #[test]
    fn a_program_that_cannot_run_here_is_skipped_with_its_reason() {
        let ran = run(shell("echo 'no namespaces here' >&2; exit 2"), Duration::from_secs(30), false).unwrap();
        assert_eq!(ran.tally, Tally { skipped: 1, ..Tally::default() });
        assert_eq!(ran.skips[0].1, "no namespaces here");
        let after = "echo 'test result: FAILED. 1 passed; 0 failed; 0 ignored'; exit 2";
        assert_eq!(run(shell(after), Duration::from_secs(30), false).unwrap().tally.failed, 1);
    }

    #[test]
    fn a_program_that_says_nothing_failed() {
        assert_eq!(run(shell("true"), Duration::from_secs(30), false).unwrap().tally.failed, 1);
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_failed() {
        let ran = run(shell("exec sleep 600"), Duration::from_millis(300), false).unwrap();
        assert_eq!(ran.tally.failed, 1);
        assert!(ran.failures[0].0.contains("killed"), "{:?}", ran.failures);
    }

    #[test]
    fn a_child_that_holds_the_pipe_does_not_hold_us() {
        let began = Instant::now();
        let script = "sleep 20 & echo 'test result: ok. 1 passed; 0 failed; 0 ignored'; exit 0";
        let ran = run(shell(script), Duration::from_secs(18), false).unwrap();
        assert_eq!(ran.tally, Tally { passed: 1, ..Tally::default() });
        assert!(began.elapsed() < Duration::from_secs(15));
    }
}
