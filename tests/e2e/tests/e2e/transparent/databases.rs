//! Databases with their own handshakes.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use countersign_kit::PodCommand;

use super::server_first::no_stall;
use super::{only_the_frontend, place};
use crate::programs::command;
use crate::world::World;

/// MariaDB speaks first; its client logs in with a password, writes, and reads a long answer back.
pub fn mariadb(world: &World) -> Result<()> {
    let place = place(world)?;
    let _server = place.mariadb()?;
    for address in place.addresses() {
        let ip = address.ip();
        let said = command(&world.frontend, "mariadb")?
            .args(["--no-defaults", "--host", &ip.to_string(), "--port", &place.port.to_string()])
            .args(["--user=app", "--password=secret", "--batch", "--skip-column-names", "shop"])
            .stdin(
                "CREATE OR REPLACE TABLE t (n INT PRIMARY KEY, word VARCHAR(60));\n\
                 INSERT INTO t SELECT seq, REPEAT('word ', 10) FROM seq_1_to_20000;\n\
                 SELECT USER();\nSELECT * FROM t ORDER BY n;\nSELECT COUNT(*), SUM(n) FROM t;\n",
            )
            .succeed()?;
        let lines: Vec<&str> = said.lines().collect();
        // The peer it sees is its own pod, not loopback, which it would call `localhost`.
        ensure!(lines[0] == format!("app@{ip}"), "{}", lines[0]);
        ensure!(lines.len() == 20_002 && lines[20_001] == "20000\t200010000", "{} lines", lines.len());
        only_the_frontend(&world.backend1, address)?;
    }
    no_stall(&world.frontend, &place, b"MariaDB")
}

/// PostgreSQL trusts whoever comes over loopback, as it does by default: a peer of the mesh does not, and must know the password.
pub fn postgresql(world: &World) -> Result<()> {
    let place = place(world)?;
    let _server = place.postgres(world.mesh.net().inside().rootless())?;
    let psql = |address: SocketAddr, password: &str| -> Result<PodCommand> {
        let (ip, port) = (address.ip().to_string(), place.port.to_string());
        let place = ["--host", &ip, "--port", &port, "--username", "app", "--dbname", "postgres"];
        let plain = ["--no-psqlrc", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"];
        Ok(command(&world.frontend, "psql")?.env("PGPASSWORD", password).args(place).args(plain))
    };
    for address in place.addresses() {
        let said = psql(address, "secret")?
            .stdin(
                "SELECT host(inet_client_addr());\nCREATE TEMPORARY TABLE t AS SELECT n, repeat('x', 100) AS word FROM \
                 generate_series(1, 20000) n;\nCOPY t TO STDOUT;\nSELECT count(*), sum(n) FROM t;\n",
            )
            .succeed()?;
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("SELECT ")).collect();
        ensure!(lines[0] == address.ip().to_string(), "{}", lines[0]);
        ensure!(lines.len() == 20_002 && lines[20_001] == "20000|200010000", "{} lines", lines.len());
        let refused = psql(address, "guessed")?.args(["--command", "SELECT 1"]).finish()?;
        ensure!(!refused.status.success(), "a wrong password was good enough");
        ensure!(refused.errors().contains("password authentication failed"), "{}", refused.errors());
        only_the_frontend(&world.backend1, address)?;
    }
    Ok(())
}
