//! A value's text output to the JSON that `row_to_json` gives for it.
//!
//! The text is what Postgres writes in a session with TimeZone=UTC, DateStyle ISO, IntervalStyle postgres,
//! extra_float_digits 1, bytea_output hex and lc_monetary C, in UTF-8. The JSON is then the same, byte for byte, as that of
//! `row_to_json` in such a session. Text that is not a value of its type is refused, so that whoever renders can
//! refetch the row: no answer is better than a wrong one.

use crate::sqltype::SqlType;

mod array;
mod json;
mod record;
mod temporal;
#[cfg(test)]
mod tests;

pub use json::escape;

/// A value whose JSON form cannot be told from its text; the row has to be read from Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The type's JSON form depends on more than the text.
    #[error("render value: its type has no JSON form that follows from its text")]
    Opaque,
    /// The text is not a value of the type.
    #[error("render value: its text is not of type {0}")]
    Malformed(&'static str),
}

/// Appends the JSON form of a value that is not null, given its type and text output.
///
/// # Errors
/// [`RenderError`] if the JSON form cannot be told; `out` is then as it was before.
pub fn render(out: &mut Vec<u8>, sql_type: &SqlType, text: &[u8]) -> Result<(), RenderError> {
    let start = out.len();
    let done = value(out, sql_type, text);
    if done.is_err() {
        out.truncate(start);
    }
    done
}

fn value(out: &mut Vec<u8>, sql_type: &SqlType, text: &[u8]) -> Result<(), RenderError> {
    match sql_type {
        SqlType::Bool => match text {
            b"t" => out.extend_from_slice(b"true"),
            b"f" => out.extend_from_slice(b"false"),
            _ => return Err(RenderError::Malformed("bool")),
        },
        SqlType::Integer => match text.strip_prefix(b"-").unwrap_or(text) {
            [b'0'..=b'9'] | [b'1'..=b'9', ..] if text.iter().skip(1).all(u8::is_ascii_digit) => {
                out.extend_from_slice(text);
            }
            _ => return Err(RenderError::Malformed("integer")),
        },
        SqlType::Number => match text {
            b"NaN" | b"Infinity" | b"-Infinity" => quoted(out, text),
            _ if json::is_number(text) => out.extend_from_slice(text),
            _ => return Err(RenderError::Malformed("number")),
        },
        SqlType::Json if json::is_document(text) => out.extend_from_slice(text),
        SqlType::Json => return Err(RenderError::Malformed("json")),
        SqlType::Date => temporal::date(out, text).ok_or(RenderError::Malformed("date"))?,
        SqlType::Timestamp => temporal::timestamp(out, text).ok_or(RenderError::Malformed("timestamp"))?,
        SqlType::TimestampTz => temporal::timestamptz(out, text).ok_or(RenderError::Malformed("timestamptz"))?,
        SqlType::Text => escape(out, std::str::from_utf8(text).map_err(|_| RenderError::Malformed("text"))?),
        SqlType::Array(element, delimiter) => array::braced(out, element, *delimiter, text)?,
        SqlType::Vector(element) => array::vector(out, element, text)?,
        SqlType::Composite(attributes) => record::object(out, attributes, text)?,
        SqlType::Opaque => return Err(RenderError::Opaque),
    }
    Ok(())
}

/// Appends text between quotes; it must contain nothing that JSON escapes.
fn quoted(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}
