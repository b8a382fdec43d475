//! `hello`: the first bytes of a connection, any ones or a ClientHello, as they grow byte by byte.
//!
//! Run by `cargo xtask fuzz`. What was said once stays said whatever follows; what is asked for is really missing; a well-formed hello is
//! ours where it offers our ALPN, and only there.

#![no_main]

use countersign_api::names::{ALPN, ALPN_REAUTH};
use countersign_fuzz::{Input, edited};
use countersign_proxy::first_bytes::hello::{MAX_RECORD, Seen, look};
use libfuzzer_sys::fuzz_target;

const EXTENSION_ALPN: u8 = 16;

/// `content` with its length before it.
fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - length_bytes..], content].concat()
}

/// A list of protocol names, and whether one is ours.
fn names(input: &mut Input<'_>) -> (Vec<u8>, bool) {
    let (mut list, mut ours) = (Vec::new(), false);
    for _ in 0..input.byte().unwrap_or(0) % 5 {
        let name = match input.byte().unwrap_or(0) {
            0..=15 => ALPN,
            16..=31 => ALPN_REAUTH,
            length => input.bytes(usize::from(length)),
        };
        ours |= [ALPN, ALPN_REAUTH].contains(&name);
        list.extend(vector(1, name));
    }
    (vector(2, &list), ours)
}

/// A well-formed ClientHello in one record, and whether it offers our ALPN. Of several lists of names the first counts.
fn client_hello(input: &mut Input<'_>) -> (Vec<u8>, bool) {
    let (mut extensions, mut ours) = (Vec::new(), None);
    for _ in 0..input.byte().unwrap_or(0) % 8 {
        let kind = input.byte().unwrap_or(0);
        let kind = if kind < 64 { EXTENSION_ALPN } else { kind };
        let data = if kind == EXTENSION_ALPN {
            let (data, offered) = names(input);
            ours.get_or_insert(offered);
            data
        } else {
            let length = input.byte().map_or(0, usize::from);
            input.bytes(length).to_vec()
        };
        extensions.extend([0, kind]);
        extensions.extend(vector(2, &data));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(vector(1, input.bytes(32)));
    body.extend(vector(2, input.bytes(16)));
    body.extend(vector(1, &[0]));
    body.extend(vector(2, &extensions));
    let message = [&[1][..], &vector(3, &body)].concat();
    ([&[22, 3, 1][..], &vector(2, &message)].concat(), ours.unwrap_or(false))
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let bytes = match input.byte() {
        None => return,
        Some(0..=63) => input.0.to_vec(),
        Some(64..=127) => {
            let (hello, ours) = client_hello(&mut input);
            assert_eq!(look(&hello), Seen::ClientHello { ours });
            [&hello[..], input.0].concat()
        }
        Some(_) => edited(&client_hello(&mut input).0, &["countersign/1"], input),
    };
    let (mut told, mut least) = (None, 0);
    for length in 0..=bytes.len() {
        match look(&bytes[..length]) {
            Seen::More { missing } => {
                assert!(told.is_none(), "{told:?}, and then more is asked for");
                assert!(missing > 0 && length + missing <= MAX_RECORD);
                least = least.max(length + missing);
            }
            seen => {
                assert!(seen == Seen::NotTls || length >= least, "told before what was missing came");
                assert_eq!(*told.get_or_insert(seen), seen, "told otherwise once more came");
            }
        }
    }
});
