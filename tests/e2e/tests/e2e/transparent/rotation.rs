//! Real programs do not notice that the root is replaced: one session each, open throughout.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::binary;
use countersign_kit::{PodCommand, Running};

use crate::programs::{Place, command, python};
use crate::world::World;

/// Short, so that every leaf is replaced several times meanwhile.
const CA: &[&str] = &["--leaf-ttl", "20s", "--max-leaf-ttl", "20s"];
/// A rotation waits 20 s by itself; a busy machine adds to it.
const LONG: Duration = Duration::from_secs(180);

/// A PostgreSQL session, a WebSocket and a gRPC stream, in a mesh of their own.
pub fn sessions(world: &World) -> Result<()> {
    let world = World::with_ca(world.mesh.net().inside(), CA)?;
    let place = || Place::new(&world.mesh, &world.backend1, world.port());
    let (database, socket, stream) = (place()?, place()?, place()?);
    let postgres = database.postgres(world.mesh.net().inside().rootless())?;
    let script = |place: &Place<'_>, package, server| {
        place.start(python(place.pod, package)?.args(["-c", server, &place.port.to_string()]))
    };
    let websocket = script(&socket, "python3-websockets", include_str!("scripts/websocket_server.py"))?;
    let grpc = script(&stream, "python3-grpcio", include_str!("scripts/grpc_server.py"))?;

    let stop = database.folder.join("stop");
    let stop_text = stop.to_str().context("a path")?;
    let client = |package, client, address: String| {
        Ok::<_, anyhow::Error>(python(&world.frontend, package)?.args(["-c", client, &address, stop_text]))
    };
    let clients = [
        session(&world, &database, stop_text)?,
        client(
            "python3-websockets",
            include_str!("scripts/websocket_long.py"),
            format!("ws://{}/", socket.addresses()[0]),
        )?,
        client("python3-grpcio", include_str!("scripts/grpc_long.py"), stream.addresses()[1].to_string())?,
    ];
    let clients = clients.map(PodCommand::spawn).into_iter().collect::<Result<Vec<_>>>()?;
    let said = |client: &Running, word: &str| client.wait_for_line(LONG, |line| line.contains(word)).map(drop);
    clients.iter().try_for_each(|client| said(client, "open"))?;

    let rotate = world.mesh.system().command(binary("countersign")?).args(["ca", "rotate", "--socket"]);
    let rotate = rotate.arg(world.mesh.ca_socket());
    let report = rotate.arg("--report").arg(world.mesh.folder().join("report.json")).limit(LONG).succeed()?;
    ensure!(report.contains(": retired\n"), "{report}");

    std::fs::write(&stop, "")?;
    clients.iter().try_for_each(|client| said(client, "lived"))?;
    drop((clients, postgres, websocket, grpc));
    Ok(())
}

/// One session that says a word five times a second until the file is there.
fn session(world: &World, place: &Place<'_>, stop: &str) -> Result<PodCommand> {
    let (ip, port) = (place.addresses()[0].ip().to_string(), place.port.to_string());
    let wait = format!(
        "DO $$ BEGIN WHILE (pg_stat_file('{stop}', true)).size IS NULL LOOP RAISE NOTICE 'open'; PERFORM pg_sleep(0.2); \
         END LOOP; END $$"
    );
    let psql = command(&world.frontend, "psql")?.env("PGPASSWORD", "secret");
    let psql = psql.args(["--host", &ip, "--port", &port, "--username", "app", "--dbname", "postgres", "--no-psqlrc"]);
    Ok(psql.args(["--set", "ON_ERROR_STOP=1", "--command", &wait, "--command", "SELECT 'li' || 'ved'"]))
}
