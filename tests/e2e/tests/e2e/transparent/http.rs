//! curl and nginx.

use anyhow::{Result, ensure};

use super::{only_the_frontend, place};
use crate::programs::curl;
use crate::world::World;

/// nginx tells whom it believes to talk to, in which protocol, and how many requests this connection has carried.
const TELL: &str =
    "    location / { return 200 \"$remote_addr $server_addr $server_protocol $connection_requests\\n\"; }";

/// HTTP/1.1: two requests over one connection. nginx believes that its own pod talks to it, at its own address, never at
/// loopback.
pub fn one(world: &World) -> Result<()> {
    let place = place(world)?;
    let _nginx = place.nginx("", TELL)?;
    for address in place.addresses() {
        let url = format!("http://{address}/");
        let said =
            curl(&world.frontend, &url)?.arg(&url).args(["-w", "%{http_version} %{num_connects}\n"]).succeed()?;
        let ip = address.ip();
        let expected = format!("{ip} {ip} HTTP/1.1 1\n1.1 1\n{ip} {ip} HTTP/1.1 2\n1.1 0\n");
        ensure!(said == expected, "{said:?} instead of {expected:?}");
        only_the_frontend(&world.backend1, address)?;
    }
    Ok(())
}

/// HTTP/2 from the first byte, with no upgrade; a page is larger than the protocol's own windows.
pub fn two(world: &World) -> Result<()> {
    let place = place(world)?;
    let page: String = (0..200_000).map(|line| format!("line {line:08}\n")).collect();
    place.file("page.txt", &page)?;
    let body = format!(
        "    location / {{ return 200 \"$server_protocol\\n\"; }}\n    location /page.txt {{ root {}; }}",
        place.folder.display()
    );
    let _nginx = place.nginx("http2", &body)?;
    for address in place.addresses() {
        let get = |path: &str| {
            let url = format!("http://{address}{path}");
            curl(&world.frontend, &url)?.args(["--http2-prior-knowledge", "-w", "%{http_version}"]).succeed()
        };
        ensure!(get("/")? == "HTTP/2.0\n2", "another protocol");
        ensure!(get("/page.txt")?.strip_suffix('2') == Some(&page), "another page");
        only_the_frontend(&world.backend1, address)?;
    }
    Ok(())
}
