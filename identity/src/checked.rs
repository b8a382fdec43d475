//! A signature that was found good before, for whoever verifies chain after chain below one intermediate: a CA, what it has signed.
//!
//! Made by the CA for its issuer, and handed to `verify_svid_at_both_ends`. It stands for one question and its answer: algorithm, key,
//! signed bytes and signature, each compared whole. The answer to the same question is the same, so no verdict changes. It must never
//! stand for a certificate, a path or a time: those are checked each time.

use crate::bundle::TrustBundle;
use crate::certificate::Certificate;
use crate::verify::ALGORITHMS;
use crate::verify_error::VerifyError;
use rustls_pki_types::{AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm};

/// One signature on one certificate, which a root's key made: see [`verify_svid_at_both_ends`](crate::verify_svid_at_both_ends).
#[derive(Debug, Clone)]
pub struct CheckedSignature {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    public_key: Vec<u8>,
    message: Vec<u8>,
    signature: Vec<u8>,
}

impl CheckedSignature {
    /// Checks the signature on a certificate by the keys of a bundle's roots; nothing else of it.
    ///
    /// # Errors
    /// If it cannot be read, or none of the roots made the signature.
    pub fn of(certificate: &CertificateDer<'_>, bundle: &TrustBundle) -> Result<Self, VerifyError> {
        let read = |der| Certificate::read(der).map_err(|reason| VerifyError::Certificate { index: 0, reason });
        let certificate = read(certificate)?;
        let (message, signature) = (certificate.signed_part(), certificate.signature());
        for root in bundle.roots() {
            let root = read(root)?;
            let public_key: &[u8] = &root.public_key().subject_public_key.data;
            let made_it = |one: &&&'static dyn SignatureVerificationAlgorithm| {
                one.verify_signature(public_key, message, signature).is_ok()
            };
            if let Some(algorithm) = ALGORITHMS.iter().find(made_it) {
                let [public_key, message, signature] = [public_key, message, signature].map(<[u8]>::to_vec);
                return Ok(Self { algorithm: *algorithm, public_key, message, signature });
            }
        }
        Err(VerifyError::BadSignature)
    }
}

/// An algorithm that is not asked what it has answered before.
#[derive(Debug)]
pub(crate) struct Sparing<'k> {
    pub(crate) algorithm: &'static dyn SignatureVerificationAlgorithm,
    pub(crate) known: &'k [CheckedSignature],
}

impl SignatureVerificationAlgorithm for Sparing<'_> {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let asked = (self.signature_alg_id(), self.public_key_alg_id(), public_key, message, signature);
        let is_known = |known: &CheckedSignature| {
            let of = (known.algorithm.signature_alg_id(), known.algorithm.public_key_alg_id());
            asked == (of.0, of.1, &known.public_key, &known.message, &known.signature)
        };
        match self.known.iter().any(is_known) {
            true => Ok(()),
            false => self.algorithm.verify_signature(public_key, message, signature),
        }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use webpki::aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P256_SHA384};

    /// Refuses whatever it is asked.
    #[derive(Debug)]
    struct Refusing(&'static dyn SignatureVerificationAlgorithm);

    impl SignatureVerificationAlgorithm for Refusing {
        fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
            Err(InvalidSignature)
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            self.0.public_key_alg_id()
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            self.0.signature_alg_id()
        }
    }

    static SAME: Refusing = Refusing(ECDSA_P256_SHA256);
    static OTHER: Refusing = Refusing(ECDSA_P256_SHA384);

    #[test]
    fn only_the_very_same_question_is_spared() {
        let known = CheckedSignature {
            algorithm: ECDSA_P256_SHA256,
            public_key: b"key".to_vec(),
            message: b"message".to_vec(),
            signature: b"signature".to_vec(),
        };
        let ask =
            |algorithm: &'static Refusing, known: &[CheckedSignature], key: &str, message: &str, signature: &str| {
                let [key, message, signature] = [key, message, signature].map(str::as_bytes);
                Sparing { algorithm, known }.verify_signature(key, message, signature).is_ok()
            };
        let known = &[known][..];
        assert!(ask(&SAME, known, "key", "message", "signature"));
        assert!(!ask(&OTHER, known, "key", "message", "signature"));
        assert!(!ask(&SAME, &[], "key", "message", "signature"));
        for (key, message, signature) in
            [("kez", "message", "signature"), ("key", "messagf", "signature"), ("key", "message", "signaturf")]
        {
            assert!(!ask(&SAME, known, key, message, signature));
        }
        // What moves from one part to the next is another question, too.
        assert!(!ask(&SAME, known, "keym", "essage", "signature"));
    }
}
