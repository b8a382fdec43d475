//! Content hashes: the same content has the same name, on every replica and after every restart.
//!
//! Called by `model`, `index` and `rules`. Every field is written with its length, so that no two contents share one text.

use aws_lc_rs::digest::{Context, SHA256};

/// SHA-256 of some content.
pub type Digest = [u8; 32];

/// Collects content, field by field.
pub struct Content(Context);

impl Content {
    /// Begins; `kind` keeps contents of different kinds apart.
    pub fn of(kind: &str) -> Self {
        Self(Context::new(&SHA256)).bytes(kind.as_bytes())
    }

    /// One field.
    #[must_use]
    pub fn bytes(mut self, field: &[u8]) -> Self {
        self.0.update(&(field.len() as u64).to_be_bytes());
        self.0.update(field);
        self
    }

    /// One field of text.
    #[must_use]
    pub fn text(self, field: &str) -> Self {
        self.bytes(field.as_bytes())
    }

    /// One number.
    #[must_use]
    pub fn number(self, field: u64) -> Self {
        self.bytes(&field.to_be_bytes())
    }

    /// The hash.
    pub fn finish(self) -> Digest {
        let mut digest = Digest::default();
        digest.copy_from_slice(self.0.finish().as_ref());
        digest
    }
}

/// A hash as a short name: 128 bits, 32 characters.
pub fn short(digest: &Digest) -> String {
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_into_each_other() {
        let ab = Content::of("x").text("ab").text("c").finish();
        assert_ne!(ab, Content::of("x").text("a").text("bc").finish());
        assert_ne!(ab, Content::of("xab").text("").text("c").finish());
        assert_eq!(ab, Content::of("x").text("ab").text("c").finish());
    }

    #[test]
    fn a_short_name_is_32_hex_digits() {
        let name = short(&Content::of("x").finish());
        assert_eq!(name.len(), 32);
        assert!(name.bytes().all(|b| b.is_ascii_hexdigit()));
    }
}
