//! What differs from `handshake`: where it stops reading, what it leaves, and that it refuses the same.

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::handshake::tests::{BACK, FRONT, LIMIT, Mesh, mesh};
use crate::testing::{self, id};
use crate::{accept, connect};
use countersign_api::names::{ALPN, ALPN_H2};
use rustls::AlertDescription;

type Client = Result<Driven<DuplexStream, ClientConnection>, HandshakeError>;
type Server = Result<Driven<DuplexStream, ServerConnection>, HandshakeError>;

fn pair() -> (Credentials, Credentials) {
    let mesh = mesh();
    (mesh.front, mesh.back)
}

async fn shake(client: &Credentials, server: &Credentials, expected: &str) -> (Client, Server) {
    let (near, far) = duplex(64 * 1024);
    let expected = id(expected);
    tokio::join!(connect_driven(near, client, &[ALPN], &expected, LIMIT), accept_driven(far, server, &[ALPN], LIMIT))
}

/// A pipe through which so many bytes go at once.
fn trickling(most: usize) -> (DuplexStream, DuplexStream) {
    let ((near, mut near_mid), (mut far_mid, far)) = (duplex(64 * 1024), duplex(64 * 1024));
    tokio::spawn(
        async move { tokio::io::copy_bidirectional_with_sizes(&mut near_mid, &mut far_mid, most, most).await },
    );
    (near, far)
}

#[tokio::test(start_paused = true)]
async fn both_ends_hold_the_same_secrets_and_know_each_other_however_the_bytes_come() {
    let (front, back) = pair();
    for most in [1, 5, 77, 64 * 1024] {
        let (near, far) = trickling(most);
        let expected = id(BACK);
        let (client, server) = tokio::join!(
            connect_driven(near, &front, &[ALPN], &expected, LIMIT),
            accept_driven(far, &back, &[ALPN], LIMIT)
        );
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!((client.id.id().as_str(), server.id.id().as_str()), (BACK, FRONT));
        assert_eq!(*client.secrets.client, *server.secrets.client);
        assert_eq!(*client.secrets.server, *server.secrets.server);
        assert_ne!(*client.secrets.client, *client.secrets.server);
        assert_eq!(client.secrets.suite, server.secrets.suite);
        let name = |tls: &ClientConnection| tls.export_keying_material([0; 8], b"EXPORTER-test", None).unwrap();
        assert_eq!(name(&client.tls), server.tls.export_keying_material([0; 8], b"EXPORTER-test", None).unwrap());
        assert!(client.unread.is_empty() && server.unread.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_follows_the_handshake_is_left_to_who_takes_over() {
    let (front, back) = pair();
    let (near, far) = duplex(64 * 1024);
    let expected = id(BACK);
    let early = async {
        // The first words leave before the server reads the end of the handshake.
        let mut done = connect_driven(near, &front, &[ALPN], &expected, LIMIT).await.unwrap();
        done.io.write_all(b"not for rustls").await.unwrap();
        done.io
    };
    let (io, server) = tokio::join!(early, accept_driven(far, &back, &[ALPN], LIMIT));
    let mut server = server.unwrap();
    let mut rest = server.unread;
    while rest.len() < b"not for rustls".len() {
        server.io.read_buf(&mut rest).await.unwrap();
    }
    assert_eq!(rest, b"not for rustls");
    drop(io);
}

#[tokio::test(start_paused = true)]
async fn the_other_end_may_be_any_tls() {
    let (front, back) = pair();
    let expected = id(BACK);
    let (near, far) = duplex(64 * 1024);
    let (client, server) =
        tokio::join!(connect_driven(near, &front, &[ALPN], &expected, LIMIT), accept(far, &back, &[ALPN], LIMIT));
    assert_eq!((client.unwrap().id.id().as_str(), server.unwrap().1.id().as_str()), (BACK, FRONT));
    let (near, far) = duplex(64 * 1024);
    let (client, server) =
        tokio::join!(connect(near, &front, &[ALPN], &expected, LIMIT), accept_driven(far, &back, &[ALPN], LIMIT));
    assert_eq!((client.unwrap().1.id().as_str(), server.unwrap().id.id().as_str()), (BACK, FRONT));
}

#[tokio::test(start_paused = true)]
async fn another_identity_than_expected_is_refused_and_told() {
    let (front, back) = pair();
    let (client, server) = shake(&front, &back, "spiffe://cluster.local/ns/shop/sa/other").await;
    assert_eq!(client.unwrap_err().label(), "unexpected_identity");
    assert!(matches!(server.unwrap_err(), HandshakeError::Alert(_)));
}

#[tokio::test(start_paused = true)]
async fn a_strangers_certificate_is_refused_by_either_end() {
    let Mesh { ca, clock, back, .. } = mesh();
    let (stranger, _) = pair();
    let (client, server) = shake(&stranger, &back, BACK).await;
    assert!(matches!(client.unwrap_err(), HandshakeError::Peer(_)), "the server's is a stranger's to it");
    assert!(matches!(server.unwrap_err(), HandshakeError::Alert(_)));
    let (near, far) = duplex(64 * 1024);
    let (clock, bundles, expected) = (testing::shared(&clock), ca.bundles(), id(BACK));
    let nobody = async {
        let (tls, _) = crate::connect_anonymous(near, &bundles, &clock, &[ALPN], &expected, LIMIT).await.unwrap();
        let (mut io, mut tls) = tls.into_inner();
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await.unwrap();
        tls.read_tls(&mut answer.as_slice()).unwrap();
        tls.process_new_packets().unwrap_err()
    };
    let (client, server) = tokio::join!(nobody, accept_driven(far, &back, &[ALPN], LIMIT));
    assert!(matches!(server.unwrap_err(), HandshakeError::NoCertificate));
    assert_eq!(client, rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
}

#[tokio::test(start_paused = true)]
async fn another_protocol_or_none_is_refused() {
    let (front, back) = pair();
    let (near, far) = duplex(64 * 1024);
    let expected = id(BACK);
    let (client, server) = tokio::join!(
        connect_driven(near, &front, &[ALPN_H2], &expected, LIMIT),
        accept_driven(far, &back, &[ALPN], LIMIT)
    );
    assert_eq!((client.unwrap_err().label(), server.unwrap_err().label()), ("alpn", "alpn"));
}

#[tokio::test(start_paused = true)]
async fn garbage_silence_and_an_early_end_are_told_apart() {
    let (_, back) = pair();
    for (bytes, label) in
        [(b"GET / HTTP/1.1\r\n\r\n" as &[u8], "tls"), (&[22, 3, 1, 0, 200, 1, 0], "timeout"), (b"", "timeout")]
    {
        let (mut near, far) = duplex(1024);
        near.write_all(bytes).await.unwrap();
        let error = accept_driven(far, &back, &[ALPN], LIMIT).await.unwrap_err();
        assert_eq!(error.label(), label, "{error}");
    }
    let (mut near, far) = duplex(1024);
    near.write_all(&[22, 3]).await.unwrap();
    drop(near);
    assert_eq!(accept_driven(far, &back, &[ALPN], LIMIT).await.unwrap_err().label(), "io");
}
