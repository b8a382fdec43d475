//! The redirect rules as `nft`, the judge, sees them.

use anyhow::{Result, ensure};
use countersign_kit::{Inside, Namespace};

use crate::stage::Stage;
use crate::talk::{Talk, exchange};

fn ruleset(pod: &Namespace) -> Result<String> {
    pod.command("nft").args(["list", "ruleset"]).succeed()
}

pub fn twice(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let once = ruleset(&stage.server)?;
    ensure!(once.contains("table inet countersign") && once.contains("redirect to :15006"), "{once}");
    let mut open = Talk::open(&stage.client, stage.address())?;
    for _ in 0..2 {
        stage.mesh.intercept(&stage.server, "install")?;
        ensure!(ruleset(&stage.server)? == once, "{}", ruleset(&stage.server)?);
    }
    stage.mesh.intercept(&stage.server, "check")?;
    open.say("still here\n")?;
    exchange(&stage.client, stage.address())?;
    Ok(())
}

pub fn lost_rule(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let whole = ruleset(&stage.server)?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    // A table of somebody else is none of our business.
    stage.server.nft("table inet theirs {\n chain c {\n }\n}\n")?;
    stage.mesh.intercept(&stage.server, "check")?;
    for chain in ["prerouting", "output", "apart", "strays"] {
        let listed =
            stage.server.command("nft").args(["-a", "list", "chain", "inet", "countersign", chain]).succeed()?;
        let handles: Vec<&str> =
            listed.lines().filter(|l| !l.contains('{')).filter_map(|l| l.split("# handle ").nth(1)).collect();
        ensure!(!handles.is_empty(), "{listed}");
        let last = handles[handles.len() - 1];
        stage.server.nft(&format!("delete rule inet countersign {chain} handle {last}"))?;
        let said = match stage.mesh.intercept(&stage.server, "check") {
            Ok(said) => anyhow::bail!("a rule of {chain} is gone, and the check says {said:?}"),
            Err(error) => error.to_string(),
        };
        ensure!(said.contains("exit status: 1") && said.contains(chain), "{said}");
        stage.mesh.intercept(&stage.server, "install")?;
        stage.mesh.intercept(&stage.server, "check")?;
    }
    let mended = ruleset(&stage.server)?;
    ensure!(mended.contains("table inet theirs"), "{mended}");
    stage.server.nft("delete table inet theirs")?;
    ensure!(ruleset(&stage.server)? == whole, "{}", ruleset(&stage.server)?);
    open.say("still here\n")?;
    exchange(&stage.client, stage.address())?;
    Ok(())
}

pub fn removed(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    for _ in 0..2 {
        stage.mesh.intercept(&stage.server, "remove")?;
        let left = ruleset(&stage.server)?;
        ensure!(left.trim().is_empty(), "{left}");
    }
    ensure!(stage.mesh.intercept(&stage.server, "check").is_err(), "nothing is there, and the check is content");
    stage.mesh.intercept(&stage.server, "install")?;
    exchange(&stage.client, stage.address())?;
    Ok(())
}
