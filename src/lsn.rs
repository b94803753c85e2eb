//! Log sequence numbers: positions in Postgres' write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A position in the write-ahead log, in bytes from its beginning.
///
/// Parses and prints Postgres' own form, `16/B374D848`. Comparable only within one system identifier and
/// timeline; whoever crosses either starts a new generation (see [`crate::cache`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// The position before everything; Postgres calls it invalid.
    pub const ZERO: Lsn = Lsn(0);

    /// An LSN from its number, as binary messages carry it.
    pub const fn from_u64(value: u64) -> Self {
        Lsn(value)
    }

    /// The number of bytes from the beginning of the log.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The 16 upper-case hex digits used in Redis, where scripts compare LSNs as strings (Lua's numbers end at 2^53).
    pub fn hex16(self) -> [u8; 16] {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let mut out = [0; 16];
        for (i, digit) in out.iter_mut().enumerate() {
            *digit = DIGITS[(self.0 >> (60 - 4 * i)) as usize & 0xF];
        }
        out
    }

    /// Reads back what [`Lsn::hex16`] wrote; `None` for anything else.
    pub fn from_hex16(digits: &[u8]) -> Option<Self> {
        if digits.len() != 16 {
            return None;
        }
        let mut value = 0;
        for &d in digits {
            let v = match d {
                b'0'..=b'9' => d - b'0',
                b'A'..=b'F' => d - b'A' + 10,
                _ => return None,
            };
            value = value << 4 | u64::from(v);
        }
        Some(Lsn(value))
    }

    /// Bytes of log from `earlier` to `self`; zero if `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an LSN of the form `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN of the form 16/B374D848: {0:?}")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(s: &str) -> Result<Self, ParseLsnError> {
        let half = |part: &str| {
            let plain = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let parsed = s.split_once('/').and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)));
        // The rejected text may be anything a client sent: only its beginning is repeated.
        parsed.ok_or_else(|| ParseLsnError(s.chars().take(40).collect()))
    }
}

impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_postgres_does() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(Lsn::from_u64(value).to_string(), text);
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn::from_u64(value));
        }
        for bad in ["", "/", "1", "1/", "/1", "g/0", "1/2/3", "+1/0", "1/123456789", " 1/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hex_form_keeps_order_and_reads_back() {
        let lsns = [0, 1, 0x9, 0xA, 0xFFFF_FFFF, 0x1_0000_0000, u64::MAX].map(Lsn::from_u64);
        for pair in lsns.windows(2) {
            assert!(pair[0].hex16() < pair[1].hex16());
        }
        for lsn in lsns {
            assert_eq!(Lsn::from_hex16(&lsn.hex16()), Some(lsn));
        }
        assert_eq!(Lsn::from_hex16(b"00000000016b3748"), None);
        assert_eq!(Lsn::from_hex16(b"1"), None);
    }
}
