//! What `countersign ca rotate` tells whoever sits at the terminal: how far it is, who is missing and why; in an emergency who will be cut,
//! and that nothing is done before the name was typed. And that it is told in colour on a terminal alone.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{Mesh, binary};
use countersign_kit::testca::TestCa;
use countersign_kit::{Inside, wait_until};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::rotation::{LONG, at_stage, ca, json, stage};
use crate::stage::{SOON, Stage, signal, text};
use crate::talk::{Talk, exchange};

pub fn progress(inside: &Inside) -> Result<()> {
    let stage = stage(inside)?;
    let mesh = &stage.mesh;
    let file = mesh.folder().join("report.json");
    signal(&stage.client, Signal::SIGSTOP)?;
    let command =
        mesh.system().command(binary("countersign")?).args(["ca", "rotate", "--socket"]).arg(mesh.ca_socket());
    let mut rotate = command.arg("--report").arg(&file).spawn()?;
    // Client, server and controller hold a leaf; the others have reported, and the frozen one is named.
    let alone = rotate.wait_for_line(SOON, |line| line == "activate      is too early: 2 of 3 have reported");
    let line = alone.and_then(|_| rotate.wait_for_line(SOON, |line| line.contains("missing  shop/client: ")));
    signal(&stage.client, Signal::SIGCONT)?;
    let line = line?;
    let why = line.split("shop/client: ").nth(1).unwrap_or_default();
    let behind = "has bundle generation 1 in force, not 2; until 20";
    ensure!(why.starts_with(behind) || why.starts_with("was not heard since it got its leaf; until 20"), "{line}");
    rotate.wait_for_line(SOON, |line| line.starts_with("activate") && line.ends_with("3 of 3 have reported"))?;
    let ended = rotate.wait(LONG)?;
    let log = rotate.log_to_its_end(SOON);
    ensure!(ended.success(), "{log:#?}");
    let place =
        |what: &str| log.iter().position(|line| line.contains(what)).with_context(|| format!("no {what:?}: {log:#?}"));
    let order = [
        place("prepared, bundle 2")?,
        place("activate      is too early: 2 of 3 have reported")?,
        place("activate      may be taken: 3 of 3 have reported")?,
        place("active, bundle 2")?,
        place("retire        may be taken: 3 of 3 have reported")?,
        place("retired, bundle 3")?,
        place("3 holders of a leaf")?,
        place(&format!("report: {}", file.display()))?,
    ];
    ensure!(order.is_sorted(), "{log:#?}");
    // The count of seconds alone is no news.
    let waits = |line: &&String| line.contains("  waits");
    ensure!(log.iter().filter(waits).count() < 20, "{log:#?}");
    Ok(())
}

pub fn who_will_be_cut(inside: &Inside) -> Result<()> {
    // Leaves of an hour: who is silent is missing for as long as this takes.
    let stage = Stage::new(inside)?;
    let mesh = &stage.mesh;
    let before = mesh.roots()?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    let intruder = stage.pod("intruder", 41)?;
    signal(&intruder, Signal::SIGSTOP)?;

    // Nobody can be asked.
    let piped = ca(mesh, &["rotate", "--emergency"])?;
    ensure!(piped.status.code() == Some(2) && piped.errors().contains("--confirm TRUST_DOMAIN"), "{}", piped.errors());
    ensure!(piped.errors().contains("These do not hold the new root."), "{}", piped.errors());
    let cut = |said: &str, pod: &str| said.lines().any(|line| line.contains("cut  ") && line.contains(pod));
    ensure!(cut(&piped.errors(), "shop/intruder: ") && !cut(&piped.errors(), "shop/server"), "{}", piped.errors());
    untouched(&stage, &before, &mut open)?;

    // Somebody can, and types another name.
    let (code, said) = typed(mesh, "cluster.locale")?;
    ensure!(code == Some(1) && said.contains("Type the name of the trust domain (cluster.local)"), "{code:?} {said}");
    ensure!(cut(&said, "shop/intruder: ") && said.contains("not confirmed"), "{said}");
    untouched(&stage, &before, &mut open)?;

    // All are reached, and the name is right.
    signal(&intruder, Signal::SIGCONT)?;
    let (code, said) = typed(mesh, "cluster.local")?;
    ensure!(code == Some(0) && said.contains("Every open connection ends once"), "{code:?} {said}");
    at_stage(mesh, &["retired"])?;
    let after = mesh.roots()?;
    ensure!(after.len() == 1 && after != before, "the old root is still there");
    ensure!(!cut(&said, "shop/"), "{said}");
    wait_until(SOON, || exchange(&stage.client, stage.address())).map(drop)
}

/// The new root is in the bundle and signs nothing; what is open goes on.
fn untouched(stage: &Stage, before: &[String], open: &mut Talk) -> Result<()> {
    let status: Value = at_stage(&stage.mesh, &["prepared", "distributed"])?;
    let roots = stage.mesh.roots()?;
    ensure!(roots.len() == 2 && before.iter().all(|root| roots.contains(root)), "{roots:?}");
    let forced = text(&json(&stage.mesh, &["status"])?.1, "/rotation/id")? == text(&status, "/rotation/id")?;
    ensure!(forced && !status["rotation"]["stages"].to_string().contains("\"forced\":true"), "{status}");
    open.say("still here\n").context("a connection ended without a confirmation")
}

/// The command at a terminal where this is typed; exit code, and what it told.
fn typed(mesh: &Mesh, words: &str) -> Result<(Option<i32>, String)> {
    let terminal = openpty(None, None).context("a terminal")?;
    let report = mesh.folder().join("typed.json");
    let mut command = Command::new(binary("countersign")?);
    command.args(["ca", "rotate", "--emergency", "--socket"]).arg(mesh.ca_socket()).arg("--report").arg(report);
    command.stdin(Stdio::from(terminal.slave)).stdout(Stdio::null()).stderr(Stdio::piped());
    // It waits in the terminal's own line until it is read.
    let mut keys = File::from(terminal.master);
    writeln!(keys, "{words}")?;
    let mut running = command.spawn()?;
    let mut errors = running.stderr.take().context("its errors")?;
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        errors.read_to_string(&mut said).map(|_| said)
    });
    let ended = wait_until(LONG, || running.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| "it runs".to_owned()));
    if ended.is_err() {
        running.kill()?;
        running.wait()?;
    }
    let said = said.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
    Ok((ended.with_context(|| said.clone())?.code(), said))
}

pub fn no_color(inside: &Inside) -> Result<()> {
    let file = inside.scratch().join("a-root.pem");
    fs::write(&file, TestCa::new("a root")?.root_pem())?;
    for (no_color, coloured) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let terminal = openpty(None, None).context("a terminal")?;
        let mut command = Command::new(binary("countersign")?);
        command.args(["identity", "show"]).arg(&file).env_remove("NO_COLOR");
        command.envs(no_color.map(|value| ("NO_COLOR", value)));
        command.stdin(Stdio::null()).stdout(Stdio::from(terminal.slave)).status()?;
        // All that it said is there. No end is waited for: what another test started may hold the terminal open.
        let mut screen = File::from(terminal.master);
        rustix::io::ioctl_fionbio(&screen, true)?;
        let mut said = Vec::new();
        let _ = screen.read_to_end(&mut said);
        let said = String::from_utf8(said)?;
        ensure!(said.contains("certificate 1 of 1: CA"), "{said}");
        ensure!(said.contains('\u{1b}') == coloured, "NO_COLOR {no_color:?}: {said:?}");
    }
    Ok(())
}
