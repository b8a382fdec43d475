//! A disk that others fill: a small tmpfs of our own, on which only the audit log lies.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{Mesh, MeshPodSpec, Settings};
use countersign_kit::{Inside, Net, wait_for, wait_until};

use crate::audit::verify;

/// For what comes about by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Room for a dozen records or two: they are written by sidecars that start.
const RESERVE: &str = "16Ki";

pub fn full(inside: &Inside) -> Result<()> {
    let disk = inside.scratch().join("small-disk");
    std::fs::create_dir_all(&disk)?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(&disk).status()?;
    ensure!(mounted.success(), "no tmpfs");
    let log = disk.join("audit.jsonl");
    let args = [format!("--audit-log={}", log.display()), format!("--audit-reserve={RESERVE}")];
    let mesh = Mesh::start(Net::new(*inside)?, Settings { ca_args: args.to_vec(), ..Settings::default() })?;
    let pod = mesh.pod(MeshPodSpec::new("late", "late", 30))?;
    pod.stop_sidecar();
    let audit = || mesh.ca_status().map(|status| status["audit"].clone());
    let healthy = audit()?;
    ensure!(healthy["alarm"] == false && healthy["writable"] == true, "{healthy}");
    ensure!(healthy["reserve_bytes"].as_u64().is_some_and(|bytes| bytes >= 14 * 1024), "{healthy}");

    // From four fifths of the disk on, while the reserve is whole.
    for (kib, part, alarm) in [(340, 0.6..0.8, false), (60, 0.8..0.9, true)] {
        fill(&disk, kib)?;
        let seen = wait_until(SOON, || {
            let audit = audit()?;
            ensure!(audit["room_used"].as_f64().is_some_and(|used| part.contains(&used)), "{audit}");
            Ok(audit)
        })?;
        ensure!(seen["alarm"] == alarm && seen["reserve_bytes"].as_u64() >= Some(14 * 1024), "{seen}");
    }
    fill(&disk, 512)?;
    wait_for(SOON, "the disk is full", || audit().is_ok_and(|audit| audit["room_used"].as_f64() > Some(0.99)))?;
    // The alarm comes before anything stops: the reserve is there, and it signs from it.
    let alarmed = audit()?;
    ensure!(alarmed["alarm"] == true && alarmed["writable"] == true && alarmed["reserve_bytes"] != 0, "{alarmed}");
    ensure!(metric(&mesh, "countersign_ca_audit_alarm 1")?, "no alarm in the metrics");
    mesh.start_sidecar(&pod)?;

    let over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        // One sidecar after the other, until the reserve is used up; the last then waits for its SVID.
        let starts = scope.spawn(|| -> Result<u32> {
            let mut started = 0;
            while !over.load(Ordering::Relaxed) {
                pod.stop_sidecar();
                mesh.start_sidecar(&pod)?;
                started += 1;
            }
            Ok(started)
        });
        let stopped = stops_and_says_so(&mesh, &disk);
        over.store(true, Ordering::Relaxed);
        std::fs::remove_file(disk.join("filler"))?;
        let started = starts.join().map_err(|_| anyhow::anyhow!("a start panicked"))??;
        stopped?;
        ensure!(started >= 3, "only {started} sidecars started from the reserve");
        Ok(())
    })?;
    // By itself, with nobody asking for anything.
    wait_for(SOON, "it writes again", || audit().is_ok_and(|a| a["writable"] == true && a["alarm"] == false))?;
    ensure!(metric(&mesh, "countersign_ca_audit_writable 1")?, "not writable by the metrics");
    mesh.stop_ca();
    let found = verify(&mesh.bundle(), &[&log], &[])?;
    ensure!(found.code == Some(0) && found.report["torn"].is_null(), "{}", found.text);
    Ok(())
}

fn stops_and_says_so(mesh: &Mesh, disk: &Path) -> Result<()> {
    wait_for(SOON, "nothing can be written any more", || {
        mesh.ca_status().is_ok_and(|status| status["audit"]["writable"] == false)
    })?;
    wait_for(SOON, "a refusal is counted", || {
        metric(mesh, "countersign_ca_svid_requests_total{outcome=\"audit_unavailable\"}").unwrap_or(false)
    })?;
    ensure!(metric(mesh, "countersign_ca_audit_writable 0")?, "writable by the metrics");
    let status = mesh.ca_status()?;
    ensure!(status["ready"] == false, "{status}");
    // What was granted is on the disk, to the last line whole: nothing was signed without.
    let text = std::fs::read_to_string(disk.join("audit.jsonl"))?;
    ensure!(text.ends_with('\n') && text.contains(r#""outcome":"granted""#), "a torn line stays");
    Ok(())
}

/// With so many KiB more, or until nothing more goes in.
fn fill(disk: &Path, kib: usize) -> Result<()> {
    let mut filler = File::options().create(true).append(true).open(disk.join("filler"))?;
    let _ = (0..2 * kib).try_for_each(|_| filler.write_all(&[b'x'; 512]));
    Ok(())
}

/// Whether the CA's metrics have a line that begins so.
fn metric(mesh: &Mesh, begin: &str) -> Result<bool> {
    let url = format!("http://{}:{}/metrics", mesh.system().v4(), countersign_api::ports::CA_HEALTH);
    let output = mesh.system().command("curl").args(["-sS", "--max-time", "5", &url]).finish().context("curl")?;
    Ok(output.text().lines().any(|line| line.starts_with(begin)))
}
