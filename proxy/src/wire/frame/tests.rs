#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Open,
    Data(Vec<u8>),
    Fin,
    Rst,
    Status(Status),
    Closing,
}

fn own(event: &Event<'_>) -> Said {
    match event {
        Event::Open => Said::Open,
        Event::Data(d) => Said::Data(d.to_vec()),
        Event::Fin => Said::Fin,
        Event::Rst => Said::Rst,
        Event::Status(s) => Said::Status(*s),
        Event::Closing => Said::Closing,
    }
}

fn push(into: &mut Vec<Said>, said: Said) {
    if let (Some(Said::Data(last)), Said::Data(more)) = (into.last_mut(), &said) {
        last.extend_from_slice(more);
        return;
    }
    into.push(said);
}

fn encode(said: &Said) -> Vec<u8> {
    match said {
        Said::Open => OPEN.to_vec(),
        Said::Data(d) => [data_header(d.len()).as_slice(), d].concat(),
        Said::Fin => FIN.to_vec(),
        Said::Rst => RST.to_vec(),
        Said::Status(s) => status(*s),
        Said::Closing => CLOSING.to_vec(),
    }
}

fn parse_all(bytes: &[u8]) -> Result<Vec<Said>, ProtocolError> {
    let mut seen = Vec::new();
    let used = Parser::default().parse(bytes, |e| {
        push(&mut seen, own(&e));
        Ok(Took::All)
    })?;
    assert_eq!(used, bytes.len());
    Ok(seen)
}

#[test]
fn unknown_kinds_and_flags_are_refused() {
    for kind in [0u8, 7, 0x80 | KIND_DATA, 0x40 | KIND_FIN, 0xff] {
        assert_eq!(parse_all(&[kind, 0, 0, 0]), Err(ProtocolError::UnknownKind(kind)));
    }
}

#[test]
fn lengths_are_bounded_before_a_byte_is_held() {
    assert!(matches!(parse_all(&[KIND_DATA, 1, 0, 1]), Err(ProtocolError::BadLength { .. })));
    assert!(parse_all(&[KIND_DATA, 1, 0, 0]).is_ok());
    assert!(matches!(parse_all(&[KIND_OPEN, 0, 4, 1]), Err(ProtocolError::BadLength { .. })));
    assert!(matches!(parse_all(&[KIND_STATUS, 0, 0, 65]), Err(ProtocolError::BadLength { .. })));
    assert!(matches!(parse_all(&[KIND_STATUS, 0, 0, 0]), Err(ProtocolError::BadLength { .. })));
    assert!(matches!(parse_all(&[KIND_FIN, 0, 0, 1]), Err(ProtocolError::BadLength { .. })));
}

#[test]
fn an_unknown_critical_extension_is_refused_and_others_are_passed_over() {
    assert_eq!(parse_all(&[KIND_OPEN, 0, 0, 4, 0x80, 7, 0, 0]), Err(ProtocolError::CriticalExtension(7)));
    assert_eq!(parse_all(&[KIND_OPEN, 0, 0, 6, 0, 7, 0, 2, 1, 2]), Ok(vec![Said::Open]));
    assert_eq!(parse_all(&[KIND_OPEN, 0, 0, 5, 0, 7, 0, 2, 1]), Err(ProtocolError::BadExtensions));
    assert_eq!(parse_all(&[KIND_OPEN, 0, 0, 2, 0, 7]), Err(ProtocolError::BadExtensions));
}

#[test]
fn a_malformed_status_is_refused() {
    for payload in [&[9u8][..], &[0, 0], &[1, 1, 2, 3], &[2, 0]] {
        let frame = [&[KIND_STATUS, 0, 0, payload.len() as u8], payload].concat();
        assert_eq!(parse_all(&frame), Err(ProtocolError::BadStatus));
    }
}

#[test]
fn empty_data_frames_without_end_are_refused() {
    let flood: Vec<u8> = std::iter::repeat_n([KIND_DATA, 0, 0, 0], 33).flatten().collect();
    assert_eq!(parse_all(&flood), Err(ProtocolError::TooManyEmpty));
}

#[test]
fn parsing_stops_where_the_sink_says_so() {
    let bytes = [&FIN[..], &OPEN].concat();
    let mut parser = Parser::default();
    let used = parser.parse(&bytes, |_| Ok(Took::Stop)).unwrap();
    assert_eq!(used, FIN.len());
    assert!(parser.is_between_frames());
}

#[test]
fn data_not_taken_is_given_again() {
    let bytes = encode(&Said::Data(b"hello".to_vec()));
    let mut parser = Parser::default();
    let used = parser.parse(&bytes, |_| Ok(Took::Some(2))).unwrap();
    assert_eq!(used, HEADER + 2);
    let mut rest = Vec::new();
    parser
        .parse(&bytes[used..], |e| {
            if let Event::Data(d) = e {
                rest.extend_from_slice(d);
            }
            Ok(Took::All)
        })
        .unwrap();
    assert_eq!(rest, b"llo");
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        Just(Said::Open),
        proptest::collection::vec(any::<u8>(), 1..300).prop_map(Said::Data),
        Just(Said::Fin),
        Just(Said::Rst),
        Just(Said::Closing),
        any::<u64>().prop_map(|id| Said::Status(Status::Denied(id))),
        Just(Said::Status(Status::Accepted)),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_however_it_is_cut(
        frames in proptest::collection::vec(said(), 0..12), cuts in proptest::collection::vec(1usize..40, 1..60)
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(encode).collect();
        let mut expected = Vec::new();
        for f in &frames { push(&mut expected, f.clone()); }
        let (mut parser, mut seen, mut at, mut cut) = (Parser::default(), Vec::new(), 0, cuts.iter().cycle());
        while at < bytes.len() {
            let end = (at + cut.next().unwrap()).min(bytes.len());
            let used = parser.parse(&bytes[at..end], |e| { push(&mut seen, own(&e)); Ok(Took::All) }).unwrap();
            prop_assert_eq!(used, end - at);
            at = end;
        }
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Parser::default().parse(&bytes, |_| Ok(Took::All));
    }
}
