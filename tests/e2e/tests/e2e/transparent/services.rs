//! Service addresses, and pods that call themselves.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use countersign_kit::mesh::MeshPod;
use serde_json::json;

use super::{BACKEND, FRONTEND, only_the_frontend};
use crate::programs::{Place, curl};
use crate::world::World;

/// A port of services, at which nobody listens.
const PORT: u16 = 80;
/// Two endpoints, each as likely as the other: that one is never drawn happens once in 2^60 runs.
const TRIES: usize = 60;

/// Through the service's own addresses, which nobody has, both endpoints answer.
pub fn both_endpoints(world: &World) -> Result<()> {
    let port = world.port();
    let backends = [&world.backend1, &world.backend2];
    let places = [Place::new(&world.mesh, backends[0], port)?, Place::new(&world.mesh, backends[1], port)?];
    let _nginx = [told(&places[0])?, told(&places[1])?];
    for (family, address) in service(world, "backend", port)?.into_iter().enumerate() {
        all_answer(&world.frontend, address, &["backend-1", "backend-2"])?;
        for (pod, place) in backends.into_iter().zip(&places) {
            only_the_frontend(pod, place.addresses()[family])?;
        }
        // One of the endpoints calls its own service: itself and the other answer.
        all_answer(&world.backend1, address, &["backend-1", "backend-2"])?;
    }
    Ok(())
}

/// Without the network, and decided by its own rules on its own identity.
pub fn own_address(world: &World) -> Result<()> {
    let place = Place::new(&world.mesh, &world.backend1, world.port())?;
    let _nginx = told(&place)?;
    for address in place.addresses() {
        all_answer(&world.backend1, address, &["backend-1"])?;
        decided_locally(&world.backend1, address, BACKEND)?;
    }
    Ok(())
}

/// The service's address is its own address in the end, and its own rules still decide: without one that allows it, it is denied.
pub fn only_itself(world: &World) -> Result<()> {
    let place = Place::new(&world.mesh, &world.frontend, world.port())?;
    let _nginx = told(&place)?;
    let addresses = service(world, "frontend", place.port)?;
    for address in addresses {
        let refused = curl(&world.frontend, &format!("http://{address}/"))?.finish()?;
        ensure!(!refused.status.success(), "allowed by no rule: {}", refused.text());
        let line = world.frontend.access_line(|line| line["destination_address"] == json!(address.to_string()))?;
        ensure!(line["blame"] == "policy" && line["source_id"] == FRONTEND, "{line}");
    }
    let port = place.port;
    let rule = format!(
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: itself-{port}, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: frontend}}}}\n  \
         action: Allow\n  rules:\n  - from: [{{serviceAccounts: [{{namespace: shop, name: frontend}}]}}]\n    \
         to: [{{ports: [{port}]}}]\n"
    );
    world.mesh.object(&format!("itself-{port}.yaml"), &rule)?;
    world.mesh.settle(&[&world.frontend])?;
    for address in addresses {
        all_answer(&world.frontend, address, &["frontend"])?;
        decided_locally(&world.frontend, address, FRONTEND)?;
    }
    Ok(())
}

/// nginx that tells its pod's name.
fn told(place: &Place) -> Result<countersign_kit::Running> {
    place.nginx("", &format!("    location / {{ return 200 \"{}\\n\"; }}", place.pod.name()))
}

/// Exactly these answer at `address`, if asked often enough.
fn all_answer(client: &MeshPod, address: SocketAddr, names: &[&str]) -> Result<()> {
    let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    let mut heard = BTreeSet::new();
    for _ in 0..TRIES {
        heard.insert(curl(client, &format!("http://{address}/"))?.succeed()?.trim().to_owned());
        ensure!(heard.is_subset(&names), "at {address}: {heard:?}");
        if heard == names {
            return Ok(());
        }
    }
    anyhow::bail!("at {address} only {heard:?} answered")
}

fn decided_locally(pod: &MeshPod, address: SocketAddr, id: &str) -> Result<()> {
    let line =
        pod.access_line(|line| line["destination_address"] == json!(address.to_string()) && line["result"] == "ok")?;
    let said = (&line["direction"], &line["security"], &line["source_id"], &line["destination_id"]);
    ensure!(said == (&json!("outbound"), &json!("local"), &json!(id), &json!(id)), "{line}");
    Ok(())
}

/// A service of all pods of `app`, on port 80, to this port of theirs; known to the controller when this returns.
fn service(world: &World, app: &str, port: u16) -> Result<[SocketAddr; 2]> {
    let [high, low] = port.to_be_bytes();
    let (v4, v6) = (Ipv4Addr::new(10, 96, high, low), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, port));
    let text = format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: Service\nmetadata: {{name: {app}-{port}, namespace: shop}}\nspec:\n  \
         addresses: [{v4}, \"{v6}\"]\n  selector: {{app: {app}}}\n  ports: [{{port: {PORT}, targetPort: {port}}}]\n"
    );
    world.mesh.object(&format!("service-{port}.yaml"), &text)?;
    world.mesh.settle(&[])?;
    Ok([SocketAddr::from((v4, PORT)), SocketAddr::from((v6, PORT))])
}
