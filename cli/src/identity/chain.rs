//! Reads a chain of certificates: PEM with whatever else stands in the file, or DER one after the other.
//!
//! Called by `show` and `verify`. It must never take bytes that follow the last certificate for nothing.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::asn1_rs::{Any, FromDer};

/// More than any chain or bundle needs.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Reads `file`, `-` being standard input. There is at least one certificate.
pub fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().take(MAX_BYTES + 1).read_to_end(&mut bytes).context("standard input")?;
    } else {
        let opened = std::fs::File::open(file).with_context(|| file.display().to_string())?;
        opened.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| file.display().to_string())?;
    }
    ensure!(bytes.len() as u64 <= MAX_BYTES, "{}: larger than {MAX_BYTES} bytes", file.display());
    parse(&bytes).with_context(|| file.display().to_string())
}

fn parse(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let chain = if bytes.windows(11).any(|window| window == b"-----BEGIN ") { pem(bytes)? } else { der(bytes)? };
    ensure!(!chain.is_empty(), "holds no certificate");
    Ok(chain)
}

fn pem(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().context("is not good PEM")
}

fn der(mut bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let mut chain = Vec::new();
    while !bytes.is_empty() {
        let (rest, _) = Any::from_der(bytes).ok().context("is neither PEM nor the DER of certificates")?;
        chain.push(CertificateDer::from(bytes[..bytes.len() - rest.len()].to_vec()));
        bytes = rest;
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> [rcgen::Certificate; 2] {
        [1, 2].map(|_| {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::default().self_signed(&key).unwrap()
        })
    }

    #[test]
    fn pem_and_der_give_the_same_chain() {
        let [a, b] = two();
        let text = format!("{}some words between\n{}", a.pem(), b.pem());
        let bytes = [a.der().as_ref(), b.der().as_ref()].concat();
        let expected = [a.der().clone(), b.der().clone()];
        assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        assert_eq!(parse(&bytes).unwrap(), expected);
    }

    #[test]
    fn a_private_key_in_the_file_is_passed_over() {
        let [a, _] = two();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(parse(format!("{key}{}", a.pem()).as_bytes()).unwrap().len(), 1);
        assert!(parse(key.as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        let [a, _] = two();
        assert!(parse(b"").is_err());
        assert!(parse(b"hello").is_err());
        assert!(parse(&[a.der().as_ref(), b"\x30\x82"].concat()).is_err());
    }
}
