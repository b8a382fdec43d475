//! The CA killed, and failed, at every system call by which it changes its state, its audit log and its public bundle: by strace,
//! which stands between the process and the kernel. Whatever was hit, the next start is whole: the root that anybody saw, no
//! serial twice, one unbroken chain of audit records.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use countersign_admin::ask;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"k1",
 "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

/// Every call that can change a file or a directory.
const CALLS: &str = "openat,write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2,ftruncate,fallocate,unlink,unlinkat,\
                     mkdir,mkdirat,fchmod,chmod,flock,link,linkat";
/// More calls of one kind than a start makes.
const MOST: usize = 200;

/// Files whose calls are counted together.
const FAMILIES: &[(&str, &[&str])] = &[
    ("audit", &["audit.jsonl"]),
    ("state", &["ca.state", "ca.state.tmp", "", "lock"]),
    ("bundle", &["bundle.pem", "bundle.pem.tmp"]),
];

/// The step that is taken at each stage of a rotation, whoever is missing; where there is none it is at its end.
type Walk = &'static [(&'static str, &'static str)];

const REPLACED: Walk = &[("none", "prepare"), ("prepared", "activate/forced"), ("active", "retire/forced")];
/// Before the new root has signed, and after.
const GIVEN_UP: [Walk; 2] = [
    &[("none", "prepare"), ("prepared", "abort")],
    &[("none", "prepare"), ("prepared", "activate/forced"), ("active", "abort"), ("returning", "retire/forced")],
];

struct Place {
    dir: tempfile::TempDir,
}

/// How a start ended.
#[derive(Debug, PartialEq)]
enum Ended {
    /// It was ready, and was then killed.
    Ready,
    /// Before it was ready, by a signal.
    Killed,
    /// Before it was ready, with this exit code and these words.
    Gave(i32, String),
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(place.path("jwks"), JWKS).unwrap();
        std::fs::write(place.path("key"), [7; 32]).unwrap();
        std::fs::set_permissions(place.path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        place
    }

    /// One whose issuer is due for renewal at the next start.
    fn with_an_old_issuer() -> Self {
        let place = Self::new();
        assert_eq!(place.run(&["--issuer-ttl", "30s"], None), Ended::Ready);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.path("state").join(name)
    }

    /// Starts it, and kills it once it is ready. `injected`: strace's words for what happens, and the files of which calls count.
    fn run(&self, args: &[&str], injected: Option<(&str, &[&str])>) -> Ended {
        self.run_and(args, injected, || true)
    }

    /// The same; before it is killed, `then` asks something of it. False: it died meanwhile.
    fn run_and(&self, args: &[&str], injected: Option<(&str, &[&str])>, then: impl Fn() -> bool) -> Ended {
        let ca = env!("CARGO_BIN_EXE_countersign-ca");
        let mut command = match injected {
            None => Command::new(ca),
            Some((what, files)) => {
                let mut strace = Command::new("strace");
                strace.args(["-f", "-qq", "-o"]);
                match what.strip_prefix("trace=") {
                    Some(file) => strace.arg(file).arg("-e").arg(format!("trace={CALLS}")),
                    None => strace.arg("/dev/null").arg("-e").arg(what),
                };
                for file in files {
                    strace.arg("-P").arg(if file.is_empty() { self.path("state") } else { self.state(file) });
                }
                strace.arg(ca);
                strace
            }
        };
        command.env_clear().env("PATH", "/usr/bin:/bin").stdout(Stdio::null()).stderr(Stdio::piped());
        command.arg("--state-dir").arg(self.path("state")).arg("--state-key-file").arg(self.path("key"));
        command.arg("--jwks-file").arg(self.path("jwks")).arg("--ready-file").arg(self.path("ready.json"));
        command.args(["--token-issuer", "https://issuer", "--trust-domain", "mesh.test"]);
        command.args(["--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--audit-reserve", "64Ki"]);
        command.args(["--leaf-ttl", "10s", "--max-leaf-ttl", "10s"]).args(args);
        self.end(command.spawn().unwrap(), then)
    }

    fn end(&self, mut child: Child, then: impl Fn() -> bool) -> Ended {
        let mut said = String::new();
        let (mut ready, mut done) = (false, false);
        for line in BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap) {
            if line.contains(r#""message":"ready""#) {
                ready = true;
                let file = std::fs::read(self.path("ready.json")).unwrap();
                let pid = serde_json::from_slice::<Value>(&file).unwrap()["pid"].as_i64().unwrap();
                done = then();
                let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
            }
            said.push_str(&line);
            said.push('\n');
        }
        let status = child.wait().unwrap();
        match (ready, status.code()) {
            (true, _) if done => Ended::Ready,
            // strace ends as its tracee did.
            (true, _) | (false, None) => Ended::Killed,
            (false, Some(code)) => Ended::Gave(code, said),
        }
    }

    /// Where a rotation of the root is; `None`: it does not answer.
    fn stage(&self) -> Option<String> {
        let status: Value = serde_json::from_str(&self.ask("GET", "/rotation")?).unwrap();
        Some(status["rotation"]["stage"].as_str().unwrap_or("none").to_owned())
    }

    /// Takes the steps of a rotation from where it is to the end of the walk. False: it died meanwhile.
    fn rotate(&self, walk: Walk) -> bool {
        loop {
            let Some(stage) = self.stage() else { return false };
            // That it is held by all the CA notes by itself.
            let stage = if stage == "distributed" { "prepared" } else { stage.as_str() };
            let Some((_, step)) = walk.iter().find(|(at, _)| *at == stage) else { return true };
            if self.ask("POST", &format!("/rotation/{step}")).is_none() {
                return false;
            }
        }
    }

    fn ask(&self, method: &str, path: &str) -> Option<String> {
        let asked = ask(&self.state("admin.sock"), method, path, Duration::from_secs(20), 1 << 20).ok()?;
        assert!(asked.body.is_none() || asked.head.starts_with("HTTP/1.1 200"), "{path}: {asked:?}");
        asked.body
    }

    /// The roots of the public bundle.
    fn roots(&self) -> Vec<String> {
        let text = String::from_utf8(self.bundle().unwrap()).unwrap();
        let blocks = text.split("-----END CERTIFICATE-----").map(|block| block.trim().to_owned());
        blocks.filter(|block| !block.is_empty()).collect()
    }

    /// The next start finds a rotation where anybody saw it, or one step on, and takes it to its end.
    fn goes_on(&self, walk: Walk, old: &str, what: &str) {
        let given_up = walk.iter().any(|(_, step)| *step == "abort");
        let seen = self.roots();
        let ended = self.run_and(&[], None, || {
            let now = self.roots();
            let stage = self.stage().unwrap();
            let wanted = match stage.as_str() {
                "none" | "aborted" => now == [old],
                "prepared" | "distributed" | "active" | "returning" => {
                    now.len() == 2 && now.iter().any(|root| root == old)
                }
                _ => now.len() == 1 && now[0] != old,
            };
            assert!(wanted, "{what}: {stage}, and the bundle has {} roots", now.len());
            if stage != "aborted" {
                assert!(now.len() != 1 || now[0] != old || seen == now, "{what}: a root that was published is gone");
                let new = |roots: &[String]| roots.iter().find(|root| *root != old).cloned();
                assert!(
                    new(&seen).is_none_or(|root| now.contains(&root)),
                    "{what}: another new root than was published"
                );
            }
            assert!(seen.len() == 2 || seen[0] == old || now == seen, "{what}: the old root is back");
            self.rotate(walk)
        });
        assert_eq!(ended, Ended::Ready, "{what}: the next start");
        let end = self.roots();
        assert!(
            end.len() == 1 && (end[0] == old) == given_up,
            "{what}: at its end the bundle has {} roots, or the wrong one",
            end.len()
        );
        check_chain(&std::fs::read_to_string(self.state("audit.jsonl")).unwrap(), what);
    }

    fn bundle(&self) -> Option<Vec<u8>> {
        std::fs::read(self.state("bundle.pem")).ok()
    }

    /// The next start finds all whole.
    fn stands(&self, before: Option<Vec<u8>>, what: &str) {
        // What was published before, or by the run that was hit, is what the mesh trusts.
        let seen = self.bundle().or(before);
        match self.run(&["--issuer-ttl", "30d"], None) {
            Ended::Ready => {}
            other => panic!("{what}: the next start: {other:?}"),
        }
        if let Some(seen) = seen {
            assert!(self.bundle() == Some(seen), "{what}: another root");
        }
        let text = std::fs::read_to_string(self.state("audit.jsonl")).unwrap();
        check_chain(&text, what);
    }
}

fn check_chain(text: &str, what: &str) {
    let mut serials = HashSet::new();
    let mut before: Option<(u64, String)> = None;
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{what}: half a record: {line}"));
        let (n, prev) = (record["n"].as_u64().unwrap(), record["prev"].as_str().unwrap());
        if let Some((last, hash)) = &before {
            assert_eq!((n, prev), (last + 1, hash.as_str()), "{what}: the chain is broken: {line}");
        }
        let hash = digest(&SHA256, line.as_bytes());
        before = Some((n, hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()));
        // The record of a step names a root that was made in another.
        if let Some(serial) = record["serial"].as_str().filter(|_| record["event"] != "rotation") {
            assert!(serials.insert(serial.to_owned()), "{what}: serial twice: {line}");
        }
    }
    assert!(serials.len() >= 3, "{what}: root, issuer, own leaf");
}

/// Whether strace works here; under CI it must.
fn strace() -> bool {
    let works =
        Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).output().is_ok_and(|o| o.status.success());
    assert!(works || std::env::var("CI").as_deref() != Ok("true"), "strace cannot be run: apt-get install strace");
    if !works {
        eprintln!("NOT RUN: strace is not installed, or may not trace: apt-get install strace");
    }
    works
}

/// At the first call of each kind to each family of files, the second, and so on to the last that a start makes. Gives how many
/// were hit.
fn at_each(begin: impl Fn() -> Place, how: &str, hit: impl Fn(&Ended, &str)) -> usize {
    let mut hits = 0;
    for (family, files) in FAMILIES {
        for (call, count) in calls(&begin(), files) {
            for n in 1..=count {
                let what = format!("{how} at {call} {n} of {count} of {family}");
                let place = begin();
                let before = place.bundle();
                let inject = format!("inject={call}:{how}:when={n}");
                let ended = place.run(&["--issuer-ttl", "30d"], Some((&inject, files)));
                // The last ones may come after it is ready.
                if ended != Ended::Ready || n + 2 <= count {
                    hit(&ended, &what);
                }
                hits += usize::from(ended != Ended::Ready);
                place.stands(before, &what);
            }
        }
    }
    hits
}

/// Which calls a start makes to these files, and how many of each: by the thread that makes most, since strace counts each kind of
/// call for each thread.
fn calls(place: &Place, files: &[&str]) -> BTreeMap<String, usize> {
    calls_of(place, files, || true)
}

/// The same, of a start after which something is asked of it.
fn calls_of(place: &Place, files: &[&str], then: impl Fn() -> bool) -> BTreeMap<String, usize> {
    let trace = place.path("trace");
    let what = format!("trace={}", trace.display());
    assert_eq!(place.run_and(&["--issuer-ttl", "30d"], Some((&what, files)), then), Ended::Ready);
    let text = std::fs::read_to_string(trace).unwrap();
    let mut threads: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in text.lines() {
        let (thread, rest) = line.split_once(' ').unwrap();
        // The second half of a line that another thread interrupted has no name here.
        if let Some((call, _)) = rest.trim_start().split_once('(')
            && !call.contains(' ')
        {
            *threads.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in threads {
        let known: &mut usize = most.entry(call.to_owned()).or_default();
        *known = count.max(*known);
    }
    let all: usize = most.values().sum();
    assert!((1..MOST).contains(&all), "{most:?} calls to {files:?}: {text}");
    most
}

#[test]
fn killed_at_every_call_of_its_first_start_the_next_is_whole() {
    if strace() {
        let hits = at_each(Place::new, "signal=KILL", |ended, what| assert_eq!(*ended, Ended::Killed, "{what}"));
        assert!(hits >= 25, "only {hits}");
    }
}

#[test]
fn killed_at_every_call_while_the_issuer_is_renewed_the_next_start_is_whole() {
    if strace() {
        let begin = Place::with_an_old_issuer;
        let hits = at_each(begin, "signal=KILL", |ended, what| assert_eq!(*ended, Ended::Killed, "{what}"));
        assert!(hits >= 20, "only {hits}");
    }
}

/// At each call that a walk's steps after the first `known` make to a family of files. Gives how many were hit.
fn at_each_step(walk: Walk, known: usize, family: &str, files: &[&str]) -> usize {
    let begin = || {
        let place = Place::new();
        assert_eq!(place.run(&[], None), Ended::Ready);
        place
    };
    let mut hits = 0;
    let place = begin();
    let before = calls_of(&place, files, || place.rotate(&walk[..known]));
    let place = begin();
    for (call, all) in calls_of(&place, files, || place.rotate(walk)) {
        for n in before.get(&call).copied().unwrap_or_default() + 1..=all {
            let what = format!("killed at {call} {n} of {all} of {family}, {} steps", walk.len());
            let place = begin();
            let old = place.roots().remove(0);
            let inject = format!("inject={call}:signal=KILL:when={n}");
            // Which of its threads makes a call is not always the same: not each is hit.
            hits += usize::from(place.run_and(&[], Some((&inject, files)), || place.rotate(walk)) == Ended::Killed);
            place.goes_on(walk, &old, &what);
        }
    }
    hits
}

/// Half of the calls that so many steps make at the least: the state is written in ten, the bundle in six, a record in two.
fn hit_enough(family: &str, hits: usize, steps: usize) {
    let each = match family {
        "state" => 5,
        "bundle" => 3,
        _ => 1,
    };
    assert!(hits >= each * steps, "{family}: only {hits} in {steps} steps");
    println!("{family}: killed {hits} times");
}

#[test]
fn killed_at_every_call_while_the_root_is_replaced_the_next_goes_on_with_it() {
    if strace() {
        for (family, files) in FAMILIES {
            hit_enough(family, at_each_step(REPLACED, 0, family, files), 3);
        }
    }
}

#[test]
fn killed_at_every_call_while_a_rotation_is_given_up_the_next_gives_it_up() {
    if strace() {
        for (family, files) in FAMILIES {
            // The steps to there are those of a rotation.
            let hits = [1, 2].into_iter().zip(GIVEN_UP).map(|(known, walk)| at_each_step(walk, known, family, files));
            hit_enough(family, hits.sum(), 3);
        }
    }
}

#[test]
fn a_disk_that_fails_at_any_call_is_an_error_and_the_next_start_is_whole() {
    if strace() {
        for how in ["error=EIO", "error=ENOSPC"] {
            at_each(Place::new, how, |ended, what| match ended {
                Ended::Ready => {}
                Ended::Gave(code, said) => {
                    assert_eq!(*code, 2, "{what}: {said}");
                    let last = said.lines().last().unwrap_or_default();
                    assert!(last.contains("os error") || last.contains("audit"), "{what}: {said}");
                }
                Ended::Killed => panic!("{what}: it died"),
            });
        }
    }
}

#[test]
fn the_calls_that_are_hit_are_those_that_change_files() {
    // A call by another name would pass by all these tests: what the CA itself names is looked for in the list.
    let sources = ["src/state/directory.rs", "src/audit/file.rs", "src/audit/room.rs"];
    let text: String = sources
        .iter()
        .map(|file| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap())
        .collect();
    for (word, call) in [
        ("fs::rename(", "rename"),
        ("sync_data(", "fdatasync"),
        ("sync_all(", "fsync"),
        ("set_len(", "ftruncate"),
        ("fallocate(", "fallocate"),
        ("remove_file(", "unlink"),
        ("write_all(", "write"),
    ] {
        assert!(text.contains(word), "{word} is not called any more");
        assert!(CALLS.split(',').any(|one| one.trim() == call), "{call} is not hit");
    }
}
