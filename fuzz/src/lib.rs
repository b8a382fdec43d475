//! What the targets share: an input taken apart, and good bytes with something done to them.
//!
//! Called by the targets in targets/. It must never take anything from elsewhere than the input: what a crash left must crash again.

/// An input, taken from its front.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte; `None` at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next two bytes as a number; `None` at the end.
    pub fn number(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(usize::from(u16::from_be_bytes(*first)))
    }

    /// The next bytes: so many, or as many as there are.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        first
    }
}

/// Good bytes with something done to them, step by step as the rest of the input says. So an input reaches what lies behind a form that no
/// input meets by chance. A step flips bits of one byte, takes bytes out, puts bytes of the input in, repeats a part, or puts in one of
/// the `words`.
#[must_use]
pub fn edited(good: &[u8], words: &[&str], mut input: Input<'_>) -> Vec<u8> {
    const STEPS: u8 = 5;
    let mut bytes = good.to_vec();
    while let (Some(step), Some(at)) = (input.byte(), input.number()) {
        let at = at % (bytes.len() + 1);
        let length = usize::from(step / STEPS);
        let end = (at + length).min(bytes.len());
        match step % STEPS {
            0 => {
                if let (Some(byte), Some(flip)) = (bytes.get_mut(at), input.byte()) {
                    *byte ^= flip;
                }
            }
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, input.bytes(length).iter().copied())),
            3 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                if let Some(word) = words.get(length % words.len().max(1)) {
                    bytes.splice(at..at, word.bytes());
                }
            }
        }
    }
    bytes
}
