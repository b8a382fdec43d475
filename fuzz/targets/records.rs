//! `records`: two ends of one connection after its handshake. The input says what each end says, how the wire delivers it, and what it does to
//! it on the way.
//!
//! Run by `cargo xtask fuzz`. Each end says data in parts of any size, new keys, tickets, its end, and records of any kind and content, as
//! only the authenticated other end can. What was sealed and what was opened are held against each other: what is opened is what was
//! sealed, byte by byte and in order; what is well-formed and untouched is opened, and not before it is whole; what is not is refused; after
//! an error nothing more is opened.

#![no_main]

use std::collections::VecDeque;

use countersign_credentials::{Suite, TrafficSecrets};
use countersign_fuzz::Input;
use countersign_proxy::wire::out::Out;
use countersign_proxy::wire::records::{MOST_PLAIN, MOST_SEALED, Opened, RecordError, Records, Role};
use libfuzzer_sys::fuzz_target;

const HEADER: usize = 5;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const KINDS: [u8; 8] = [DATA, ALERT, HANDSHAKE, DATA, 0, 20, 24, 255];
const USER_CANCELED: u8 = 90;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// As decision 0018 has them: records in a row that carry nothing, and tickets to a client.
const MOST_EMPTY: u8 = 32;
const MOST_TICKETS: u8 = 16;
/// Records that one key seals, as `records` has it for a fuzzer.
const RECORDS_A_KEY: usize = 16;
/// What one input may seal: more tells nothing new and takes time.
const MOST_WORDS: usize = 128 * 1024;

/// What a record must be to who opens it, by how it was made.
#[derive(Debug)]
enum Said {
    Data(Vec<u8>),
    /// Nothing for the application: no data, or that a user cancelled.
    Nothing,
    /// Tickets, then new keys; with the word whether the same is asked for.
    Messages {
        tickets: u8,
        update: Option<bool>,
    },
    Closed,
    /// Why the other end refused what we said.
    Told,
    /// Breaks a rule.
    Bad,
    /// A handshake record of any content: may be refused, and may be taken as new keys where there are none.
    Unclear,
}

struct Sealed {
    bytes: Vec<u8>,
    said: Said,
}

/// One end, with what comes to it.
struct End {
    records: Records,
    /// What the other end sealed, and we have not opened.
    sealed: VecDeque<Sealed>,
    /// Its bytes on the way, with what was done to them.
    wire: Vec<u8>,
    /// Its bytes that came, and are not opened.
    came: Vec<u8>,
    meddled: bool,
    /// Records in a row that carried nothing, and tickets that may still come.
    empty: u8,
    tickets: u8,
    /// New keys of ours were asked for.
    asked: bool,
    /// Records that our key has sealed.
    by_this_key: usize,
    /// Something unclear was taken: nothing is sure any more, but that nothing is opened which was not sealed.
    unsure: bool,
    over: bool,
    /// Bytes of data that we have said.
    spoken: u32,
}

impl End {
    fn new(secrets: &TrafficSecrets, role: Role) -> Self {
        Self {
            records: Records::new(secrets, role).expect("secrets of the suite's length"),
            sealed: VecDeque::new(),
            wire: Vec::new(),
            came: Vec::new(),
            meddled: false,
            empty: 0,
            tickets: if role == Role::Client { MOST_TICKETS } else { 0 },
            asked: false,
            by_this_key: 0,
            unsure: false,
            over: false,
            spoken: 0,
        }
    }

    /// The next words of a text that never repeats itself soon.
    fn words(&mut self, length: usize) -> Vec<u8> {
        let word = |at: u32| at.wrapping_mul(0x9E37_79B1).to_be_bytes()[0];
        let first = self.spoken;
        self.spoken += u32::try_from(length).expect("bounded");
        (first..self.spoken).map(word).collect()
    }

    /// Puts records on the wire to this end, which are to say this.
    fn is_sent(&mut self, out: &mut Out, said: impl IntoIterator<Item = Said>) {
        let mut bytes = out.waiting();
        for said in said {
            let length = HEADER + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
            let (record, rest) = bytes.split_at(length);
            self.sealed.push_back(Sealed { bytes: record.to_vec(), said });
            bytes = rest;
        }
        assert!(bytes.is_empty(), "more was sealed than was said");
        self.wire.extend_from_slice(out.waiting());
        out.gone(out.waiting().len());
    }

    /// So many bytes arrive, and all of them are opened that can be. Gives what is wrong with them, the first time.
    fn hears(&mut self, length: usize) -> Option<RecordError> {
        self.came.extend(self.wire.drain(..length.min(self.wire.len())));
        let mut at = 0;
        let fault = loop {
            let pending = &self.came[at..];
            let mut room = vec![0xAA; pending.len().min(MOST_SEALED)];
            let opened = self.records.open(pending, &mut room);
            let next = self.sealed.front();
            if self.over {
                assert!(opened.is_err(), "{opened:?} after an error");
                return None;
            }
            match opened {
                Ok(None) => {
                    assert!(!next.is_some_and(|next| pending.starts_with(&next.bytes)), "a whole record is waited for");
                    break None;
                }
                Ok(Some((taken, opened))) => {
                    let next = self.sealed.pop_front().expect("opened what nobody sealed");
                    assert!(pending[..taken] == next.bytes, "opened what was not sealed so");
                    at += taken;
                    self.took(next.said, opened, &room);
                }
                Err(error) => {
                    let touched =
                        next.is_none_or(|next| !next.bytes.starts_with(pending) && !pending.starts_with(&next.bytes));
                    assert!(
                        self.unsure
                            || (touched && self.meddled)
                            || next.is_some_and(|next| self.may_refuse(&next.said, error)),
                        "{error:?}, though it was to be {:?}",
                        next.map(|next| &next.said)
                    );
                    break Some(error);
                }
            }
        };
        self.came.drain(..at);
        self.over = fault.is_some();
        if self.over {
            // Not even what is whole and in its place.
            let next = self.sealed.iter().skip(1).flat_map(|next| &next.bytes).copied().collect::<Vec<_>>();
            assert_eq!(self.records.open(&next, &mut vec![0; MOST_SEALED]), Err(RecordError::Cipher));
        }
        fault
    }

    fn may_refuse(&self, said: &Said, error: RecordError) -> bool {
        match said {
            Said::Data(_) | Said::Closed => false,
            Said::Nothing => self.empty == MOST_EMPTY && error == RecordError::Empty,
            Said::Messages { tickets, update } => match error {
                RecordError::Unexpected => *tickets > self.tickets,
                RecordError::Empty => update.is_some() && self.empty == MOST_EMPTY,
                _ => false,
            },
            Said::Told => matches!(error, RecordError::Alert(_)),
            Said::Bad | Said::Unclear => true,
        }
    }

    /// A record was opened as this.
    fn took(&mut self, said: Said, opened: Opened, room: &[u8]) {
        match (said, opened) {
            (Said::Data(words), Opened::Data(length)) => {
                assert!(room[..length] == words, "other data than was sealed");
                self.empty = 0;
            }
            (Said::Nothing, Opened::Nothing) => {
                assert!(self.unsure || self.empty < MOST_EMPTY, "nothing, again and again");
                self.empty = self.empty.saturating_add(1);
            }
            (Said::Messages { tickets, update }, Opened::Nothing) => {
                assert!(self.unsure || tickets <= self.tickets, "tickets without end");
                self.tickets = self.tickets.saturating_sub(tickets);
                if let Some(asks) = update {
                    assert!(self.unsure || self.empty < MOST_EMPTY, "new keys, again and again");
                    self.empty = self.empty.saturating_add(1);
                    self.asked |= asks;
                }
            }
            (Said::Closed, Opened::Closed) => {}
            (Said::Unclear, Opened::Nothing) => self.unsure = true,
            (said, opened) => panic!("{said:?} was opened as {opened:?}"),
        }
    }
}

/// What `from` says to `to`: as its own code would say it.
fn says(from: &mut End, to: &mut End, parts: &[usize]) {
    let parts: Vec<Vec<u8>> = parts.iter().map(|length| from.words(*length)).collect();
    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let mut out = Out::default();
    from.records.seal(&slices, &mut out).expect("it seals");
    let words = parts.concat();
    let data = words.chunks(MOST_PLAIN).map(|words| Said::Data(words.to_vec()));
    // New keys come first, where they were asked for, or where one key has sealed enough.
    let first = out.waiting().len() - words.len() - words.len().div_ceil(MOST_PLAIN) * (MOST_SEALED - MOST_PLAIN);
    let due = from.asked || from.by_this_key >= RECORDS_A_KEY;
    assert!(first > 0 || !due, "new keys are due, and did not come");
    assert!(first == 0 || due || from.unsure, "new keys, and nobody asked");
    from.asked = false;
    from.by_this_key = if due || first > 0 { 0 } else { from.by_this_key } + data.len();
    let update = (first > 0).then_some(Said::Messages { tickets: 0, update: Some(false) });
    to.is_sent(&mut out, update.into_iter().chain(data));
}

/// A record that says this: its content, its type, and zeros behind.
fn sends(from: &mut End, to: &mut End, kind: u8, content: &[u8], padding: usize, said: Option<Said>) {
    let mut inner = [content, &[kind]].concat();
    inner.resize(inner.len() + padding, 0);
    let said = if inner.len() > MOST_PLAIN + 1 { Said::Bad } else { said.unwrap_or_else(|| meaning(&inner)) };
    let Some((last, before)) = inner.split_last() else { return };
    let mut out = Out::default();
    from.records.seal_any(*last, before, &mut out).expect("it seals");
    from.by_this_key += 1;
    to.is_sent(&mut out, [said]);
}

/// What the inside of a record says (RFC 8446 sections 5.2 and 5.4).
fn meaning(inner: &[u8]) -> Said {
    let Some(end) = inner.iter().rposition(|byte| *byte != 0) else { return Said::Bad };
    match (inner[end], &inner[..end]) {
        (DATA, []) | (ALERT, [_, USER_CANCELED]) => Said::Nothing,
        (DATA, words) => Said::Data(words.to_vec()),
        (ALERT, [_, 0]) => Said::Closed,
        (HANDSHAKE, [_, ..]) => Said::Unclear,
        _ => Said::Bad,
    }
}

/// Messages of the handshake in one record: tickets, new keys, any bytes.
fn sends_messages(from: &mut End, to: &mut End, input: &mut Input<'_>) {
    let mut content = Vec::new();
    let mut said = Some(Said::Messages { tickets: 0, update: None });
    for _ in 0..=input.byte().unwrap_or(0) % 4 {
        match input.byte().unwrap_or(0) {
            kind @ 0..=95 => {
                let ticket = input.bytes(usize::from(kind % 16));
                content.extend([NEW_SESSION_TICKET, 0, 0, kind % 16]);
                content.extend(ticket);
                content.resize(content.len() + usize::from(kind % 16) - ticket.len(), 0);
                said = match said {
                    Some(Said::Messages { tickets, update: None }) => {
                        Some(Said::Messages { tickets: tickets + 1, update: None })
                    }
                    // New keys end their record.
                    Some(_) => Some(Said::Bad),
                    None => None,
                };
            }
            asks @ 96..=223 => {
                let asks = if asks < 216 { asks % 2 } else { asks };
                content.extend([KEY_UPDATE, 0, 0, 1, asks]);
                said = match said {
                    Some(Said::Messages { tickets, update: None }) if asks < 2 => {
                        Some(Said::Messages { tickets, update: Some(asks == 1) })
                    }
                    Some(_) => Some(Said::Bad),
                    None => None,
                };
            }
            length => {
                content.extend(input.bytes(usize::from(length - 223)));
                said = None;
            }
        }
    }
    let renews = match &said {
        Some(said) => matches!(said, Said::Messages { update: Some(_), .. }),
        None => [0, 1].iter().any(|asks| content.ends_with(&[KEY_UPDATE, 0, 0, 1, *asks])),
    };
    let padding = usize::from(input.byte().unwrap_or(0) / 128);
    sends(from, to, HANDSHAKE, &content, padding, said);
    if renews {
        from.records.renew_untold().expect("new keys");
        from.by_this_key = 0;
    }
}

/// What happens to bytes on the way.
fn meddle(to: &mut End, other: Option<Vec<u8>>, input: &mut Input<'_>) {
    let (how, at) = (input.byte().unwrap_or(0), input.number().unwrap_or(0));
    let at = at % (to.wire.len() + 1);
    let end = (at + usize::from(how / 4)).min(to.wire.len());
    let before = to.wire.clone();
    match how % 4 {
        0 => {
            if let Some(byte) = to.wire.get_mut(at) {
                *byte ^= input.byte().unwrap_or(1);
            }
        }
        1 => drop(to.wire.drain(at..end)),
        2 => drop(to.wire.splice(at..at, input.bytes(usize::from(how / 4)).iter().copied())),
        // A record once more, or one that was for the other.
        _ => drop(to.wire.splice(at..at, other.into_iter().flatten())),
    }
    to.meddled |= to.wire != before;
}

fn delivered(ends: &mut [End; 2], who: usize, length: usize) {
    let [client, server] = ends;
    let (end, other) = if who == 0 { (client, server) } else { (server, client) };
    if let Some(error) = end.hears(length) {
        let mut out = Out::default();
        end.records.seal_alert(error, &mut out);
        assert_eq!(out.is_empty(), matches!(error, RecordError::Alert(_)));
        let told = (!out.is_empty()).then_some(Said::Told);
        end.by_this_key += usize::from(told.is_some());
        other.is_sent(&mut out, told);
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let suites = [Suite::Aes128GcmSha256, Suite::Aes256GcmSha384, Suite::ChaCha20Poly1305Sha256];
    let suite = suites[usize::from(input.byte().unwrap_or(0) % 3)];
    let length = if suite == Suite::Aes256GcmSha384 { 48 } else { 32 };
    let secrets = TrafficSecrets { suite, client: vec![1; length].into(), server: vec![2; length].into() };
    let mut ends = [End::new(&secrets, Role::Client), End::new(&secrets, Role::Server)];
    let mut left = MOST_WORDS;
    while let Some(step) = input.byte() {
        let who = usize::from(step % 2);
        let [client, server] = &mut ends;
        let (from, to) = if who == 0 { (client, server) } else { (server, client) };
        match step / 2 % 16 {
            0..=3 => {
                let mut parts = Vec::new();
                for _ in 0..input.byte().unwrap_or(0) % 5 {
                    let length = (input.number().unwrap_or(0) % 40_000).min(left);
                    left -= length;
                    parts.push(length);
                }
                says(from, to, &parts);
            }
            4 => {
                let (kind, length) = (input.byte().unwrap_or(0), input.byte().unwrap_or(0));
                let kind = KINDS.get(usize::from(kind)).copied().unwrap_or(kind);
                let content = input.bytes(usize::from(length)).to_vec();
                sends(from, to, kind, &content, 0, None);
            }
            5 => {
                let length = (input.number().unwrap_or(0) % (MOST_PLAIN + 4)).min(left);
                let padding = (input.number().unwrap_or(0) % (MOST_PLAIN + 4)).min(left - length);
                left -= length + padding;
                let words = from.words(length);
                sends(from, to, DATA, &words, padding, None);
            }
            6 => sends_messages(from, to, &mut input),
            7 => {
                let (mut out, asks) = (Out::default(), input.byte().unwrap_or(0) % 2 == 1);
                from.records.renew_keys(asks, &mut out).expect("new keys");
                from.by_this_key = 0;
                to.is_sent(&mut out, [Said::Messages { tickets: 0, update: Some(asks) }]);
            }
            8 => {
                let mut out = Out::default();
                from.records.seal_end(&mut out).expect("it seals");
                from.by_this_key += 1;
                to.is_sent(&mut out, [Said::Closed]);
            }
            9 => {
                let sealed = if input.byte().unwrap_or(0) % 2 == 0 { &to.sealed } else { &from.sealed };
                let other = sealed.back().map(|sealed| sealed.bytes.clone());
                meddle(to, other, &mut input);
            }
            10..=12 => {
                let length = input.number().unwrap_or(0);
                delivered(&mut ends, who, length);
            }
            _ => delivered(&mut ends, who, usize::MAX),
        }
    }
    // Twice, as an end may still be told what it did wrong.
    for who in [0, 1, 0, 1] {
        delivered(&mut ends, who, usize::MAX);
    }
    for end in &ends {
        assert!(end.wire.is_empty());
        assert!(end.over || end.meddled || (end.sealed.is_empty() && end.came.is_empty()), "not all arrived");
    }
});
