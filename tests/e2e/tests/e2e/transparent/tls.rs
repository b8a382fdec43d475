//! An application with TLS of its own: openssl's server and client.

use std::fs;

use anyhow::{Context, Result, ensure};
use countersign_kit::Capture;

use super::wire::only_ours;
use super::{only_the_frontend, place};
use crate::programs::{Place, command};
use crate::world::World;

const NAME: &str = "own-tls.shop.example";
const WORD: &str = "what only the two applications know";
/// Far more than all that passes meanwhile.
const BOUND: usize = 512 * 1024 * 1024;

/// The client sees the server's own certificate, and even its TLS 1.2, where it would be in the clear, is nowhere on the link.
pub fn inside(world: &World) -> Result<()> {
    let place = place(world)?;
    let certificate = certificate(&place)?;
    place.file("word.txt", WORD)?;
    let args = ["s_server", "-WWW", "-cert", "cert.pem", "-key", "key.pem", "-accept", &place.port.to_string()];
    let _server = place.start(command(place.pod, "openssl")?.args(args))?;
    let capture = Capture::start(world.mesh.net(), BOUND)?;
    for address in place.addresses() {
        for (version, shown) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let said = command(&world.frontend, "openssl")?
                .folder(&place.folder)
                .args(["s_client", "-connect", &address.to_string(), version, "-servername", NAME, "-ign_eof"])
                .args(["-CAfile", "cert.pem", "-verify_hostname", NAME, "-verify_return_error", "-showcerts"])
                .stdin("GET /word.txt HTTP/1.0\r\n\r\n")
                .succeed()?;
            for wanted in [WORD, shown, certificate.trim(), "Verify return code: 0 (ok)"] {
                ensure!(said.contains(wanted), "no {wanted:?} in:\n{said}");
            }
        }
        only_the_frontend(&world.backend1, address)?;
    }
    let captured = capture.finish()?;
    let der = command(place.pod, "openssl")?.args(["x509", "-outform", "der"]).stdin(certificate).finish()?.stdout;
    ensure!(!der.is_empty());
    only_ours(&captured, &place.addresses(), &[WORD.as_bytes(), NAME.as_bytes(), &der])
}

/// A certificate for [`NAME`] that signs itself, as PEM; it is `cert.pem`, its key `key.pem`.
fn certificate(place: &Place) -> Result<String> {
    let (subject, names) = (format!("/CN={NAME}"), format!("subjectAltName=DNS:{NAME}"));
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem"];
    command(place.pod, "openssl")?
        .folder(&place.folder)
        .args(["req", "-x509", "-days", "2", "-out", "cert.pem", "-subj", &subject, "-addext", &names])
        .args(key)
        .succeed()?;
    fs::read_to_string(place.folder.join("cert.pem")).context("the certificate")
}
