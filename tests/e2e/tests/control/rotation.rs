//! The root is replaced, by the command that operators use, under traffic: in turn, given up, in an emergency, and with the CA or a sidecar gone.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{Mesh, MeshPod, MeshPodSpec, Settings, binary};
use countersign_kit::{Finished, Inside, Net, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::stage::{SOON, Stage, signal, text};
use crate::talk::{Talk, exchange};

/// Leaves of all: short, so that a leaf's life is a time that a test can wait for.
const LIFE: Duration = Duration::from_secs(16);
const CA: &[&str] = &["--leaf-ttl", "16s", "--max-leaf-ttl", "16s"];
/// For a whole rotation: two times 10 s that it waits by itself, two renewals, and a busy machine.
pub const LONG: Duration = Duration::from_secs(180);
/// Open throughout: more than can be proven anew in the 10 s that nobody waits for longer.
const MANY: usize = 400;
/// Between two connections, and between two words.
const PACE: Duration = Duration::from_millis(20);

pub fn stage(inside: &Inside) -> Result<Stage> {
    Stage::with_ca_args(inside, CA)
}

/// `countersign ca ...`, to its end. In the mesh's folder: where no `--report` says otherwise, reports are written to where it runs.
pub fn ca(mesh: &Mesh, words: &[&str]) -> Result<Finished> {
    let command = mesh.system().command(binary("countersign")?).arg("ca").args(words.iter().copied());
    let command = command.folder(mesh.folder()).limit(LONG);
    command.args(["--socket".into(), mesh.ca_socket().into_os_string()]).finish()
}

/// The same with `-o json`: exit code, and what it printed.
pub fn json(mesh: &Mesh, words: &[&str]) -> Result<(i32, Value)> {
    let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
    let finished = ca(mesh, &words)?;
    let code = finished.status.code().context("killed")?;
    let value = serde_json::from_str(&finished.text()).with_context(|| format!("{words:?}: {}", finished.errors()))?;
    Ok((code, value))
}

/// The step as soon as it may be taken.
fn as_soon(mesh: &Mesh, step: &str) -> Result<Value> {
    wait_until(LONG, || {
        let (code, said) = json(mesh, &[step])?;
        ensure!(code == 0, "{step}: {said}");
        Ok::<_, anyhow::Error>(said)
    })
}

pub fn at_stage(mesh: &Mesh, wanted: &[&str]) -> Result<Value> {
    let (code, status) = json(mesh, &["status"])?;
    let stage = text(&status, "/rotation/stage")?;
    ensure!(code == 0 && wanted.contains(&stage.as_str()), "{status}");
    Ok(status)
}

/// Traffic of all kinds until it is told to stop: how many new connections, and what went wrong.
fn under_load(stage: &Stage, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let (stop, fresh) = (AtomicBool::new(false), AtomicUsize::new(0));
    let running = || !stop.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let new = scope.spawn(|| -> Result<()> {
            while running() {
                let n = fresh.fetch_add(1, Ordering::SeqCst);
                exchange(&stage.client, stage.address()).with_context(|| format!("new connection {n}"))?;
                std::thread::sleep(PACE);
            }
            Ok(())
        });
        // One that says a word now and then, and one that never rests.
        let open = |pause: Duration, word: String| {
            let mut talk = Talk::open(&stage.client, stage.address())?;
            let (began, running) = (Instant::now(), &running);
            Ok::<_, anyhow::Error>(scope.spawn(move || -> Result<()> {
                while running() {
                    talk.say(&word).with_context(|| format!("open for {:?}", began.elapsed()))?;
                    std::thread::sleep(pause);
                }
                Ok(talk.finish()?)
            }))
        };
        let opened =
            open(PACE * 20, "ping\n".into()).and_then(|kept| Ok((kept, open(Duration::ZERO, "x".repeat(4096))?)));
        let worked = work();
        stop.store(true, Ordering::SeqCst);
        let (kept, stream) = opened?;
        let ended = [("new", new), ("kept", kept), ("stream", stream)].map(|(name, thread)| match thread.join() {
            Ok(ended) => ended.context(name),
            Err(_) => Err(anyhow::anyhow!("{name}: it panicked")),
        });
        worked?;
        ended.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(fresh.load(Ordering::SeqCst))
    })
}

/// The bundle that a sidecar has in force.
fn generation(pod: &MeshPod) -> Result<u64> {
    let status = pod.admin("/status")?;
    status["credentials"]["bundles"][0]["generation"].as_u64().with_context(|| status.to_string())
}

pub fn in_turn(inside: &Inside) -> Result<()> {
    let stage = stage(inside)?;
    let mesh = &stage.mesh;
    let before = mesh.roots()?;
    let file = mesh.folder().join("report.json");
    let file = file.to_str().context("a path")?.to_owned();
    let mut many = (0..MANY).map(|_| Talk::open(&stage.client, stage.address())).collect::<Result<Vec<_>>>()?;
    let connections = under_load(&stage, || {
        let (code, said) = json(mesh, &["rotate", "--report", &file])?;
        ensure!(code == 0 && said["rotation"]["stage"] == "retired", "{said}");
        // It has the last bundle from those who hold it: what the old root alone vouched for would have ended by now.
        let totals = &said["totals"];
        ensure!(totals["holding_the_bundle"] == totals["holders"], "{said}");
        for (number, talk) in many.iter_mut().enumerate() {
            talk.say("still here\n").with_context(|| format!("connection {number} of {MANY}"))?;
        }
        Ok(())
    })?;
    ensure!(connections > 100, "only {connections} connections were made meanwhile");
    let after = mesh.roots()?;
    ensure!(before.len() == 1 && after.len() == 1 && before != after, "{before:?} {after:?}");
    wait_until(SOON, || {
        for pod in [&stage.client, &stage.server] {
            ensure!(generation(pod)? == 3, "{} has bundle {}", pod.name(), generation(pod)?);
        }
        Ok(())
    })?;
    by_their_own_words(&stage)?;
    // A pod that starts now needs nothing of the old root.
    let late = mesh.pod(MeshPodSpec::new("late", "client", 35))?;
    exchange(&late, stage.address())?;

    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let (report_of, totals) = (&report["report"], &report["report"]["totals"]);
    ensure!(totals["all_holders_known"] == true && totals["connections_failed"] == 0, "{totals}");
    ensure!(totals["holders"] == 3 && totals["leaves_of_the_new_root"] == 3, "client, server and controller: {totals}");
    ensure!(
        totals["holders_that_told_of_connections"] == 2 && totals["connections_good"].as_u64() > Some(100),
        "{totals}"
    );
    let stages: Vec<_> = report_of["rotation"]["stages"].as_array().context("no stages")?.iter().collect();
    ensure!(
        stages.iter().map(|passed| &passed["stage"]).eq(["prepared", "distributed", "active", "retired"]),
        "{stages:?}"
    );
    ensure!(stages.iter().all(|passed| passed["forced"] == false), "{stages:?}");
    let table = verified(mesh, &file, &report)?;
    times_and_holders(report_of, &table)
}

/// What a report tells of a pod, and of the leaf that it got last.
fn told_of<'a>(report: &'a Value, pod: &str) -> Result<(&'a Value, &'a Value)> {
    let holder = report["holders"].as_array().into_iter().flatten().find(|holder| holder["pod"] == pod);
    let holder = holder.with_context(|| format!("{pod} is not in {report}"))?;
    let newest = holder["leaves"].as_array().and_then(|leaves| leaves.last());
    Ok((holder, newest.with_context(|| format!("no leaf: {holder}"))?))
}

/// The leaf that the report tells of is the one that the sidecar says to have. Fetched anew: it may have another by now.
fn by_their_own_words(stage: &Stage) -> Result<()> {
    let file = stage.mesh.folder().join("again.json");
    let file = file.to_str().context("a path")?;
    wait_until(SOON, || {
        let (code, report) = json(&stage.mesh, &["report", "fetch", file])?;
        ensure!(code == 0, "{report}");
        for pod in [&stage.client, &stage.server] {
            let (_, leaf) = told_of(&report["report"], pod.name())?;
            let own = pod.admin("/status")?;
            ensure!(leaf["serial"] == own["credentials"]["serial"], "{leaf} of {own}");
        }
        Ok(())
    })
}

/// When each stage was; each holder's bundle and leaf; and each as a row of the table that is printed, longer words by their first 16 letters.
fn times_and_holders(report: &Value, table: &str) -> Result<()> {
    let when = |at: &Value| {
        OffsetDateTime::parse(at.as_str().unwrap_or_default(), &Rfc3339).with_context(|| format!("no time: {at}"))
    };
    let stages = report["rotation"]["stages"].as_array().context("no stages")?;
    let passed = stages.iter().map(|passed| when(&passed["at"])).collect::<Result<Vec<_>>>()?;
    let (Some(first), Some(last)) = (passed.first(), passed.last()) else { anyhow::bail!("{report}") };
    let made = when(&report["made_at"])?;
    // Before two of its steps it waits for 10 s.
    ensure!(passed.is_sorted() && *last - *first >= time::Duration::seconds(20) && *last <= made, "{stages:?}");
    let row = |words: &[String]| table.lines().any(|line| line.split_whitespace().eq(words));
    let head = ["POD", "BUNDLE", "LEAF", "ROOT", "GOOD", "FAILED", "REPORTED"].map(str::to_owned);
    ensure!(row(&head), "{table}");
    for pod in ["client", "server", "controller-0"] {
        let (holder, leaf) = told_of(report, pod)?;
        ensure!(holder["bundle_generation"] == 3 && when(&holder["reported_at"])? >= *last, "{holder}");
        let newest = &report["bundle_roots_sha256"][0];
        ensure!(leaf["root_sha256"] == *newest && when(&leaf["not_after"])? >= made, "{newest}: {holder}");
        let (name, carried) = (format!("{}/{pod}", text(holder, "/namespace")?), &holder["connections"]);
        ensure!(carried.is_null() == (pod == "controller-0"), "{holder}");
        let count = |what: &str| carried[what].as_u64().map_or_else(|| "-".to_owned(), |count| count.to_string());
        let short = |what: &str| Ok::<_, anyhow::Error>(text(leaf, what)?.chars().take(16).collect::<String>());
        let (serial, root) = (short("/serial")?, short("/root_sha256")?);
        let words = [name, "3".to_owned(), serial, root, count("good"), count("failed"), text(holder, "/reported_at")?];
        ensure!(row(&words), "{words:?} is no row of {table}");
    }
    Ok(())
}

/// The report is the CA's, and no other one is; what is printed of it.
fn verified(mesh: &Mesh, file: &str, report: &Value) -> Result<String> {
    let bundle = mesh.bundle();
    let verify = |file: &Path| {
        let command = mesh.system().command(binary("countersign")?).args(["ca", "report", "verify"]);
        let finished = command.arg(file).arg("--bundle").arg(&bundle).finish()?;
        Ok::<_, anyhow::Error>((finished.status.code(), finished.text()))
    };
    let (code, printed) = verify(Path::new(file))?;
    ensure!(code == Some(0) && printed.contains("sa/countersign-ca has signed it"), "{printed}");
    let changed = mesh.folder().join("changed.json");
    let mut other = report.clone();
    other["report"]["totals"]["connections_failed"] = 1.into();
    std::fs::write(&changed, other.to_string())?;
    let (code, said) = verify(&changed)?;
    ensure!(code == Some(1) && said.contains("it was changed"), "{said}");
    let stranger = Mesh::start(Net::new(mesh.net().inside())?, Settings::default())?;
    let command = mesh.system().command(binary("countersign")?).args(["ca", "report", "verify", file, "--bundle"]);
    let finished = command.arg(stranger.bundle()).finish()?;
    ensure!(finished.status.code() == Some(1) && finished.text().contains("does not vouch"), "{}", finished.text());
    Ok(printed)
}

pub fn too_early(inside: &Inside) -> Result<()> {
    let stage = stage(inside)?;
    let mesh = &stage.mesh;
    let (code, refusal) = json(mesh, &["retire"])?;
    ensure!(code == 1 && text(&refusal, "/refused")?.contains("no rotation is under way"), "{refusal}");
    // One sidecar neither hears nor says anything from now on.
    signal(&stage.client, Signal::SIGSTOP)?;
    let frozen = Instant::now();
    let (code, status) = json(mesh, &["prepare"])?;
    ensure!(code == 0, "{status}");
    let (code, refusal) = json(mesh, &["activate"])?;
    ensure!(code == 1, "activated at once: {refusal}");
    let named = |refusal: &Value| {
        let missing = refusal["gate"]["missing"].as_array().cloned().unwrap_or_default();
        missing.iter().filter_map(|one| one["pod"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    // The others report within seconds; then it alone is named.
    wait_until(SOON, || {
        let (code, refusal) = json(mesh, &["activate"])?;
        ensure!(code == 1 && named(&refusal) == ["client"], "{code}: {refusal}");
        Ok(())
    })?;
    as_soon(mesh, "activate")?;
    let held_up = frozen.elapsed();
    ensure!(held_up < LIFE * 2 + SOON, "a frozen sidecar held it up for {held_up:?}");
    let (code, refusal) = json(mesh, &["retire"])?;
    ensure!(code == 1 && named(&refusal).contains(&"server".to_owned()), "{code}: {refusal}");
    as_soon(mesh, "retire")?;
    // It has missed all of it, its leaf has ended and its bundle is worth nothing; it finds its way back.
    signal(&stage.client, Signal::SIGCONT)?;
    wait_until(LONG, || exchange(&stage.client, stage.address()))?;
    Ok(())
}

pub fn ca_killed(inside: &Inside) -> Result<()> {
    let stage = stage(inside)?;
    let mesh = &stage.mesh;
    let before = mesh.roots()?;
    let again = || {
        mesh.stop_ca(); // kill -9
        mesh.start_ca()
    };
    under_load(&stage, || {
        let (_, status) = json(mesh, &["prepare"])?;
        let id = text(&status, "/rotation/id")?;
        again()?;
        ensure!(text(&at_stage(mesh, &["prepared", "distributed"])?, "/rotation/id")? == id);
        ensure!(mesh.roots()?.len() == 2, "both roots are in the bundle again");
        as_soon(mesh, "activate")?;
        again()?;
        ensure!(text(&at_stage(mesh, &["active"])?, "/rotation/id")? == id);
        // Given up: the old root signs again, and the new one goes when nobody stands on it any more.
        let kill_while_it_returns = std::thread::scope(|scope| {
            let abort = scope.spawn(|| json(mesh, &["abort"]));
            let seen = wait_until(SOON, || at_stage(mesh, &["returning"]));
            let restarted = seen.and_then(|_| again());
            // The command waits for the CA to come back, and goes on.
            let aborted = abort.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
            restarted.and(aborted)
        })?;
        ensure!(kill_while_it_returns.0 == 0, "{}", kill_while_it_returns.1);
        let status = at_stage(mesh, &["aborted"])?;
        ensure!(text(&status, "/rotation/id")? == id && status["bundle_generation"] == 3, "{status}");
        wait_until(SOON, || {
            ensure!(mesh.roots()? == before, "the old root alone");
            Ok(())
        })
    })?;
    Ok(())
}

/// All that runs ends at once, as when the machine loses its power, and is started again as it was.
pub fn machine_restarted(inside: &Inside) -> Result<()> {
    let stage = stage(inside)?;
    let mesh = &stage.mesh;
    let pods = [&stage.client, &stage.server];
    let restart = || -> Result<()> {
        mesh.stop_ca();
        mesh.stop_controller();
        pods.iter().for_each(|pod| pod.stop_sidecar());
        mesh.start_ca()?;
        mesh.start_controller()?;
        pods.iter().try_for_each(|pod| mesh.start_sidecar(pod))
    };
    let goes_on = |id: &str, stages: &[&str], roots: usize| -> Result<()> {
        ensure!(text(&at_stage(mesh, stages)?, "/rotation/id")? == id, "another rotation");
        ensure!(mesh.roots()?.len() == roots, "{roots} roots are in the bundle again");
        wait_until(SOON, || exchange(&stage.client, stage.address())).map(drop)
    };
    let before = mesh.roots()?;
    let (_, status) = json(mesh, &["prepare"])?;
    let id = text(&status, "/rotation/id")?;
    restart()?;
    goes_on(&id, &["prepared", "distributed"], 2)?;
    as_soon(mesh, "activate")?;
    restart()?;
    goes_on(&id, &["active"], 2)?;
    let (code, said) = json(mesh, &["rotate"])?;
    ensure!(code == 0 && said["rotation"]["stage"] == "retired", "{said}");
    restart()?;
    goes_on(&id, &["retired"], 1)?;
    ensure!(mesh.roots()? != before, "the old root is back");
    Ok(())
}

/// What the operators' page says for a rotation or an abort that is under way when somebody else has the key.
pub fn forced(inside: &Inside) -> Result<()> {
    let stage = stage(inside)?;
    let mesh = &stage.mesh;
    let before = mesh.roots()?;
    json(mesh, &["prepare"])?;
    as_soon(mesh, "activate")?;
    std::thread::scope(|scope| {
        let abort = scope.spawn(|| json(mesh, &["abort"]));
        let ended = (|| {
            wait_until(SOON, || at_stage(mesh, &["returning"]))?;
            let refused = ca(mesh, &["rotate"])?;
            let why = refused.errors();
            ensure!(!refused.status.success() && why.contains("an abort is under way"), "{why}");
            let ask =
                mesh.system().command(binary("countersign-ca")?).args(["ask", "--post", "/rotation/retire/forced"]);
            let asked = ask.args(["--admin-socket".into(), mesh.ca_socket().into_os_string()]).finish()?;
            ensure!(asked.status.code() == Some(0), "{}{}", asked.text(), asked.errors());
            at_stage(mesh, &["aborted"])
        })();
        let (code, said) = abort.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        ensure!(code == 0, "{said}");
        ended.map(drop)
    })?;
    wait_until(SOON, || {
        ensure!(mesh.roots()? == before, "the old root alone");
        Ok(())
    })?;

    // A rotation that was under way has its new root in what was stolen: it is taken to its end, and the next one is another.
    json(mesh, &["prepare"])?;
    let emergency = || -> Result<Vec<String>> {
        let said = ca(mesh, &["rotate", "--emergency", "--confirm", "cluster.local"])?;
        ensure!(said.status.code() == Some(0), "{}{}", said.text(), said.errors());
        mesh.roots()
    };
    let (first, second) = (emergency()?, emergency()?);
    ensure!(
        first.len() == 1 && second.len() == 1 && first != before && second != first,
        "{before:?} {first:?} {second:?}"
    );
    wait_until(SOON, || exchange(&stage.client, stage.address())).map(drop)
}

pub fn emergency(inside: &Inside) -> Result<()> {
    let stage = stage(inside)?;
    let mesh = &stage.mesh;
    let before = mesh.roots()?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    let file = mesh.folder().join("emergency.json");
    let file = file.to_str().context("a path")?.to_owned();
    let rotate = |name| ca(mesh, &["rotate", "--emergency", "--report", &file, "--confirm", name]);
    let wrong = rotate("cluster.locale")?;
    ensure!(wrong.status.code() == Some(1) && wrong.errors().contains("not confirmed"), "{}", wrong.errors());
    at_stage(mesh, &["prepared", "distributed"])?;
    open.say("still here\n")?;
    let right = rotate("cluster.local")?;
    ensure!(right.status.code() == Some(0), "{}{}", right.text(), right.errors());
    ensure!(right.errors().contains("Every open connection ends once"), "{}", right.errors());
    open.end(SOON).context("what the old root vouched for is cut")?;
    // By the side whose bundle changed first; the other sees a reset.
    wait_until(SOON, || {
        let both = [&stage.client, &stage.server].map(MeshPod::access_log).concat();
        ensure!(both.iter().any(|line| line["result"] == "peer_distrusted"), "{both:?}");
        Ok(())
    })?;
    wait_until(SOON, || exchange(&stage.client, stage.address()))?;
    wait_until(SOON, || {
        let after = mesh.roots()?;
        ensure!(after.len() == 1 && after != before, "{after:?}");
        Ok(())
    })?;
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let forced = report["report"]["rotation"]["stages"]
        .as_array()
        .context("no stages")?
        .iter()
        .any(|passed| passed["forced"] == true);
    ensure!(forced, "{report}");
    // What was cut is in it, from the sidecar that cut it: a zero here would prove nothing there where none fails.
    let totals = &report["report"]["totals"];
    ensure!(totals["connections_failed"].as_u64() > Some(0), "{totals}");
    Ok(())
}
