//! A WebSocket: HTTP that becomes something else, in which both sides speak unasked.

use anyhow::{Result, ensure};

use super::{only_the_frontend, place};
use crate::programs::python;
use crate::world::World;

const SERVER: &str = include_str!("scripts/websocket_server.py");
const CLIENT: &str = include_str!("scripts/websocket_client.py");

/// The server's greeting, echoes of text and of binary, a ping, and the server's own code at the end.
pub fn pair(world: &World) -> Result<()> {
    let place = place(world)?;
    let websockets = |pod| python(pod, "python3-websockets");
    let _server = place.start(websockets(place.pod)?.args(["-c", SERVER, &place.port.to_string()]))?;
    for address in place.addresses() {
        let said = websockets(&world.frontend)?.args(["-c", CLIENT, &format!("ws://{address}/")]).succeed()?;
        ensure!(said == "all given back\n", "{said:?}");
        only_the_frontend(&world.backend1, address)?;
    }
    Ok(())
}
