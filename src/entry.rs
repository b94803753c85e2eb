//! The form of an entry in L2: a JSON object whose head has a fixed width, so that scripts compare by substring.
//!
//! ```text
//! {"lo":"00000000016B3748","hi":"00000000016B3748","g":"0000000000000007","s":0,"x":"1763861234567","z":0,"v":{"id":42}}
//! ```
//!
//! `lo`: everything committed up to here is in the value. `hi`: nothing committed after here is. `g`: the generation
//! it belongs to. `s` is 1 on a value written by a transaction that was applied in pieces: until the watermark has
//! reached `lo`, the value may be one that was never committed. `x`: when it is due, in milliseconds since the Unix epoch; all
//! zeros: nothing but Redis' own expiry ends it. `v`: the value; `null` says the row is absent. `z` is 1 where `v` is a JSON
//! string, the base64 of a zstd frame of the value's JSON: see [`packed`].
//! While a fill is on its way, a lease stands in the entry's place: `{"lease":"<token>"}`.

pub mod due;
pub mod gaps;
pub mod packed;

use bytes::Bytes;

pub use self::due::Due;

use crate::generation::Generation;
use crate::lsn::Lsn;

/// Bytes before the value.
pub const HEAD: usize = 108;

/// Where the mark stands that a transaction applied in pieces wrote it: `1`, else `0`.
pub const SPLIT: usize = 76;

/// Where it stands when the entry is due.
pub const DUE: std::ops::Range<usize> = 83..96;

/// Where the mark stands that the value is compressed: `1`, else `0`.
pub const PACKED: usize = 102;

/// What is known of a value beside its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Everything committed up to here is in the value.
    pub lo: Lsn,
    /// Nothing committed after here is in the value.
    pub hi: Lsn,
    /// The generation it belongs to.
    pub generation: Generation,
    /// Written by a transaction that was applied in pieces.
    pub split: bool,
    /// When it is due.
    pub due: Due,
}

/// A head whose label is still to be set; the value and a closing brace are to follow.
pub const BLANK_HEAD: &[u8; HEAD] =
    b"{\"lo\":\"0000000000000000\",\"hi\":\"0000000000000000\",\"g\":\"0000000000000000\",\"s\":0,\"x\":\"0000000000000\",\"z\":0,\"v\":";

/// Sets the label in an entry's head.
pub fn set_label(head: &mut [u8; HEAD], label: &Label) {
    head[7..23].copy_from_slice(&label.lo.hex16());
    head[31..47].copy_from_slice(&label.hi.hex16());
    head[54..70].copy_from_slice(&label.generation.hex16());
    head[SPLIT] = if label.split { b'1' } else { b'0' };
    head[DUE].copy_from_slice(&label.due.digits());
}

/// Writes a whole entry; `value` is `None` for a row known to be absent.
pub fn encode(label: &Label, value: Option<&[u8]>) -> Vec<u8> {
    let value = value.unwrap_or(b"null");
    let mut head = *BLANK_HEAD;
    set_label(&mut head, label);
    let mut out = Vec::with_capacity(HEAD + value.len() + 1);
    out.extend_from_slice(&head);
    out.extend_from_slice(value);
    out.push(b'}');
    out
}

/// What stands at an entry's key in L2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A value.
    Entry(Label, Option<Bytes>),
    /// A lease: somebody is filling it.
    Lease,
    /// Something that walcache did not write.
    Foreign,
}

/// Reads what stands at a key. A compressed value that is damaged, or of more than `max_value` bytes, is none of walcache's.
pub fn decode(stored: Bytes, max_value: usize) -> Stored {
    if stored.starts_with(b"{\"lease\":") {
        return Stored::Lease;
    }
    let parsed = || {
        let literal = |at: usize, text: &[u8]| stored.get(at..at + text.len()).filter(|found| *found == text);
        let lsn = |at: usize| Lsn::from_hex16(stored.get(at..at + 16)?);
        literal(0, b"{\"lo\":\"")?;
        literal(23, b"\",\"hi\":\"")?;
        literal(47, b"\",\"g\":\"")?;
        literal(70, b"\",\"s\":")?;
        literal(77, b",\"x\":\"")?;
        literal(96, b"\",\"z\":")?;
        literal(103, b",\"v\":")?;
        let split = match stored.get(SPLIT)? {
            b'0' => false,
            b'1' => true,
            _ => return None,
        };
        let generation = Generation::from_hex16(stored.get(54..70)?)?;
        let due = Due::from_digits(stored.get(DUE)?)?;
        let label = Label { lo: lsn(7)?, hi: lsn(31)?, generation, split, due };
        let end = stored.len().checked_sub(1).filter(|end| *end > HEAD && stored[*end] == b'}')?;
        let value = match stored.get(PACKED)? {
            b'0' => stored.slice(HEAD..end),
            b'1' => packed::unpack(&stored[HEAD..end], max_value)?.into(),
            _ => return None,
        };
        Some(Stored::Entry(label, (value != b"null"[..]).then_some(value)))
    };
    parsed().unwrap_or(Stored::Foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(split: bool) -> Label {
        let due = Due::from_millis(1_763_861_234_567);
        Label { lo: Lsn::from_u64(0x16B3748), hi: Lsn::from_u64(u64::MAX), generation: Generation(7), split, due }
    }

    #[test]
    fn an_entry_is_json_and_reads_back() {
        for split in [false, true] {
            for value in [None, Some(&b"{\"id\":42}"[..])] {
                let text = encode(&label(split), value);
                let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
                assert_eq!(json["lo"], "00000000016B3748");
                assert_eq!(json["x"], "1763861234567");
                assert_eq!((&json["z"], json["v"].is_null()), (&0.into(), value.is_none()));
                assert_eq!(text[..HEAD].len(), BLANK_HEAD.len());
                assert_eq!(decode(text.into(), 0), Stored::Entry(label(split), value.map(Bytes::from_static)));
            }
        }
    }

    #[test]
    fn a_damaged_entry_is_foreign() {
        let whole = encode(&label(false), Some(b"1"));
        for cut in 0..whole.len() {
            assert_eq!(decode(Bytes::copy_from_slice(&whole[..cut]), 100), Stored::Foreign, "cut at {cut}");
        }
        assert_eq!(decode(Bytes::from_static(b"{\"lease\":\"00\"}"), 0), Stored::Lease);
    }
}
