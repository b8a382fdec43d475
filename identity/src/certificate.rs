//! One certificate, read strictly into the few facts that the rules ask for.
//!
//! Called by `leaf`, `signer` and `verify`. It decides nothing about trust: it makes sure that what the rules see is the
//! one thing the bytes say (one DER value, no trailing bytes, version 3, no extension twice, nothing critical unknown),
//! so that no two readers of these bytes can see different certificates. Malformed is an error here, never "absent".

use aws_lc_rs::digest;
use rustls_pki_types::UnixTime;
use std::collections::HashSet;
use std::time::Duration;
use x509_parser::asn1_rs::{Any, Class, FromDer, Tag};
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::{GeneralName, X509Extension};
use x509_parser::nom::Parser;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

/// More extensions than any issuer writes; a bound for the duplicate check.
const MAX_EXTENSIONS: usize = 64;

/// The arc `id-ce` (2.5.29), as encoded; what follows is the extension's number.
const ID_CE: [u8; 2] = [0x55, 0x1d];
const KEY_USAGE: u8 = 15;
const SUBJECT_ALT_NAME: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const NAME_CONSTRAINTS: u8 = 30;
const CRL_DISTRIBUTION_POINTS: u8 = 31;
const EXTENDED_KEY_USAGE: u8 = 37;

/// What the path validation behind us understands; anything else must not be critical (RFC 5280, 4.2).
const UNDERSTOOD: [u8; 6] =
    [KEY_USAGE, SUBJECT_ALT_NAME, BASIC_CONSTRAINTS, NAME_CONSTRAINTS, CRL_DISTRIBUTION_POINTS, EXTENDED_KEY_USAGE];

/// Why some bytes are not a certificate that we read at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The bytes are not the DER of an X.509 certificate.
    #[error("not the DER of a certificate")]
    NotDer,
    /// Bytes follow the certificate (a second one, or padding).
    #[error("bytes follow the certificate")]
    TrailingBytes,
    /// Version 1 or 2: no extensions, so no identity and no constraints.
    #[error("not an X.509 version 3 certificate")]
    NotVersion3,
    /// The algorithm named inside the signed part is not the one named outside (RFC 5280, 4.1.1.2).
    #[error("the signature algorithm inside the signed part differs from the one outside")]
    SignatureAlgorithmMismatch,
    /// An extension occurs twice (RFC 5280, 4.2).
    #[error("an extension occurs twice")]
    DuplicateExtension,
    /// More than 64 extensions.
    #[error("more than {MAX_EXTENSIONS} extensions")]
    TooManyExtensions,
    /// An extension that we do not process is marked critical (RFC 5280, 4.2).
    #[error("an unknown extension is marked critical")]
    UnknownCriticalExtension,
    /// The named extension's value is not what its definition says.
    #[error("the {0} extension is malformed")]
    BadExtension(&'static str),
    /// A validity time lies before 1970.
    #[error("a validity time lies before 1970")]
    BadTime,
}

/// The bits of a KeyUsage that matter here (RFC 5280, 4.2.1.3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyUsage {
    pub(crate) digital_signature: bool,
    pub(crate) cert_sign: bool,
    pub(crate) crl_sign: bool,
}

/// BasicConstraints (RFC 5280, 4.2.1.9).
#[derive(Debug, Clone, Copy)]
pub(crate) struct BasicConstraints {
    pub(crate) ca: bool,
    pub(crate) path_len: Option<u8>,
}

/// The URI names of a certificate's SubjectAltName. `count` includes those that are no text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uris<'a> {
    pub(crate) count: usize,
    pub(crate) first: Option<&'a str>,
}

/// One certificate's facts, borrowed from its DER.
pub(crate) struct Certificate<'a> {
    pub(crate) der: &'a [u8],
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) key_usage: Option<KeyUsage>,
    pub(crate) basic_constraints: Option<BasicConstraints>,
    pub(crate) uris: Uris<'a>,
    /// Contents of the NameConstraints extension.
    pub(crate) name_constraints: Option<&'a [u8]>,
    /// Contents of the ExtendedKeyUsage extension.
    pub(crate) extended_key_usage: Option<&'a [u8]>,
    x509: X509Certificate<'a>,
}

impl<'a> Certificate<'a> {
    /// Reads exactly one certificate.
    pub(crate) fn read(der: &'a [u8]) -> Result<Self, CertificateError> {
        let (rest, x509) = X509CertificateParser::new()
            .with_deep_parse_extensions(false)
            .parse(der)
            .map_err(|_| CertificateError::NotDer)?;
        if !rest.is_empty() {
            return Err(CertificateError::TrailingBytes);
        }
        if x509.version() != X509Version::V3 {
            return Err(CertificateError::NotVersion3);
        }
        if x509.signature_algorithm != x509.signature {
            return Err(CertificateError::SignatureAlgorithmMismatch);
        }
        check_extensions(x509.extensions())?;
        Ok(Self {
            der,
            not_before: unix_time(x509.validity().not_before.timestamp())?,
            not_after: unix_time(x509.validity().not_after.timestamp())?,
            key_usage: find(&x509, KEY_USAGE).map(key_usage).transpose()?,
            basic_constraints: find(&x509, BASIC_CONSTRAINTS).map(basic_constraints).transpose()?,
            uris: find(&x509, SUBJECT_ALT_NAME).map(uris).transpose()?.unwrap_or_default(),
            name_constraints: find(&x509, NAME_CONSTRAINTS),
            extended_key_usage: find(&x509, EXTENDED_KEY_USAGE),
            x509,
        })
    }

    /// The serial number's bytes, big-endian.
    pub(crate) fn serial(&self) -> &'a [u8] {
        self.x509.tbs_certificate.raw_serial()
    }

    /// The bytes that its signer signed.
    pub(crate) fn signed_part(&self) -> &[u8] {
        self.x509.tbs_certificate.as_ref()
    }

    /// Its signer's signature.
    pub(crate) fn signature(&self) -> &[u8] {
        &self.x509.signature_value.data
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfo<'a> {
        &self.x509.tbs_certificate.subject_pki
    }

    /// SHA-256 of the whole SubjectPublicKeyInfo: the name of the key.
    pub(crate) fn spki_sha256(&self) -> [u8; 32] {
        sha256(self.public_key().raw)
    }
}

/// SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// None twice, nothing critical unknown, and every OID spelled in its one DER form: a second spelling would be a second
/// extension of the same kind that looks absent.
fn check_extensions(extensions: &[X509Extension<'_>]) -> Result<(), CertificateError> {
    if extensions.len() > MAX_EXTENSIONS {
        return Err(CertificateError::TooManyExtensions);
    }
    let mut seen = HashSet::with_capacity(extensions.len());
    for extension in extensions {
        let oid = extension.oid.as_bytes();
        if !is_der_oid(oid) {
            return Err(CertificateError::NotDer);
        }
        if !seen.insert(oid) {
            return Err(CertificateError::DuplicateExtension);
        }
        let understood = matches!(oid.strip_prefix(&ID_CE), Some([n]) if UNDERSTOOD.contains(n));
        if extension.critical && !understood {
            return Err(CertificateError::UnknownCriticalExtension);
        }
    }
    Ok(())
}

/// Base-128 groups without leading zeros, the last one ended (X.690, 8.19.2).
fn is_der_oid(oid: &[u8]) -> bool {
    let mut starts = true;
    for byte in oid {
        if starts && *byte == 0x80 {
            return false;
        }
        starts = byte & 0x80 == 0;
    }
    starts && !oid.is_empty()
}

fn find<'a>(x509: &X509Certificate<'a>, number: u8) -> Option<&'a [u8]> {
    let found = x509.extensions().iter().find(|e| e.oid.as_bytes().strip_prefix(&ID_CE) == Some(&[number]));
    found.map(|e| e.value)
}

fn unix_time(seconds: i64) -> Result<UnixTime, CertificateError> {
    let seconds = u64::try_from(seconds).map_err(|_| CertificateError::BadTime)?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

/// A BIT STRING of one octet, or two when decipherOnly is set: DER cuts trailing zero bits off.
fn key_usage(value: &[u8]) -> Result<KeyUsage, CertificateError> {
    let bits = match value {
        [0x03, 0x02, unused, bits] if *unused < 8 && bits.trailing_zeros() == u32::from(*unused) => *bits,
        [0x03, 0x03, 0x07, bits, 0x80] => *bits,
        _ => return Err(CertificateError::BadExtension("key usage")),
    };
    Ok(KeyUsage { digital_signature: bits & 0x80 != 0, cert_sign: bits & 0x04 != 0, crl_sign: bits & 0x02 != 0 })
}

/// cA=FALSE is taken spelled out, too: DER omits a default, but issuers write it.
fn basic_constraints(value: &[u8]) -> Result<BasicConstraints, CertificateError> {
    let (ca, path_len) = match value {
        [0x30, 0x00] | [0x30, 0x03, 0x01, 0x01, 0x00] => (false, None),
        [0x30, 0x03, 0x01, 0x01, 0xff] => (true, None),
        [0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, n @ 0..=127] => (true, Some(*n)),
        _ => return Err(CertificateError::BadExtension("basic constraints")),
    };
    Ok(BasicConstraints { ca, path_len })
}

/// Every name must be readable, or another reader could see a URI where we see none.
fn uris(value: &[u8]) -> Result<Uris<'_>, CertificateError> {
    const BAD: CertificateError = CertificateError::BadExtension("subject alternative name");
    let (rest, names) = Any::from_der(value).map_err(|_| BAD)?;
    if !rest.is_empty() || names.tag() != Tag::Sequence || names.class() != Class::Universal {
        return Err(BAD);
    }
    let (mut left, mut uris) = (names.data, Uris::default());
    while !left.is_empty() {
        let (rest, name) = Any::from_der(left).map_err(|_| BAD)?;
        left = rest;
        // otherName, x400Address, directoryName and ediPartyName are constructed, the rest is primitive.
        let constructed = matches!(name.tag().0, 0 | 3 | 4 | 5);
        if name.header.constructed() != constructed {
            return Err(BAD);
        }
        match GeneralName::try_from(name).map_err(|_| BAD)? {
            GeneralName::URI(text) => {
                uris.count += 1;
                uris.first = uris.first.or(Some(text));
            }
            GeneralName::Invalid(Tag(6), _) => uris.count += 1,
            GeneralName::Invalid(..) => return Err(BAD),
            _ => {}
        }
    }
    Ok(uris)
}
