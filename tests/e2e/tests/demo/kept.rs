//! `countersign demo --keep`: each line that it prints is typed, then Ctrl-C.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use countersign_kit::{wait_for, wait_until};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::show::{alone, demo};

/// Until it says the next line. The slowest claim takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);

/// A kept demo; killed with all it started if a test fails.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill(); // its namespaces end with it
            let _ = self.0.wait();
        }
    }
}

pub fn tried() {
    let _alone = alone();
    let before = namespaces();
    // A group of its own, as a shell gives it: Ctrl-C is a signal to the group.
    let child = demo()
        .args(["--keep", "--claim", "2"])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut kept = Kept(child);
    let said = lines(&mut kept.0);
    let Some(tries) = until_kept(&mut kept.0, &said) else { return };
    assert_eq!(tries.len(), 9, "{tries:?}");
    let inside = private(kept.0.id());
    assert!(!inside.is_empty(), "it runs in no namespace of its own");
    for (what, line) in &tries {
        check(what, line, &tries);
    }
    killpg(Pid::from_raw(kept.0.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let status = wait_until(SOON, || kept.0.try_wait().unwrap().ok_or("it runs on after Ctrl-C")).unwrap();
    assert_eq!(status.code(), Some(0), "the claims held, and Ctrl-C is how it ends");
    wait_for(SOON, "its last process is gone", || processes().all(|process| !inside.contains(&process.1))).unwrap();
    assert_eq!(namespaces(), before, "a network namespace is left");
}

/// Types one line, as its user in another terminal would.
fn typed(line: &str, stdin: &str) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    shell.wait_with_output().unwrap()
}

fn check(what: &str, line: &str, tries: &[(String, String)]) {
    let stdin = if what == "a shell" { "ip -o -4 address show dev eth0\nexit 7\n" } else { "" };
    let done = typed(line, stdin);
    let (text, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let told = || format!("{what}: {line}: {}: {text}{errors}", done.status);
    match what {
        "allowed" | "allowed, IPv6" => {
            assert!(done.status.success() && text.starts_with("backend-") && text.contains(" got "), "{}", told());
        }
        "refused: no rule" | "refused: a backend is in no rule either" | "refused: plaintext" => {
            assert!(!done.status.success() && text.is_empty() && errors.contains("curl:"), "{}", told());
        }
        "all processes" => {
            assert!(done.status.success(), "{}", told());
            for process in ["ca", "controller", "frontend", "backend-1", "backend-2", "intruder"] {
                assert!(text.contains(process), "no {process}: {}", told());
            }
        }
        "metrics" => {
            assert!(done.status.success() && text.contains("countersign_") && text.ends_with("# EOF\n"), "{}", told());
        }
        "another rule: then intruder is let in" => {
            assert!(done.status.success(), "{}", told());
            let intruder = &tries.iter().find(|(what, _)| what == "refused: no rule").unwrap().1;
            let served = || {
                let done = typed(intruder, "");
                let text = String::from_utf8_lossy(&done.stdout).into_owned();
                if text.starts_with("backend-") { Ok(()) } else { Err(text) }
            };
            wait_until(SOON, served).unwrap();
        }
        "a shell" => {
            assert!(text.contains("10.77.0.11") && done.status.code() == Some(7), "{}", told());
        }
        other => panic!("nobody tries {other:?}: {line}"),
    }
}

fn lines(child: &mut Child) -> Receiver<String> {
    let (send, receive) = channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    receive
}

/// Reads on until it is left running: what to try, and the line to type for it. `None`, with the reason printed, where nothing can be
/// shown.
fn until_kept(child: &mut Child, said: &Receiver<String>) -> Option<Vec<(String, String)>> {
    let (mut tries, mut all) = (Vec::new(), String::new());
    loop {
        let Ok(line) = said.recv_timeout(PATIENCE) else {
            panic!("it does not go on ({:?}):\n{all}", child.try_wait());
        };
        all += &line;
        all.push('\n');
        assert!(!line.contains("FALSE"), "{all}");
        if let Some(reason) = line.strip_prefix("NOT SHOWN: ") {
            println!("NOT RUN: {reason}");
            return None;
        }
        if let Some((command, what)) = line.split_once("    # ").filter(|(command, _)| command.contains(" demo exec "))
        {
            tries.push((what.to_owned(), command.trim().to_owned()));
        }
        if line.starts_with("Ctrl-C ends it") {
            return Some(tries);
        }
    }
}

/// Every process, with its process namespace.
fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        Some((process, fs::read_link(entry.path().join("ns/pid")).ok()?))
    })
}

/// The process namespaces below a process, other than our own.
fn private(process: u32) -> BTreeSet<PathBuf> {
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let below = children.split_whitespace().filter_map(|child| child.parse().ok());
    let mut found: BTreeSet<PathBuf> = below.flat_map(private).collect();
    found.extend(fs::read_link(format!("/proc/{process}/ns/pid")).ok().filter(|there| *there != own));
    found
}

/// The named network namespaces of the machine.
fn namespaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
