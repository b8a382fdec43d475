//! Amounts of CPU and memory as Kubernetes writes them (`250m`, `64Mi`, `1e3`), compared exactly.
//!
//! Used by `mesh` and `settings`. It must never take for an amount what the API server would refuse, nor round.

use std::fmt;

/// An amount, with the text that it was written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    /// In billionths.
    nanos: i128,
}

/// Longest text; the API server itself knows no honest one that is longer.
const LONGEST: usize = 24;
const BILLION: i128 = 1_000_000_000;

impl Quantity {
    /// Reads a positive amount.
    ///
    /// # Errors
    /// A sentence that says what it is not.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no amount, such as 250m, 1.5 or 64Mi");
        if text.len() > LONGEST {
            return Err(bad());
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(bad());
        }
        let (factor, divisor) = factor(suffix).ok_or_else(bad)?;
        let digits: i128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
        let places = 10_i128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
        let nanos = digits.checked_mul(factor).and_then(|n| n.checked_mul(BILLION)).ok_or_else(bad)?;
        let divisor = places.checked_mul(divisor).ok_or_else(bad)?;
        if nanos % divisor != 0 {
            return Err(format!("{text:?} is finer than a billionth"));
        }
        match nanos / divisor {
            0 => Err(format!("{text:?} is nothing")),
            nanos => Ok(Self { text: text.to_owned(), nanos }),
        }
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is more than `other`.
    #[must_use]
    pub fn exceeds(&self, other: &Self) -> bool {
        self.nanos > other.nanos
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a suffix multiplies and divides by.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    const SMALL: [&str; 3] = ["m", "u", "n"];
    let power =
        |list: &[&str]| list.iter().position(|known| *known == suffix).and_then(|at| u32::try_from(at + 1).ok());
    if suffix.is_empty() {
        return Some((1, 1));
    }
    if let Some(power) = power(&BINARY) {
        return Some((1024_i128.pow(power), 1));
    }
    if let Some(power) = power(&DECIMAL) {
        return Some((1000_i128.pow(power), 1));
    }
    if let Some(power) = power(&SMALL) {
        return Some((1, 1000_i128.pow(power)));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    match exponent.unsigned_abs() {
        power @ 0..=18 if exponent >= 0 => Some((10_i128.pow(power), 1)),
        power @ 0..=18 => Some((1, 10_i128.pow(power))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(text: &str) -> i128 {
        Quantity::parse(text).unwrap().nanos
    }

    #[test]
    fn amounts_are_what_kubernetes_takes_them_for() {
        assert_eq!(nanos("1"), BILLION);
        assert_eq!(nanos("250m"), BILLION / 4);
        assert_eq!(nanos("0.25"), nanos("250m"));
        assert_eq!(nanos("1.5Gi"), nanos("1536Mi"));
        assert_eq!(nanos("1k"), nanos("1000"));
        assert_eq!(nanos("1e3"), nanos("1k"));
        assert_eq!(nanos("5e-1"), nanos("500m"));
        assert_eq!(nanos("1n"), 1);
        assert_eq!(nanos(".5"), nanos("500m"));
        assert!(Quantity::parse("1Mi").unwrap().exceeds(&Quantity::parse("1M").unwrap()));
        assert!(!Quantity::parse("1000m").unwrap().exceeds(&Quantity::parse("1").unwrap()));
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "m", ".", "-1", "+1", "1.2.3", "1 Mi", "1mi", "1KB", "0", "0Mi", "1e99", "0.1n", "١", "1e"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
        assert!(Quantity::parse(&"9".repeat(25)).is_err());
        assert!(Quantity::parse("999999999999999999999Ei").is_err(), "too large to compare");
    }
}
