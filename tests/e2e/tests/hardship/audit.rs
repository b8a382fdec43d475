//! `countersign ca audit verify` on what a real CA wrote, and on what somebody made of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{Mesh, MeshPodSpec, Settings, binary};
use countersign_kit::testca::TestCa;
use countersign_kit::{Inside, Net};
use serde_json::Value;

/// What the command found.
pub struct Found {
    pub code: Option<i32>,
    pub report: Value,
    pub text: String,
}

/// Runs it as an operator would, with the mesh's roots.
pub fn verify(bundle: &Path, files: &[&Path], further: &[&str]) -> Result<Found> {
    let mut command = Command::new(binary("countersign")?);
    command.args(["ca", "audit", "verify", "-o", "json", "--bundle"]).arg(bundle).args(files).args(further);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(Found { code: output.status.code(), report, text })
}

/// Where a mesh's CA writes its log.
pub fn log(mesh: &Mesh) -> PathBuf {
    mesh.folder().join("ca/state/audit.jsonl")
}

fn mesh(inside: &Inside) -> Result<Mesh> {
    let mesh = Mesh::start(Net::new(*inside)?, Settings::default())?;
    mesh.pod(MeshPodSpec::new("one", "one", 30))?.stop_sidecar();
    Ok(mesh)
}

/// What is done to the lines, the line that is to be named, and a word of why.
type Tampering = (&'static str, fn(&mut Vec<String>), u64, &'static str);

pub fn tampering(inside: &Inside) -> Result<()> {
    let mesh = mesh(inside)?;
    let log = log(&mesh);
    // Each start of the CA signs what is there.
    mesh.stop_ca();
    mesh.start_ca()?;
    mesh.stop_ca();
    let whole = std::fs::read_to_string(&log)?;
    let bundle = mesh.bundle();
    let good = verify(&bundle, &[&log], &["--live"])?;
    ensure!(good.code == Some(0) && good.report["verified"] == true, "{}", good.text);
    ensure!(good.report["from_the_beginning"] == true && good.report["checkpoints"] == 2, "{}", good.text);
    ensure!(whole.contains(r#""spiffe_id":"spiffe://cluster.local/ns/shop/sa/one""#), "the pod's SVID is not in it");

    let cases: &[Tampering] = &[
        ("an edit", |lines| lines[3] = lines[3].replace("granted", "refused"), 5, "was changed"),
        ("a deletion", |lines| drop(lines.remove(3)), 4, "missing"),
        ("two in another order", |lines| lines.swap(2, 3), 3, "out of order"),
        ("one twice", |lines| lines.insert(3, lines[3].clone()), 5, "out of order"),
        ("a foreign line", |lines| lines.insert(2, r#"{"v":2}"#.into()), 3, "no record"),
        (
            "another first record",
            |lines| lines[0] = lines[0].replace(r#""prev":"0"#, r#""prev":"1"#),
            1,
            "does not begin",
        ),
    ];
    let edited = log.with_file_name("edited.jsonl");
    for (what, change, at, why) in cases {
        let mut lines: Vec<String> = whole.lines().map(str::to_owned).collect();
        change(&mut lines);
        std::fs::write(&edited, lines.join("\n") + "\n")?;
        let found = verify(&bundle, &[&edited], &[])?;
        ensure!(found.code == Some(1) && found.report["verified"] == false, "{what} passed: {}", found.text);
        ensure!(found.report["problem"]["line"] == *at, "{what}: {}", found.text);
        ensure!(
            found.report["problem"]["what"].as_str().is_some_and(|text| text.contains(why)),
            "{what}: {}",
            found.text
        );
    }
    rehashed(&whole, &edited, &bundle)?;
    unsigned(&whole, &edited, &bundle)?;
    other_signers(&mesh, &log)?;
    pieces(&whole, &edited, &bundle)
}

/// Who edits a record and makes all hashes after it anew comes to the next checkpoint, and no further.
fn rehashed(whole: &str, edited: &Path, bundle: &Path) -> Result<()> {
    let mut lines: Vec<String> = whole.lines().map(str::to_owned).collect();
    lines[3] = lines[3].replace("granted", "refused");
    let mut checkpoint = None;
    for at in 4..lines.len() {
        let before = hash(&lines[at - 1]);
        let mut record: Value = serde_json::from_str(&lines[at])?;
        let old = record["prev"].as_str().context("no prev")?.to_owned();
        lines[at] = lines[at].replace(&old, &before);
        record["prev"] = before.into();
        if record["event"] == "checkpoint" && checkpoint.is_none() {
            checkpoint = Some(at as u64 + 1);
        }
    }
    std::fs::write(edited, lines.join("\n") + "\n")?;
    let found = verify(bundle, &[edited], &[])?;
    ensure!(found.code == Some(1) && found.report["problem"]["line"].as_u64() == checkpoint, "{}", found.text);
    ensure!(found.text.contains("signature does not hold"), "{}", found.text);
    Ok(())
}

/// Who takes the checkpoints out, and links the rest anew, has a chain that is whole, and too long unsigned.
fn unsigned(whole: &str, edited: &Path, bundle: &Path) -> Result<()> {
    let lines: Vec<&str> = whole.lines().collect();
    let checkpoint = lines.iter().position(|line| line.contains(r#""event":"checkpoint""#)).context("no checkpoint")?;
    let forged = |begin: &[&str], of: &str, minutes: u64| -> Result<()> {
        let mut log: Vec<String> = begin.iter().map(|line| (*line).to_owned()).collect();
        for minute in 0..=minutes {
            let mut record: Value = serde_json::from_str(of)?;
            record["n"] = log.len().into();
            record["prev"] = hash(&log[log.len() - 1]).into();
            record["time"] = format!("2099-01-01T00:{minute:02}:00Z").into();
            log.push(record.to_string());
        }
        Ok(std::fs::write(edited, log.join("\n") + "\n")?)
    };
    for (of, minutes, code) in [(lines[1], 2, 0), (lines[1], 3, 1), (lines[0], 2, 0), (lines[0], 20, 1)] {
        forged(&lines[..=checkpoint], of, minutes)?;
        let found = verify(bundle, &[edited], &[])?;
        ensure!(found.code == Some(code), "{minutes} minutes: {}", found.text);
        ensure!(found.report["problem"].is_null(), "{}", found.text);
        ensure!(found.report["unsigned_too_long"].is_object() == (code == 1), "{}", found.text);
    }
    std::fs::write(edited, lines[..checkpoint].join("\n") + "\n")?;
    let found = verify(bundle, &[edited], &[])?;
    ensure!(found.code == Some(2) && found.report["checkpoints"] == 0, "nobody has signed it: {}", found.text);
    Ok(())
}

fn hash(line: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, line.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The right signature under a root that is not trusted, or of somebody who is not the CA, proves nothing.
fn other_signers(mesh: &Mesh, log: &Path) -> Result<()> {
    let stranger = mesh.folder().join("stranger.pem");
    std::fs::write(&stranger, TestCa::new("cluster.local")?.root_pem())?;
    let found = verify(&stranger, &[log], &[])?;
    ensure!(found.code == Some(1) && found.text.contains("certificate is refused"), "{}", found.text);
    let found = verify(&mesh.bundle(), &[log], &["--ca", "spiffe://cluster.local/ns/shop/sa/one"])?;
    ensure!(found.code == Some(1) && found.text.contains("which is not the CA"), "{}", found.text);
    let found = verify(&mesh.folder().join("nowhere"), &[log], &[])?;
    ensure!(found.code == Some(2), "{}", found.text);
    Ok(())
}

/// A log in pieces, in any order; the second alone; a torn end; an end that was cut off.
fn pieces(whole: &str, edited: &Path, bundle: &Path) -> Result<()> {
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let (first, second) = (edited.with_extension("first"), edited.with_extension("second"));
    std::fs::write(&first, lines[..4].concat())?;
    std::fs::write(&second, lines[4..].concat())?;
    let found = verify(bundle, &[&second, &first], &[])?;
    ensure!(found.code == Some(0) && found.report["records"] == lines.len(), "{}", found.text);
    let found = verify(bundle, &[&second], &[])?;
    ensure!(found.code == Some(0) && found.report["from_the_beginning"] == false, "{}", found.text);
    // Torn at its end it is told, and good; torn in the middle it is not.
    std::fs::write(&first, &lines[..4].concat()[..lines[..4].concat().len() - 20])?;
    let found = verify(bundle, &[&first], &[])?;
    ensure!(found.code == Some(2) && found.report["torn"]["line"] == 4, "nobody has signed these: {}", found.text);
    ensure!(found.report["verified"] == true, "{}", found.text);
    let found = verify(bundle, &[&first, &second], &[])?;
    ensure!(found.code == Some(1) && found.report["problem"]["line"] == 4, "{}", found.text);
    // What is cut off behind the last checkpoint leaves no trace in the file: `unsigned` says how much it can be.
    let signed = lines.iter().position(|line| line.contains(r#""event":"checkpoint""#)).context("no checkpoint")?;
    std::fs::write(&first, lines[..=signed].concat())?;
    let found = verify(bundle, &[&first], &[])?;
    ensure!(found.code == Some(0) && found.report["unsigned"] == 0, "{}", found.text);
    std::fs::write(&first, "")?;
    let found = verify(bundle, &[&first], &[])?;
    ensure!(found.code == Some(2), "{}", found.text);
    Ok(())
}

pub fn torn(inside: &Inside) -> Result<()> {
    let mesh = mesh(inside)?;
    let log = log(&mesh);
    mesh.stop_ca();
    let before = std::fs::read(&log)?;
    std::fs::write(&log, [&before[..], br#"{"v":2,"chain":"00","n":9"#].concat())?;
    let found = verify(&mesh.bundle(), &[&log], &[])?;
    ensure!(found.code == Some(0) && found.report["torn"]["bytes"] == 25, "{}", found.text);
    mesh.start_ca()?;
    let pod = mesh.pod(MeshPodSpec::new("two", "two", 31))?;
    let found = verify(&mesh.bundle(), &[&log], &["--live"])?;
    ensure!(found.code == Some(0) && found.report["torn"].is_null(), "{}", found.text);
    let after = std::fs::read_to_string(&log)?;
    ensure!(after.as_bytes().starts_with(&before), "what was whole stays");
    ensure!(after.contains("a torn record of 25 bytes at the end was cut off"), "{after}");
    pod.stop_sidecar();
    Ok(())
}
