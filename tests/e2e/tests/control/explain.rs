//! A denial explains itself: the same id on both sides, and what would have let it in. So does what is refused before a rule is asked; and
//! once nobody remembers, the log does.

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{MeshPod, MeshPodSpec, binary};
use countersign_kit::{Inside, wait_until};

use crate::stage::{CLIENT_ID, PORT, RULES, SOON, Stage, at, policy, status_until, text};
use crate::talk::{End, Talk, exchange, refused};

/// `countersign`, as an operator types it, where the sockets are.
pub fn countersign(stage: &Stage, args: &[&str]) -> Result<(Option<i32>, String)> {
    let dir = stage.mesh.folder().display().to_string();
    let command = stage.mesh.system().command(binary("countersign")?).args(args.iter().copied());
    let done = command.args(["--dir", &dir]).finish()?;
    Ok((done.status.code(), done.text() + &done.errors()))
}

/// That a line of the access log of what was refused before a rule was asked is explained, by these words of why nothing else was taken.
pub fn because(stage: &Stage, line: &serde_json::Value, words: &str) -> Result<()> {
    let (code, said) = countersign(stage, &["explain", &text(line, "/denial_id")?])?;
    let (result, words) = (format!("refused: {}", text(line, "/result")?), format!("because   {words}"));
    ensure!(code == Some(0) && said.contains(&result) && said.contains(&words), "{result}, {words}: {code:?} {said}");
    Ok(())
}

/// As `--kubectl` asks, in images that hold nothing else: what shows is answered, and nothing that changes is asked.
fn asked_in_its_image(stage: &Stage, denial: &str) -> Result<()> {
    let socket = stage.server.admin_socket().display().to_string();
    let ask = |path: &str, socket: &str| -> Result<(Option<i32>, String)> {
        let command = stage.server.command(binary("countersign-proxy")?);
        let done = command.args(["ask", path, "--admin-socket", socket]).finish()?;
        Ok((done.status.code(), done.text()))
    };
    let (code, said) = ask(&format!("/denials/{denial}"), &socket)?;
    let explained: serde_json::Value = serde_json::from_str(&said).context(said)?;
    ensure!(code == Some(0) && text(&explained, "/text")?.contains(denial), "{code:?} {explained}");
    for (path, expected) in [("/status", 0), ("/config_dump", 0), ("/denials/0123456789abcdef", 3), ("/drain", 2)] {
        ensure!(ask(path, &socket)?.0 == Some(expected), "{path}");
    }
    ensure!(ask("/status", "/no/such.sock")?.0 == Some(2));
    let socket = stage.mesh.folder().join("controller/admin.sock").display().to_string();
    let command = stage.mesh.system().command(binary("countersign-controller")?);
    let done = command.args(["ask", "/status", "--admin-socket", &socket]).finish()?;
    let status: serde_json::Value = serde_json::from_str(&done.text()).with_context(|| done.errors())?;
    ensure!(done.status.success() && status["ready"] == true, "{status}");
    Ok(())
}

pub fn explained(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let intruder = stage.pod("intruder", 41)?;
    stage.mesh.settle(&[&intruder])?;
    let line = refused(&intruder, stage.address())?;
    ensure!(line["result"] == "denied_by_peer", "{line}");
    let id = text(&line, "/denial_id")?;
    // The same id at the side that decided, and for the same attempt again.
    stage.server.access_line(|line| line["denial_id"] == id && line["result"] == "no_rule_matched")?;
    ensure!(text(&refused(&intruder, stage.address())?, "/denial_id")? == id, "another id for a repeat");

    let (code, said) = countersign(&stage, &["explain", &id])?;
    ensure!(code == Some(0), "{code:?} {said}");
    let change = "add shop/intruder to `from[0].serviceAccounts` of shop/client-to-server#0";
    for words in [
        &format!("{id}, 2 times: denied: no_rule_matched"),
        "spiffe://cluster.local/ns/shop/sa/intruder at 10.77.0.41",
        "port      7000",
        "nearest   Allow shop/client-to-server#0: from[0].serviceAccounts asks shop/client; saw shop/intruder",
        change,
    ] {
        ensure!(said.contains(words), "{words:?} is not in {said}");
    }
    let revision = text(&stage.server.admin("/status")?, "/policy/revision")?;
    ensure!(said.contains(&format!("revision  {revision}")), "{revision} is not in {said}");
    ensure!(countersign(&stage, &["explain", "0123456789abcdef"])?.0 == Some(1));
    ensure!(countersign(&stage, &["explain", "nonsense"])?.0 == Some(2));

    asked_in_its_image(&stage, &id)?;

    // The same before it happens.
    let why = |from: &str, to: &str| countersign(&stage, &["policy", "why", "--from", from, "--to", to]);
    let to = format!("shop/server:{PORT}");
    let intruder_id = "spiffe://cluster.local/ns/shop/sa/intruder";
    let (code, said) = why(intruder_id, &to)?;
    ensure!(code == Some(1) && said.contains(change) && said.contains(&revision), "{code:?} {said}");
    let (code, said) = why(CLIENT_ID, &to)?;
    ensure!(code == Some(0) && said.contains("allowed: allowed (shop/client-to-server#0)"), "{code:?} {said}");
    ensure!(why(CLIENT_ID, &format!("server:{}", PORT + 1))?.0 == Some(0), "any port");
    ensure!(why(CLIENT_ID, &format!("nobody:{PORT}"))?.0 == Some(2));

    // What was proposed lets it in.
    let both = "from: [{serviceAccounts: [{namespace: shop, name: client}, {namespace: shop, name: intruder}]}]";
    stage.mesh.object(RULES, &policy("client-to-server", "Allow", both))?;
    stage.mesh.settle(&[&stage.server])?;
    exchange(&intruder, at(&stage.server, PORT)).context("the change did not let it in")?;
    ensure!(why(intruder_id, &to)?.0 == Some(0));
    Ok(())
}

/// Plaintext, which must be refused: what the server's sidecar logs of it.
fn plaintext(stage: &Stage, from: &MeshPod) -> Result<serde_json::Value> {
    let mut talk = Talk::dial(from, stage.address())?;
    talk.tell("GET / HTTP/1.1\r\n\r\n")?;
    ensure!(talk.end(SOON)? == End::Reset);
    let source = talk.local.to_string();
    stage.server.access_line(|line| line["source_address"] == source.as_str())
}

pub fn without_identity(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let stranger = stage.stranger(34)?;
    let line = plaintext(&stage, &stranger)?;
    ensure!(line["result"] == "plaintext_refused" && line["blame"] == "peer", "{line}");
    let id = text(&line, "/denial_id")?;
    let revision = text(&line, "/policy_revision")?;
    ensure!(text(&plaintext(&stage, &stranger)?, "/denial_id")? == id, "another id for a repeat");
    let (code, said) = countersign(&stage, &["explain", &id])?;
    ensure!(code == Some(0), "{code:?} {said}");
    let stands = "unauthenticated: true, ipBlocks: [\"10.77.0.34/32\"]";
    for words in [
        &format!("{id}, 2 times: refused: plaintext_refused"),
        "seen      plaintext where only mutual TLS is accepted",
        "because   mtls is Strict, and no Allow opens the port to sources without identity",
        "source    no identity at 10.77.0.34",
        &format!("port      {PORT}"),
        &format!("revision  {revision} (mtls Strict, posture Enforce, egress Any)"),
        "Allow shop/client-to-server#0: from[0] asks an identity; saw no identity",
        "give the source a sidecar; or an Allow with the rule",
        stands,
    ] {
        ensure!(said.contains(words), "{words:?} is not in {said}");
    }

    // What was proposed lets it in.
    stage.mesh.object("stranger.yaml", &policy("stranger", "Allow", &format!("from: [{{{stands}}}]")))?;
    status_until(&stage.server, |status| status["policy"]["rules"] == 2)?;
    exchange(&stranger, stage.address()).context("the change did not let it in")?;

    // A meshed source that comes past its sidecar is refused in every mode, and that is another reason.
    stage.modes("countersign.dev/mtls: Permissive", ["Permissive", "Enforce", "Any"])?;
    let unguarded = stage.known(MeshPodSpec::new("unguarded", "unguarded", 35).without_sidecar())?;
    let line = plaintext(&stage, &unguarded)?;
    ensure!(line["result"] == "plaintext_refused", "{line}");
    let (code, said) = countersign(&stage, &["explain", &text(&line, "/denial_id")?])?;
    ensure!(code == Some(0) && said.contains("mtls Permissive") && said.contains("through its sidecar"), "{said}");
    Ok(())
}

pub fn from_the_log(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let intruder = stage.pod("intruder", 41)?;
    let stranger = stage.stranger(34)?;
    let denied = text(&refused(&intruder, stage.address())?, "/denial_id")?;
    let by_plaintext = text(&plaintext(&stage, &stranger)?, "/denial_id")?;
    let file = |pod: &MeshPod, id: &str| -> Result<String> {
        pod.access_line(|line| line["denial_id"] == id)?; // it is written after the other side knows
        let path = stage.mesh.folder().join(format!("{}.log", pod.spec().name));
        std::fs::write(&path, pod.with_sidecar(|sidecar| Ok(sidecar.log()))?.join("\n"))?;
        Ok(path.display().to_string())
    };
    let (server, client) = (file(&stage.server, &denied)?, file(&intruder, &denied)?);
    for pod in [&stage.server, &stage.client, &intruder] {
        pod.stop_sidecar();
    }
    wait_until(SOON, || {
        let (code, said) = countersign(&stage, &["explain", &denied])?;
        ensure!(code == Some(2), "somebody still answers: {code:?} {said}");
        Ok(())
    })?;

    // Both sides' lines, each its own half of it.
    let (code, said) = countersign(&stage, &["explain", &denied, "--log", &server, "--log", &client])?;
    ensure!(code == Some(0), "{code:?} {said}");
    for words in [
        &format!("{denied}: no proxy remembers it; in the log:"),
        "inbound no_rule_matched",
        "outbound denied_by_peer",
        "spiffe://cluster.local/ns/shop/sa/intruder at 10.77.0.41:",
        &format!("spiffe://cluster.local/ns/shop/sa/server at {}", stage.address()),
        &format!("detail      spiffe://cluster.local/ns/shop/sa/server denied it: {denied}"),
        "no sidecar that answers has the rules of revision",
    ] {
        ensure!(said.contains(words), "{words:?} is not in {said}");
    }
    let (code, said) = countersign(&stage, &["explain", &by_plaintext, "--log", &server, "-o", "json"])?;
    let found: serde_json::Value = serde_json::from_str(said.lines().next().unwrap_or_default())
        .or_else(|_| serde_json::from_str(&said))
        .with_context(|| said.clone())?;
    ensure!(code == Some(0) && found["log"][0]["result"] == "plaintext_refused", "{code:?} {found}");
    ensure!(found["log"].as_array().is_some_and(|lines| lines.len() == 1), "{found}");
    // Who was not asked might remember it: that is not the same as no.
    let (code, said) = countersign(&stage, &["explain", "0123456789abcdef", "--log", &server])?;
    ensure!(code == Some(2) && said.contains("no log that was given has it"), "{code:?} {said}");
    ensure!(countersign(&stage, &["explain", &denied, "--log", "/no/such.log"])?.0 == Some(2));
    from_the_log_by_the_rules_in_force(&stage, &denied, &server)
}

/// The sidecar that decided is back, and remembers nothing; it has the same rules, and then others.
fn from_the_log_by_the_rules_in_force(stage: &Stage, denied: &str, log: &str) -> Result<()> {
    stage.mesh.start_sidecar(&stage.server)?;
    stage.mesh.settle(&[&stage.server])?;
    let explain = |more: &[&str]| countersign(stage, &[&["explain", denied, "--log", log][..], more].concat());
    let why = "policy why --from spiffe://cluster.local/ns/shop/sa/intruder --source-ip 10.77.0.41 --to";
    let to = format!("shop/server:{PORT}");
    let why: Vec<_> = why.split(' ').chain([to.as_str()]).collect();
    let (code, said) = explain(&[])?;
    let (_, expected) = countersign(stage, &why)?;
    ensure!(code == Some(0) && said.starts_with(&format!("{denied}: no proxy remembers it")), "{code:?} {said}");
    let rules = said.split_once("which are in force there still:\n").with_context(|| said.clone())?.1;
    for words in ["shop/server: denied: no_rule_matched", "1 rule tried:", "change    add shop/intruder to"] {
        ensure!(rules.contains(words), "{words:?} is not in {rules}");
    }
    ensure!(rules == expected, "policy why says it otherwise: {expected}\n{rules}");

    stage.mesh.object(RULES, &policy("client-to-server", "Allow", "from: [{namespaces: [jobs]}]"))?;
    stage.mesh.settle(&[&stage.server])?;
    let (code, said) = explain(&["-o", "json"])?;
    let found: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(code == Some(0) && found["decided"].is_null(), "{code:?} {found}");
    ensure!(text(&found, "/not_decided")?.contains("no sidecar that answers has the rules of revision"), "{found}");
    Ok(())
}
