//! redis, asked many things at once.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use countersign_kit::PodCommand;

use super::{only_the_frontend, place};
use crate::programs::command;
use crate::world::World;

const REQUESTS: &str = "40000";

/// Forty connections, sixteen requests in flight on each: all are answered, and redis itself counted as many.
pub fn benchmark(world: &World) -> Result<()> {
    let place = place(world)?;
    let _redis = place.redis()?;
    let ask = |program: &str, address: SocketAddr| -> Result<PodCommand> {
        Ok(command(&world.frontend, program)?.args(["-h", &address.ip().to_string(), "-p", &place.port.to_string()]))
    };
    for address in place.addresses() {
        ask("redis-cli", address)?.args(["CONFIG", "RESETSTAT"]).succeed()?;
        let load = ["-t", "set,get", "-n", REQUESTS, "-c", "40", "-P", "16", "-d", "100", "-r", "1000", "--csv"];
        let said = ask("redis-benchmark", address)?.args(load).succeed()?;
        ensure!(said.contains("\"SET\"") && said.contains("\"GET\""), "{said}");
        let counted = ask("redis-cli", address)?.args(["INFO", "everything"]).succeed()?;
        for command in ["set", "get"] {
            ensure!(counted.contains(&format!("cmdstat_{command}:calls={REQUESTS},")), "{command}: {counted}");
        }
        ensure!(counted.contains("total_error_replies:0\r"), "{counted}");
        only_the_frontend(&world.backend1, address)?;
    }
    Ok(())
}
