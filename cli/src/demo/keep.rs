//! `countersign demo --keep`: leaves the mesh running and says what to try.
//!
//! Called by `demo` after the claims. While it waits it plays the kubelet's part: tokens are written anew.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::exec::own_program;
use super::say::Say;
use super::stage::{REFRESH, Stage};

/// Waits for Ctrl-C or SIGTERM.
pub fn wait(stage: &Stage, say: &Say) -> Result<()> {
    for line in lines(stage) {
        say.line(&line);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(async {
        let (mut interrupt, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut refresh = tokio::time::interval(REFRESH);
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = term.recv() => return Ok(()),
                _ = refresh.tick() => stage.refresh_tokens().context("writing new tokens")?,
            }
        }
    })
}

fn lines(stage: &Stage) -> Vec<String> {
    let own = own_program().map_or_else(|_| "countersign".to_owned(), |path| path.display().to_string());
    let (service, pod) = (stage.service_url("/"), stage.pod_url(&stage.backends[0], "/"));
    let sockets = stage.sockets().display();
    let mut lines = vec![String::new(), "It is left running. In another terminal, as the same user, try:".to_owned()];
    let rules = format!("{sockets}/objects/rules.yaml");
    let tries = [
        ("allowed", "frontend", format!("curl -s {service}")),
        ("allowed, IPv6", "frontend", format!("curl -s '{}'", stage.service_url_v6("/"))),
        ("refused: no rule", "intruder", format!("curl -sS {service}")),
        ("refused: a backend is in no rule either", "backend-2", format!("curl -sS {service}")),
        ("refused: plaintext", "stranger", format!("curl -sS {pod}")),
        ("all processes", "system", format!("{own} status --dir {sockets}")),
        ("metrics", "backend-1", "curl -s http://127.0.0.1:15020/metrics".to_owned()),
        (
            "another rule: then intruder is let in",
            "system",
            format!("sed -i 's/name: frontend}}/name: intruder}}/' {rules}"),
        ),
        ("a shell", "frontend", "bash".to_owned()),
    ];
    for (what, pod, command) in tries {
        lines.push(format!("   {own} demo exec {pod} {command}    # {what}"));
    }
    lines.push(format!("The rules are in {rules}, seen from any pod: edit them and try again."));
    lines.push("Ctrl-C ends it; nothing is left behind.".to_owned());
    lines
}
