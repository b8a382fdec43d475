//! Promise 1: unmodified clients and servers talk over mutual TLS with no setting changed in either.

use std::time::Duration;

use anyhow::{Result, ensure};
use countersign_kit::wait_until;
use serde_json::json;

use crate::Test;
use crate::world::World;

pub const TESTS: &[(&str, Test)] = &[("transparent::curl_reaches_nginx_as_its_own_identity", curl_and_nginx)];

fn curl_and_nginx(world: &World) -> Result<()> {
    let port = world.port();
    let pod = &world.backend1;
    let folder = world.mesh.folder().join(format!("nginx-{port}"));
    std::fs::create_dir_all(&folder)?;
    let config = format!(
        "daemon off; master_process off; user root; pid {0}/pid; error_log stderr; events {{}}\n\
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; \
         uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; server {{ listen {port}; listen [::]:{port}; location / {{ return 200 \"hello from nginx\\n\"; }} }} }}\n",
        folder.display()
    );
    std::fs::write(folder.join("nginx.conf"), config)?;
    let _nginx = pod.command("nginx").arg("-c").arg(folder.join("nginx.conf")).arg("-p").arg(&folder).spawn()?;
    for address in [format!("{}", pod.v4()), format!("[{}]", pod.v6())] {
        let url = format!("http://{address}:{port}/");
        let said = wait_until(Duration::from_secs(10), || {
            world.frontend.command("curl").args(["-sS", "--fail", "--max-time", "5", &url]).succeed()
        })?;
        ensure!(said == "hello from nginx\n", "{said:?}");
    }
    let line = pod.access_line(|l| l["destination"]["port"] == json!(port) || l.to_string().contains(&format!(":{port}\"")))?;
    ensure!(line.to_string().contains("/ns/shop/sa/frontend"), "{line}");
    Ok(())
}
