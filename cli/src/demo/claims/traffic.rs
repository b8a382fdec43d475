//! Traffic that runs while something is done to the mesh: requests over kept connections, requests over new ones, and one long answer.
//!
//! Called by the claims on rotation and on outages. It must never leave a failed request out of what it tells.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use countersign_kit::load::{Measured, Pace, Plan};

use crate::demo::apps::{Download, LOAD_PATH, LONG_PATH};
use crate::demo::say::Say;
use crate::demo::stage::Stage;

const KEPT: usize = 8;
const KEPT_RATE: u32 = 200;
const FRESH_RATE: u32 = 50;
/// New connections that may be open at once.
const FRESH: usize = 16;
/// Nothing that is done meanwhile takes longer.
const LIMIT: Duration = Duration::from_secs(180);

/// Does the work under traffic from `frontend` to the service, and tells what came of the traffic. A request that failed makes it an error, that
/// of the work comes first.
pub fn meanwhile(stage: &Stage, say: &mut Say, work: impl FnOnce(&mut Say) -> Result<()>) -> Result<()> {
    let url = stage.service_url(LONG_PATH);
    let mut long = Download::start(&stage.frontend, &url, stage.scratch("long.out")).context("the long answer")?;
    say.fact(format!("frontend asks {KEPT_RATE} times a second over {KEPT} kept connections, {FRESH_RATE} times a second over new ones, and reads one long answer"));
    let before = long.received();
    let (kept, fresh) = under_load(stage, || {
        work(say)?;
        long.goes_on().context("the long answer")
    })?;
    let failed = kept.failed + fresh.failed;
    let all = kept.answered + fresh.answered + failed;
    say.fact(format!(
        "meanwhile: {} requests over kept connections, {} over new ones, failed: {failed} of {all}; the long answer goes on ({} KiB more)",
        kept.answered,
        fresh.answered,
        (long.received() - before) / 1024
    ));
    for (name, measured) in [("kept", &kept), ("new", &fresh)] {
        say.figure(&format!("{name}_answered"), measured.answered);
        say.figure(&format!("{name}_failed"), measured.failed);
        if let Some(why) = &measured.failure {
            return Err(anyhow!("{} requests over {name} connections failed, the first: {why}", measured.failed));
        }
        ensure!(measured.answered > 0, "no request over {name} connections was answered");
    }
    Ok(())
}

fn under_load(stage: &Stage, work: impl FnOnce() -> Result<()>) -> Result<(Measured, Measured)> {
    let done = AtomicBool::new(false);
    let of = |connections, rate, fresh| Plan {
        pace: Pace::Rate(rate),
        connections,
        fresh,
        length: LIMIT,
        ..Plan::new(stage.http_service(), LOAD_PATH)
    };
    let plans = [of(KEPT, KEPT_RATE, false), of(FRESH, FRESH_RATE, true)];
    std::thread::scope(|scope| {
        let [kept, fresh] = plans.each_ref().map(|plan| {
            let done = &done;
            scope.spawn(move || stage.frontend.inside(|| plan.run(&mut |_| !done.load(Ordering::Relaxed))))
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let kept = kept.join().map_err(|_| anyhow!("the load over kept connections panicked"))?;
        let fresh = fresh.join().map_err(|_| anyhow!("the load over new connections panicked"))?;
        worked?;
        Ok((kept.context("over kept connections")?, fresh.context("over new connections")?))
    })
}
