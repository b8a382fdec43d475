//! `frames`: any bytes, and frames, as those of a peer, in one piece and in slices, for a sink that takes all or a part.
//!
//! Run by `cargo xtask fuzz`. However they are cut, the bytes say the same and end in the same error; what they say can be written and
//! read again; no more data is handed on than came, nor an empty piece, nor more of a frame than it may have; so many empty frames and no more.

#![no_main]

use countersign_fuzz::Input;
use countersign_proxy::wire::frame::{
    CLOSING, Event, FIN, MAX_DATA, OPEN, Parser, ProtocolError, RST, Status, Took, data_header, status,
};
use libfuzzer_sys::fuzz_target;

/// As decision 0001 has it: empty `DATA` frames in a row.
const MOST_EMPTY: usize = 32;

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Open,
    Data(Vec<u8>),
    Fin,
    Rst,
    Status(Status),
    Closing,
}

/// Notes an event; data that follows on data is one.
fn note(said: &mut Vec<Said>, event: &Event<'_>) {
    let one = match event {
        Event::Data(data) => {
            assert!(!data.is_empty() && data.len() <= MAX_DATA);
            if let Some(Said::Data(before)) = said.last_mut() {
                return before.extend_from_slice(data);
            }
            Said::Data(data.to_vec())
        }
        Event::Open => Said::Open,
        Event::Fin => Said::Fin,
        Event::Rst => Said::Rst,
        Event::Status(status) => Said::Status(*status),
        Event::Closing => Said::Closing,
    };
    said.push(one);
}

/// What all of it says, how it ends, and, where that is well, whether it is between two frames.
fn whole(bytes: &[u8]) -> (Vec<Said>, Option<ProtocolError>, bool) {
    let (mut parser, mut said) = (Parser::default(), Vec::new());
    let used = parser.parse(bytes, |event| {
        note(&mut said, &event);
        Ok(Took::All)
    });
    assert!(used.is_err() || used == Ok(bytes.len()));
    (said, used.err(), used.is_ok() && parser.is_between_frames())
}

/// The same in slices, and by a sink that now and then takes only a part, or stops.
fn sliced(bytes: &[u8], mut cuts: Input<'_>) -> (Vec<Said>, Option<ProtocolError>, bool) {
    let (mut parser, mut said, mut at) = (Parser::default(), Vec::new(), 0);
    while at < bytes.len() {
        let length = cuts.byte().map_or(bytes.len(), |cut| usize::from(cut) + 1);
        let slice = &bytes[at..bytes.len().min(at + length)];
        let mut moods = Input(cuts.bytes(2));
        let parsed = parser.parse(slice, |event| {
            let took = match moods.byte() {
                Some(mood @ 128..) => match &event {
                    Event::Data(data) => Took::Some(usize::from(mood - 127).min(data.len())),
                    _ => Took::Stop,
                },
                Some(1..32) => Took::Stop,
                _ => Took::All,
            };
            match (&event, took) {
                (Event::Data(data), Took::Some(part)) => note(&mut said, &Event::Data(&data[..part])),
                _ => note(&mut said, &event),
            }
            Ok(took)
        });
        match parsed {
            Ok(used) => {
                assert!((1..=slice.len()).contains(&used));
                at += used;
            }
            Err(error) => return (said, Some(error), false),
        }
    }
    (said, None, parser.is_between_frames())
}

/// Frames as the input names them, with any bytes in between.
fn made(mut input: Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < 3 * MAX_DATA
        && let Some(step) = input.byte()
    {
        let many = usize::from(step / 8) + 4;
        match step % 8 {
            0 => {
                let extensions = input.bytes(many);
                bytes.extend([OPEN[0], 0, 0, u8::try_from(extensions.len()).unwrap_or(0)]);
                bytes.extend(extensions);
            }
            1 => {
                // Mostly short, now and then as long as can be.
                let length = match usize::from(input.byte().unwrap_or(0)) {
                    short @ 0..248 => short + 1,
                    long => MAX_DATA - (255 - long),
                };
                bytes.extend(data_header(length));
                bytes.resize(bytes.len() + length, step);
            }
            2 => (0..many).for_each(|_| bytes.extend(data_header(0))),
            3 => bytes.extend(FIN),
            4 => bytes.extend(RST),
            5 => bytes.extend(status(if many % 2 == 0 { Status::Denied(7) } else { Status::Draining })),
            6 => bytes.extend(CLOSING),
            _ => bytes.extend(input.bytes(many)),
        }
    }
    bytes
}

/// Most frames in a row that carry no data, `DATA` only: of whole frames, the last may be cut.
fn empty_in_a_row(mut bytes: &[u8]) -> usize {
    const DATA: u8 = 2;
    let (mut now, mut most) = (0, 0);
    while let Some(([kind, length @ ..], rest)) = bytes.split_first_chunk::<4>() {
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if *kind == DATA {
            now = if length == 0 { now + 1 } else { 0 };
            most = most.max(now);
        }
        bytes = rest.get(length..).unwrap_or_default();
    }
    most
}

fn written(said: &[Said]) -> Vec<u8> {
    let frames = said.iter().map(|one| match one {
        Said::Open => OPEN.to_vec(),
        Said::Data(data) => {
            data.chunks(MAX_DATA).flat_map(|data| [&data_header(data.len())[..], data].concat()).collect()
        }
        Said::Fin => FIN.to_vec(),
        Said::Rst => RST.to_vec(),
        Said::Status(said) => status(*said),
        Said::Closing => CLOSING.to_vec(),
    });
    frames.collect::<Vec<_>>().concat()
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let cuts = input.byte().map_or(0, usize::from);
    let cuts = Input(input.bytes(cuts));
    let bytes = if input.byte().is_some_and(|how| how % 2 == 0) { made(input) } else { input.0.to_vec() };
    let bytes = &bytes[..];
    let (said, error, between) = whole(bytes);
    let data: usize = said.iter().map(|one| if let Said::Data(data) = one { data.len() } else { 0 }).sum();
    assert!(data <= bytes.len());
    match error {
        None => assert!(empty_in_a_row(bytes) <= MOST_EMPTY, "empty frames without end"),
        Some(ProtocolError::TooManyEmpty) => assert!(empty_in_a_row(bytes) > MOST_EMPTY, "so many are allowed"),
        Some(_) => {}
    }
    assert_eq!(sliced(bytes, cuts), (said, error, between));
    let (said, ..) = whole(bytes);
    let again = written(&said);
    assert_eq!(whole(&again), (said, None, true));
});
