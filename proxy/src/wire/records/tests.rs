//! Against the RFC's own bytes, against rustls as the other end, and against whoever sends what it likes.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use countersign_api::names::ALPN;
use countersign_credentials::{accept, accept_driven, connect, connect_driven};
use proptest::prelude::*;
use rustls::{ConnectionCommon, SideData};

use super::*;
use crate::testing::TestCa;

const SUITES: [Suite; 3] = [Suite::Aes128GcmSha256, Suite::Aes256GcmSha384, Suite::ChaCha20Poly1305Sha256];
const LIMIT: Duration = Duration::from_secs(10);

fn secrets(suite: Suite) -> TrafficSecrets {
    let length = if suite == Suite::Aes256GcmSha384 { 48 } else { 32 };
    TrafficSecrets { suite, client: Zeroizing::new(vec![1; length]), server: Zeroizing::new(vec![2; length]) }
}

fn ends(suite: Suite) -> (Records, Records) {
    let secrets = secrets(suite);
    (Records::new(&secrets, Role::Client).unwrap(), Records::new(&secrets, Role::Server).unwrap())
}

fn sealed(records: &mut Records, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Out::default();
    records.seal(parts, &mut out).unwrap();
    out.waiting().to_vec()
}

/// A record of any kind and content, as only the other end can make it.
fn record(records: &mut Records, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Out::default();
    records.seal_any(kind, content, &mut out).unwrap();
    out.waiting().to_vec()
}

/// All plaintext of whole records, how many bytes they were, and the first error.
fn opened(records: &mut Records, sealed: &[u8]) -> (Vec<u8>, usize, Option<RecordError>) {
    let (mut plain, mut at, mut room) = (Vec::new(), 0, vec![0; MOST_SEALED]);
    loop {
        match records.open(&sealed[at..], &mut room) {
            Ok(None) => return (plain, at, None),
            Ok(Some((taken, opened))) => {
                at += taken;
                if let Opened::Data(length) = opened {
                    plain.extend_from_slice(&room[..length]);
                }
            }
            Err(error) => return (plain, at, Some(error)),
        }
    }
}

fn fault(records: &mut Records, sealed: &[u8]) -> RecordError {
    opened(records, sealed).2.unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let hex: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// RFC 8448 section 3: the client's application data.
#[test]
fn the_rfcs_record_is_sealed_byte_by_byte() {
    let secrets = TrafficSecrets {
        suite: Suite::Aes128GcmSha256,
        client: Zeroizing::new(bytes("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")),
        server: Zeroizing::new(bytes("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")),
    };
    let plain: Vec<u8> = (0..50).collect();
    let expected = bytes(
        "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2\
         977014bd1e3deae63aeebb21694915e4",
    );
    let mut client = Records::new(&secrets, Role::Client).unwrap();
    assert_eq!(sealed(&mut client, &[&plain]), expected);
    let mut server = Records::new(&secrets, Role::Server).unwrap();
    assert_eq!(opened(&mut server, &expected), (plain, expected.len(), None));
}

#[test]
fn what_one_end_seals_the_other_opens_in_every_suite() {
    for suite in SUITES {
        let (mut client, mut server) = ends(suite);
        for length in [1, 2, MOST_PLAIN - 1, MOST_PLAIN, MOST_PLAIN + 1, 3 * MOST_PLAIN + 7] {
            let plain = vec![7; length];
            let there = sealed(&mut client, &[&plain]);
            assert_eq!(there.len(), length + length.div_ceil(MOST_PLAIN) * OVERHEAD);
            assert_eq!(opened(&mut server, &there).0, plain, "{suite:?} {length}");
            let back = sealed(&mut server, &[&plain]);
            assert_eq!(opened(&mut client, &back).0, plain, "{suite:?} {length}");
        }
    }
}

#[test]
fn parts_leave_as_one_and_in_order() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    let long = vec![3; MOST_PLAIN + 5];
    let parts: [&[u8]; 5] = [b"", b"ab", b"", &long, b"c"];
    let there = sealed(&mut client, &parts);
    assert_eq!(there.len(), parts.concat().len() + 2 * OVERHEAD);
    assert_eq!(opened(&mut server, &there).0, parts.concat());
    assert_eq!(sealed(&mut client, &[b"", b""]), b"", "nothing is no record");
}

#[test]
fn a_record_in_another_place_or_of_another_connection_does_not_decrypt() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    let (first, second) = (sealed(&mut client, &[b"first"]), sealed(&mut client, &[b"second"]));
    assert_eq!(fault(&mut server, &second), RecordError::Decrypt, "one was left out");
    let (_, mut server) = ends(Suite::Aes128GcmSha256);
    assert_eq!(fault(&mut server, &[first.clone(), first.clone()].concat()), RecordError::Decrypt, "one came twice");
    let (mut client, _) = ends(Suite::Aes128GcmSha256);
    assert_eq!(fault(&mut client, &first), RecordError::Decrypt, "sent back to who sealed it");
    let (_, mut server) = ends(Suite::Aes256GcmSha384);
    assert_eq!(fault(&mut server, &first), RecordError::Decrypt);
}

#[test]
fn what_is_no_protected_record_is_refused_by_its_first_byte() {
    for kind in [0, 20, 21, 22, 24, b'G'] {
        for came in [&[kind][..], &[kind, 3, 3, 0, 40]] {
            let (_, mut server) = ends(Suite::Aes128GcmSha256);
            assert_eq!(fault(&mut server, came), RecordError::Unprotected(kind));
        }
    }
}

#[test]
fn lengths_that_no_record_has_are_refused_before_its_bytes_come() {
    let (_, mut server) = ends(Suite::Aes128GcmSha256);
    let [high, low] = u16::try_from(MOST_SEALED - HEADER + 1).unwrap().to_be_bytes();
    assert_eq!(fault(&mut server, &[DATA, 3, 3, high, low]), RecordError::Overflow);
    let (_, mut server) = ends(Suite::Aes128GcmSha256);
    assert_eq!(fault(&mut server, &[DATA, 3, 3, 0, 15]), RecordError::Decrypt, "no room for a tag");
}

#[test]
fn more_than_a_record_may_carry_is_refused() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    let most = record(&mut client, DATA, &[5; MOST_PLAIN]);
    assert_eq!(opened(&mut server, &most).0.len(), MOST_PLAIN);
    let more = record(&mut client, DATA, &[5; MOST_PLAIN + 1]);
    assert_eq!(fault(&mut server, &more), RecordError::Overflow);
}

#[test]
fn padding_is_taken_off_and_nothing_but_padding_is_refused() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    // A type behind which zeros stand: sealed as a record of type 0.
    let padded = record(&mut client, 0, &[b'h', b'i', DATA, 0, 0, 0]);
    assert_eq!(opened(&mut server, &padded), (b"hi".to_vec(), padded.len(), None));
    let zeros = record(&mut client, 0, &[0; 40]);
    assert_eq!(fault(&mut server, &zeros), RecordError::Unexpected);
}

#[test]
fn records_that_carry_nothing_are_borne_for_a_while() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    for _ in 0..3 {
        for _ in 0..MOST_EMPTY {
            let empty = record(&mut client, DATA, b"");
            assert_eq!(opened(&mut server, &empty).2, None);
        }
        let something = record(&mut client, DATA, b"x");
        assert_eq!(opened(&mut server, &something).2, None);
    }
    let all: Vec<u8> = (0..=MOST_EMPTY).flat_map(|_| record(&mut client, DATA, b"")).collect();
    assert_eq!(fault(&mut server, &all), RecordError::Empty);
}

#[test]
fn alerts_are_told_apart_from_a_good_end() {
    let alert_of = |message: &[u8]| {
        let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
        let record = record(&mut client, ALERT, message);
        server.open(&record, &mut vec![0; MOST_SEALED])
    };
    assert!(matches!(alert_of(&[1, 0]), Ok(Some((_, Opened::Closed)))));
    assert_eq!(alert_of(&[2, 42]).unwrap_err(), RecordError::Alert(AlertDescription::BadCertificate));
    assert_eq!(alert_of(&[1, 20]).unwrap_err(), RecordError::Alert(AlertDescription::BadRecordMac));
    assert!(matches!(alert_of(&[1, USER_CANCELED]), Ok(Some((_, Opened::Nothing)))));
    for bad in [&[1_u8][..], &[1, 0, 0]] {
        assert_eq!(alert_of(bad).unwrap_err(), RecordError::Form);
    }
    assert_eq!(alert_of(&[]).unwrap_err(), RecordError::Unexpected);
}

#[test]
fn handshake_messages_other_than_new_keys_have_no_place_at_a_server() {
    let answer = |message: &[u8]| {
        let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
        let record = record(&mut client, HANDSHAKE, message);
        opened(&mut server, &record).2
    };
    assert_eq!(answer(&[KEY_UPDATE, 0, 0, 1, 0]), None);
    for bad in [
        &[KEY_UPDATE, 0, 0, 1] as &[u8],
        &[KEY_UPDATE, 0, 0, 0],
        &[KEY_UPDATE, 0, 0, 2, 0],
        &[KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0, 0, 1, 0],
        &[KEY_UPDATE, 0],
    ] {
        assert_eq!(answer(bad), Some(RecordError::Form), "{bad:?}");
    }
    assert_eq!(answer(&[KEY_UPDATE, 0, 0, 1, 2]), Some(RecordError::Illegal));
    // A ticket, a request for a certificate, a hello.
    for kind in [NEW_SESSION_TICKET, 13, 1] {
        assert_eq!(answer(&[kind, 0, 0, 0]), Some(RecordError::Unexpected));
    }
    assert_eq!(answer(&[]), Some(RecordError::Unexpected));
}

#[test]
fn a_server_of_another_make_may_send_tickets_and_not_without_end() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    let ticket = [NEW_SESSION_TICKET, 0, 0, 3, 1, 2, 3];
    let two_and_keys = [&ticket[..], &ticket, &[KEY_UPDATE, 0, 0, 1, 0]].concat();
    let came = record(&mut server, HANDSHAKE, &two_and_keys);
    assert_eq!(opened(&mut client, &came), (Vec::new(), came.len(), None));
    server.renew_untold().unwrap();
    for _ in 2..MOST_TICKETS {
        let came = record(&mut server, HANDSHAKE, &ticket);
        assert_eq!(opened(&mut client, &came).2, None);
    }
    let came = sealed(&mut server, &[b"hello"]);
    assert_eq!(opened(&mut client, &came).0, b"hello");
    let one_more = record(&mut server, HANDSHAKE, &ticket);
    assert_eq!(fault(&mut client, &one_more), RecordError::Unexpected);
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    let cut = record(&mut server, HANDSHAKE, &ticket[..6]);
    assert_eq!(fault(&mut client, &cut), RecordError::Form);
}

#[test]
fn a_key_gives_way_before_it_has_sealed_too_much() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    (client.seals.number, server.opens.number) = (RECORDS_A_KEY - 1, RECORDS_A_KEY - 1);
    let secret = client.seals.secret.clone();
    let last = sealed(&mut client, &[b"by the old"]);
    assert_eq!(opened(&mut server, &last).0, b"by the old");
    assert_eq!(client.seals.secret, secret);
    let next = sealed(&mut client, &[b"by the new"]);
    assert_eq!(opened(&mut server, &next).0, b"by the new");
    assert_ne!(client.seals.secret, secret);
    assert_eq!(client.seals.number, 1);
}

#[test]
fn asked_for_new_keys_again_and_again_we_answer_once_and_then_refuse() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    let mut asking = Out::default();
    for _ in 0..MOST_EMPTY {
        client.renew_keys(true, &mut asking).unwrap();
    }
    assert_eq!(opened(&mut server, asking.waiting()), (Vec::new(), asking.waiting().len(), None));
    let answer = sealed(&mut server, &[b"yes"]);
    assert_eq!(answer.len(), (5 + OVERHEAD) + (3 + OVERHEAD));
    assert_eq!(opened(&mut client, &answer).0, b"yes");
    assert_eq!(sealed(&mut server, &[b"yes"]).len(), 3 + OVERHEAD);
    let mut once_more = Out::default();
    client.renew_keys(true, &mut once_more).unwrap();
    assert_eq!(fault(&mut server, once_more.waiting()), RecordError::Empty);
}

#[test]
fn after_a_fault_nothing_more_is_opened() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    let (mut first, second) = (sealed(&mut client, &[b"first"]), sealed(&mut client, &[b"second"]));
    first[7] ^= 1;
    assert_eq!(fault(&mut server, &first), RecordError::Decrypt);
    assert_eq!(fault(&mut server, &second), RecordError::Cipher, "though it is whole and in its place");
}

#[test]
fn the_peer_is_told_what_it_did_wrong_and_not_told_of_its_own_end() {
    let (mut client, mut server) = ends(Suite::Aes128GcmSha256);
    let mut out = Out::default();
    server.seal_alert(RecordError::Alert(AlertDescription::CertificateRequired), &mut out);
    assert!(out.is_empty());
    server.seal_alert(RecordError::Decrypt, &mut out);
    assert_eq!(fault(&mut client, out.waiting()), RecordError::Alert(AlertDescription::BadRecordMac));
}

#[test]
fn secrets_are_not_shown() {
    let secrets = secrets(Suite::Aes128GcmSha256);
    assert_eq!(format!("{secrets:?}"), "TrafficSecrets { suite: Aes128GcmSha256, .. }");
    assert_eq!(format!("{:?}", ends(Suite::Aes128GcmSha256).0), "Records");
}

/// rustls as the other end: bytes are moved by hand.
struct Theirs<S: SideData>(Box<dyn std::ops::DerefMut<Target = ConnectionCommon<S>>>);

impl<S: SideData> Theirs<S> {
    fn says(&mut self, words: &[u8]) -> Vec<u8> {
        self.0.writer().write_all(words).unwrap();
        self.flush()
    }

    fn flush(&mut self) -> Vec<u8> {
        let mut sealed = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut sealed).unwrap();
        }
        sealed
    }

    fn hears(&mut self, mut sealed: &[u8]) -> Vec<u8> {
        let mut words = Vec::new();
        while !sealed.is_empty() {
            self.0.read_tls(&mut sealed).unwrap();
            self.0.process_new_packets().unwrap();
            let _ = self.0.reader().read_to_end(&mut words);
        }
        words
    }

    fn talks_to(&mut self, ours: &mut Records) {
        let long: Vec<u8> = (0..200_003_u32).map(|at| at.to_le_bytes()[1]).collect();
        for round in 0..6 {
            // Their keys, ours at their wish, ours at our own wish: in every order.
            if round % 2 == 1 {
                self.0.refresh_traffic_keys().unwrap();
            }
            let came = self.says(&long[..1000 * round + 1]);
            assert_eq!(opened(ours, &came), (long[..1000 * round + 1].to_vec(), came.len(), None));
            let mut out = Out::default();
            if round > 3 {
                ours.renew_keys(round == 4, &mut out).unwrap();
            }
            ours.seal(&[b"so ", &long], &mut out).unwrap();
            assert_eq!(self.hears(out.waiting()), [b"so ", &*long].concat());
        }
        let mut out = Out::default();
        ours.seal_end(&mut out).unwrap();
        self.0.read_tls(&mut out.waiting()).unwrap();
        assert!(self.0.process_new_packets().unwrap().peer_has_closed());
        self.0.send_close_notify();
        let end = self.flush();
        assert!(matches!(ours.open(&end, &mut vec![0; MOST_SEALED]), Ok(Some((_, Opened::Closed)))));
    }
}

#[tokio::test]
async fn rustls_understands_us_and_we_it_in_both_roles_with_new_keys_in_between() {
    let ca = TestCa::new("cluster.local");
    let (ours, theirs) = (ca.credentials("frontend", LIMIT), ca.credentials("backend", LIMIT));
    let (near, far) = tokio::io::duplex(1 << 16);
    let (ours_done, theirs_done) =
        tokio::join!(connect_driven(near, &ours, &[ALPN], theirs.id(), LIMIT), accept(far, &theirs, &[ALPN], LIMIT));
    let mut records = Records::new(&ours_done.unwrap().secrets, Role::Client).unwrap();
    Theirs(Box::new(theirs_done.unwrap().0.into_inner().1)).talks_to(&mut records);

    let (near, far) = tokio::io::duplex(1 << 16);
    let (theirs_done, ours_done) =
        tokio::join!(connect(near, &theirs, &[ALPN], ours.id(), LIMIT), accept_driven(far, &ours, &[ALPN], LIMIT));
    let mut records = Records::new(&ours_done.unwrap().secrets, Role::Server).unwrap();
    Theirs(Box::new(theirs_done.unwrap().0.into_inner().1)).talks_to(&mut records);
}

fn any_suite() -> impl Strategy<Value = Suite> {
    proptest::sample::select(SUITES.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_or_wait_for_more(suite in any_suite(), mut bytes in proptest::collection::vec(any::<u8>(), 0..600), lead in 0_usize..6) {
        // As far as it can be, a record.
        for (byte, header) in bytes.iter_mut().zip([DATA, 3, 3, 0, 60]).take(lead) {
            *byte = header;
        }
        let (_, mut server) = ends(suite);
        let (plain, taken, _) = opened(&mut server, &bytes);
        prop_assert!(plain.is_empty() && taken == 0);
    }

    #[test]
    fn parts_of_any_size_arrive_whole(suite in any_suite(), lengths in proptest::collection::vec(0_usize..40_000, 0..5)) {
        let (mut client, mut server) = ends(suite);
        let parts: Vec<Vec<u8>> = lengths.iter().map(|length| (0..*length).map(|at| at.to_le_bytes()[0]).collect()).collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let there = sealed(&mut client, &parts);
        let (plain, taken, fault) = opened(&mut server, &there);
        prop_assert!(plain == parts.concat() && taken == there.len() && fault.is_none());
    }

    #[test]
    fn a_stream_that_was_meddled_with_gives_what_stood_before_and_then_an_error(
        suite in any_suite(),
        lengths in proptest::collection::vec(1_usize..2_000, 1..6),
        at in any::<proptest::sample::Index>(),
        flip in 1_u8..=255,
    ) {
        let (mut client, mut server) = ends(suite);
        let (mut there, mut ends_at, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for (number, length) in lengths.iter().enumerate() {
            let words = vec![u8::try_from(number).unwrap(); *length];
            there.extend(sealed(&mut client, &[&words]));
            ends_at.push((there.len(), all.len()));
            all.extend(words);
        }
        let at = at.index(there.len());
        there[at] ^= flip;
        let (plain, _, fault) = opened(&mut server, &there);
        let before = ends_at.iter().find(|(end, _)| at < *end).unwrap().1;
        prop_assert_eq!(plain, &all[..before]);
        // A length made longer waits for bytes that never come: the end of the connection without `close_notify`.
        prop_assert!(fault.is_some() || (3..5).any(|byte| at == byte || ends_at.iter().any(|(end, _)| at == end + byte)));
    }
}
