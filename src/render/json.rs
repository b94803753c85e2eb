//! JSON's own grammar: strings as Postgres escapes them, numbers, whole documents.

/// Appends a JSON string as Postgres' `escape_json` writes it: only quotes, backslashes and control characters are
/// escaped, and everything else stands as it is.
pub fn escape(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(plain) = next_escape(rest) {
        out.extend_from_slice(&rest[..plain]);
        match rest[plain] {
            b'\x08' => out.extend_from_slice(b"\\b"),
            b'\x0C' => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control @ ..b' ' => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[DIGITS[usize::from(control >> 4)], DIGITS[usize::from(control & 0xF)]]);
            }
            quote_or_backslash => out.extend_from_slice(&[b'\\', quote_or_backslash]),
        }
        rest = &rest[plain + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Where the next byte stands that JSON escapes.
fn next_escape(text: &[u8]) -> Option<usize> {
    /// Most text has nothing to escape: whole blocks without a branch on each byte are several times faster.
    const BLOCK: usize = 16;
    let is_escaped = |&byte: &u8| (byte < b' ') | (byte == b'"') | (byte == b'\\');
    let blocks = text.chunks_exact(BLOCK);
    let plain =
        blocks.take_while(|block| !block.iter().fold(false, |any, byte| any | is_escaped(byte))).count() * BLOCK;
    text[plain..].iter().position(is_escaped).map(|at| plain + at)
}

/// Whether the text is one JSON number, and nothing else.
pub(super) fn is_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> Option<&[u8]> {
        let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
        (end > 0).then(|| &text[end..])
    }
    fn number(text: &[u8]) -> Option<&[u8]> {
        let rest = match text.strip_prefix(b"-").unwrap_or(text) {
            [b'0', rest @ ..] => rest,
            whole => digits(whole)?,
        };
        let rest = match rest {
            [b'.', fraction @ ..] => digits(fraction)?,
            _ => rest,
        };
        match rest {
            [b'e' | b'E', b'+' | b'-', exponent @ ..] | [b'e' | b'E', exponent @ ..] => digits(exponent),
            _ => Some(rest),
        }
    }
    number(text).is_some_and(<[u8]>::is_empty)
}

/// Whether the text is one JSON document. Its depth is not limited, and nothing is kept of it.
pub(super) fn is_document(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}
