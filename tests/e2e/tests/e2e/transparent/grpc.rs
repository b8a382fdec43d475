//! A gRPC pair: Python's grpcio, which is the C core.

use anyhow::{Result, ensure};

use super::{only_the_frontend, place};
use crate::programs::python;
use crate::world::World;

const SERVER: &str = include_str!("scripts/grpc_server.py");
const CLIENT: &str = include_str!("scripts/grpc_client.py");

/// Unary calls, and a stream both ways in which each question waits for the answer to the last.
pub fn pair(world: &World) -> Result<()> {
    let place = place(world)?;
    let grpc = |pod| python(pod, "python3-grpcio");
    let _server = place.start(grpc(place.pod)?.args(["-c", SERVER, &place.port.to_string()]))?;
    for address in place.addresses() {
        let said = grpc(&world.frontend)?.args(["-c", CLIENT, &address.to_string()]).succeed()?;
        ensure!(said == "all said and heard\n", "{said:?}");
        only_the_frontend(&world.backend1, address)?;
    }
    Ok(())
}
