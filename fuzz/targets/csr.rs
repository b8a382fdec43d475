//! `csr`: any bytes as a certificate signing request, and good requests with something done to them.
//!
//! Run by `cargo xtask fuzz`. No bytes make the CA fail; a request that passes proves the key that it was made with, whatever was done to
//! it; what is said of a bad one is short.

#![no_main]

use std::sync::LazyLock;

use countersign_ca::csr::{MAX_CSR, verify};
use countersign_fuzz::{Input, edited};
use libfuzzer_sys::fuzz_target;

/// Made once by `openssl req -new -subj /CN=x`, with keys that were thrown away: ECDSA P-256, P-384, Ed25519.
const GOOD: [&str; 3] = [
    "3081c6306e020100300c310a300806035504030c01783059301306072a8648ce3d020106082a8648ce3d03010703420004799ddafe4540ea\
     f54eab050c8bdce990772850dd43a2c74f7932a926944b565db119fa82be8442cfb3b2e21f3dc7c3e2df85c20bd3d8660bb7d6e4613bb354\
     64a000300a06082a8648ce3d0403020348003045022100ad1474bfe8b701b33512356cc4541537e9799f9c9b9ef3f566e329762a516cc402\
     206d0333773cdb042068d880d9a720e342fa43c10ba831e625353b8ea83a4e924a",
    "3082010430818b020100300c310a300806035504030c01783076301006072a8648ce3d020106052b81040022036200040504f6012f7398d1\
     02a5943d30617efc24a1bc4b1d2d99e9cacce58cba843022fece3e29d7bb3a2b250f8603a8379d50d14855b71b84d685654a7af45f544f70\
     7d9706ebcdc866d1975346c913baef44b9a2bd3a4c9d16d32f063cf8bb3251a6a000300a06082a8648ce3d0403020368003065023025757e\
     aa2d72bcfcfe449bf10546a356f250bb1fcdff5ab3067accd3170924b7834b2f5e8c19d530e3c15f3af9ac80e0023100d2eb75c9ab8d6122\
     c52d8dc85d5893501625b65df104cbdafe636d1b1a3c2a97f74d230c5bf70442c53174d6e52b2b7f",
    "30818b303f020100300c310a300806035504030c0178302a300506032b657003210046c2dbafc213f18cd82fc84024487a90155f053af7ce\
     86ca5329b4c72a6291eca000300506032b657003410056e1b8a2de152186c69feb385e18567a47b95c484cb29abfa7b62b4c1a4817b9c090\
     da538da986adafc7e0b8be9aab2f0ee4f778efa1fab3d096315b65073201",
];
/// Longer than any text on a request.
const MOST_SAID: usize = 256;

/// Each request with the SHA-256 of its key.
static REQUESTS: LazyLock<[(Vec<u8>, [u8; 32]); 3]> = LazyLock::new(|| {
    GOOD.map(|hex| {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
        let der: Vec<u8> = hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
        let key = *verify(&der).expect("it is good").sha256();
        (der, key)
    })
});

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let Some(how) = input.byte() else { return };
    let base = REQUESTS.get(usize::from(how % 4));
    let der = base.map_or_else(|| input.0.to_vec(), |(good, _)| edited(good, &[], input));
    match verify(&der) {
        Ok(proven) => {
            assert!(der.len() <= MAX_CSR);
            if let Some((_, key)) = base {
                assert_eq!(proven.sha256(), key, "what was done to it put another key in");
            }
        }
        Err(error) => assert!(error.to_string().len() <= MOST_SAID && !error.label().is_empty()),
    }
});
