//! A client that shares nothing with us but the RFC: `openssl s_client` with a certificate of the mesh's issuer. What the sidecar seals and
//! opens by itself (docs/decisions/0018) is understood by it, and the other way round, before and after new keys.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Shutdown, TcpListener};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context as _, Result, ensure};
use countersign_api::names::ALPN;
use countersign_kit::testca::{LeafSpec, TestCa};

use crate::world::World;
use crate::{FRONTEND, LIMIT, addresses, line};

const OPEN: [u8; 4] = [1, 0, 0, 0];
const FIN: [u8; 4] = [3, 0, 0, 0];
const ACCEPTED: [u8; 5] = [5, 0, 0, 1, 0];
/// A line that begins so is no data to `s_client`, but its order to send a KeyUpdate: the first asks for the peer's too.
const NEW_KEYS: [&[u8]; 2] = [b"K\n", b"k\n"];

/// What was said to it and what it says, as it comes; killed with the test.
struct Client {
    child: Child,
    stdin: ChildStdin,
    data: Receiver<u8>,
    told: Receiver<String>,
}

impl Client {
    fn start(mut command: std::process::Command) -> Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("openssl s_client")?;
        let (stdout, stderr) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        let ((give, data), (tell, told)) = (channel(), channel());
        std::thread::spawn(move || {
            BufReader::new(stdout).bytes().map_while(Result::ok).try_for_each(|byte| give.send(byte))
        });
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        let stdin = child.stdin.take().context("stdin")?;
        Ok(Self { child, stdin, data, told })
    }

    fn say(&mut self, bytes: &[u8]) -> Result<()> {
        self.stdin.write_all(bytes)?;
        Ok(self.stdin.flush()?)
    }

    fn hears(&mut self, expected: &[u8]) -> Result<()> {
        let mut heard = Vec::new();
        while heard.len() < expected.len() {
            match self.data.recv_timeout(LIMIT) {
                Ok(byte) => heard.push(byte),
                Err(error) => {
                    let told: Vec<String> = self.told.try_iter().collect();
                    anyhow::bail!("{error} behind {heard:x?}; s_client told: {told:#?}");
                }
            }
        }
        ensure!(heard == expected, "{heard:x?} instead of {expected:x?}");
        Ok(())
    }

    /// A line of its own about the connection.
    fn tells(&self, part: &str) -> Result<()> {
        let mut seen = Vec::new();
        loop {
            let line = self.told.recv_timeout(LIMIT).with_context(|| format!("no {part:?} in {seen:#?}"))?;
            if line.contains(part) {
                return Ok(());
            }
            seen.push(line);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn data(word: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, word.len() as u8], word].concat()
}

pub fn speaks(world: &World) -> Result<()> {
    let ca = world.mesh.folder().join("ca");
    let ca = TestCa::stolen(&ca.join("state"), &ca.join("state.key"))?;
    let folder = world.mesh.folder().join("openssl-client");
    std::fs::create_dir_all(&folder)?;
    for address in addresses(&world.backend1, world.port()) {
        ca.leaf(&LeafSpec::of(FRONTEND))?.write(&folder)?;
        let listener = world.backend1.inside(|| TcpListener::bind(address))?;
        // Says back what it hears, to the end.
        let app = std::thread::spawn(move || -> std::io::Result<u64> {
            let (stream, _) = listener.accept()?;
            let told = std::io::copy(&mut &stream, &mut &stream)?;
            stream.shutdown(Shutdown::Write)?;
            Ok(told)
        });
        let (alpn, to) = (std::str::from_utf8(ALPN)?, address.to_string());
        let command = world.stranger.command("openssl").folder(&folder).args(["s_client", "-brief", "-connect", &to]);
        let command =
            command.args(["-alpn", alpn, "-cert", "chain.pem", "-cert_chain", "chain.pem", "-key", "key.pem"]);
        let bundle = world.mesh.bundle().display().to_string();
        let mut client = Client::start(command.args(["-verify_return_error", "-CAfile", &bundle]).into_std()?)?;
        client.tells("Protocol version: TLSv1.3")?;
        client.say(&OPEN)?;
        client.hears(&ACCEPTED)?;
        client.say(&data(b"before"))?;
        client.hears(&data(b"before"))?;
        for order in NEW_KEYS {
            client.say(order)?;
            client.tells("KEYUPDATE")?;
            client.say(&data(b"after"))?;
            client.hears(&data(b"after"))?;
        }
        client.say(&FIN)?;
        client.hears(&FIN)?;
        ensure!(app.join().ok().context("the app panicked")?? == 16, "the app heard something else");
        let line = line(&world.backend1, address)?;
        ensure!(line["result"] == "ok" && line["source_id"] == FRONTEND, "{line}");
    }
    Ok(())
}
