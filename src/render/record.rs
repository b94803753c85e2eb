//! Composites: from Postgres' text output, `(1,"a ""b""",)`, to JSON objects.

use std::borrow::Cow;

use super::{RenderError, escape, value};
use crate::sqltype::{Attribute, SqlType};

const MALFORMED: RenderError = RenderError::Malformed("composite");

/// Appends a composite. Its attributes are told by their order alone, so their number must be the same in both.
pub(super) fn object(out: &mut Vec<u8>, attributes: &[Attribute], text: &[u8]) -> Result<(), RenderError> {
    let mut rest = text.strip_prefix(b"(").ok_or(MALFORMED)?;
    out.push(b'{');
    for (i, attribute) in attributes.iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix(b",").ok_or(MALFORMED)?;
            out.push(b',');
        }
        escape(out, &attribute.name);
        out.push(b':');
        rest = field(out, &attribute.sql_type, rest)?;
    }
    out.push(b'}');
    if rest == b")" { Ok(()) } else { Err(MALFORMED) }
}

/// Appends the field that the text begins with, and returns what is behind it. Nothing at all is null; an empty text has
/// quotes.
fn field<'a>(out: &mut Vec<u8>, sql_type: &SqlType, text: &'a [u8]) -> Result<&'a [u8], RenderError> {
    if let Some(inside) = text.strip_prefix(b"\"") {
        let (field, rest) = quoted(inside).ok_or(MALFORMED)?;
        value(out, sql_type, &field)?;
        return Ok(rest);
    }
    let ends = |byte: &u8| matches!(byte, b',' | b')' | b'(' | b'"' | b'\\');
    let (field, rest) = text.split_at(text.iter().position(ends).ok_or(MALFORMED)?);
    if field.is_empty() {
        out.extend_from_slice(b"null");
    } else {
        value(out, sql_type, field)?;
    }
    Ok(rest)
}

/// What stands before the closing quote, and what is behind that. Quotes and backslashes inside are doubled.
fn quoted(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let mut field = Cow::Borrowed(&b""[..]);
    let mut rest = text;
    loop {
        let end = memchr::memchr2(b'"', b'\\', rest)?;
        match rest[end..] {
            [b'"', b'"', ..] | [b'\\', b'\\', ..] => {
                let field = field.to_mut();
                if field.is_empty() {
                    field.reserve(rest.len().min(2 * end + 16));
                }
                field.extend_from_slice(&rest[..=end]);
                rest = &rest[end + 2..];
            }
            [b'"', ..] => {
                match &mut field {
                    Cow::Borrowed(whole) => *whole = &rest[..end],
                    Cow::Owned(start) => start.extend_from_slice(&rest[..end]),
                }
                return Some((field, &rest[end + 1..]));
            }
            _ => return None,
        }
    }
}
