//! Two meshes of two trust domains on one link.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use countersign_kit::Inside;
use countersign_kit::mesh::MeshPodSpec;

use crate::stage::{PORT, Stage, policy};
use crate::talk::{Echo, exchange, refused};

const ELSEWHERE: &str = "elsewhere.test";

/// Each mesh believes that the other's pod is one of its own, and each rule would let it in: what keeps them apart is that neither
/// CA vouches for the other's.
pub fn apart(inside: &Inside) -> Result<()> {
    let ours = Stage::new(inside)?;
    let theirs = Stage::of_domain(inside, ELSEWHERE)?;
    exchange(&ours.client, ours.address())?;
    exchange(&theirs.client, theirs.address())?;

    // Their pod 40 gets a second leg on our link, and the way to our pod 41 by it.
    let foreigner = theirs.mesh.pod(MeshPodSpec::new("client-2", "client", 40))?;
    let native = ours.mesh.pod(MeshPodSpec::new("server-2", "server", 41))?;
    let [their_app, our_app] = [Echo::start(&foreigner, PORT)?, Echo::start(&native, PORT)?];
    ours.mesh.net().link().ip(&format!(
        "link add foreign type veth peer name eth1 netns {}\nlink set foreign master br0 up\n",
        foreigner.netns()
    ))?;
    foreigner.ip(&format!(
        "link set eth1 up\naddress add {}/32 dev eth1\naddress add {}/128 dev eth1 nodad\nroute add {}/32 dev eth1 src {}\nroute add {}/128 dev eth1 src {}\n",
        foreigner.v4(),
        foreigner.v6(),
        native.v4(),
        foreigner.v4(),
        native.v6(),
        foreigner.v6()
    ))?;
    let workload = |name: &str, app: &str, number: u8| {
        format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\n\
             spec: {{uid: \"guest-{number}\", serviceAccount: {app}, addresses: [10.77.0.{number}, \"fd77::{number:x}\"], \
             meshed: true, ready: true, node: node-a}}\n"
        )
    };
    ours.mesh.object("guest.yaml", &workload("guest", "client", 40))?;
    theirs.mesh.object("guest.yaml", &workload("guest", "server", 41))?;
    for stage in [&ours, &theirs] {
        let anybody = "from: [{trustDomains: [\"*\"]}]";
        for app in ["client", "server"] {
            let rule =
                policy(&format!("all-to-{app}"), "Allow", anybody).replace("{app: server}", &format!("{{app: {app}}}"));
            stage.mesh.object(&format!("all-{app}.yaml"), &rule)?;
        }
    }
    ours.mesh.settle(&[&ours.client, &ours.server, &native])?;
    theirs.mesh.settle(&[&theirs.client, &theirs.server, &foreigner])?;

    for (from, to) in [(&foreigner, &native), (&native, &foreigner)] {
        for ip in to.addresses() {
            let line = refused(from, SocketAddr::new(ip, PORT))?;
            ensure!(line["result"] == "handshake_failed" && line["bytes_received"] == 0, "{line}");
            let other = to.access_line(|line| {
                line["direction"] == "inbound" && line["destination_address"] == SocketAddr::new(ip, PORT).to_string()
            })?;
            ensure!(other["result"] == "handshake_failed" && other["blame"] == "peer", "{other}");
        }
    }
    ensure!((their_app.greeted(), our_app.greeted()) == (0, 0), "an app was reached");
    // Nor did it cost the meshes themselves anything.
    exchange(&native, ours.address())?;
    exchange(&foreigner, theirs.address())?;
    Ok(())
}
