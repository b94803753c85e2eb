//! Arrays: from Postgres' text output, `{1,"a b",NULL}`, to JSON arrays.

use super::{RenderError, value};
use crate::sqltype::SqlType;

/// Postgres' own limit (`MAXDIM`).
const MAX_DIMENSIONS: usize = 6;

const MALFORMED: RenderError = RenderError::Malformed("array");

/// Appends an array with braces. Lower bounds, as in `[2:3]={1,2}`, do not appear in JSON.
pub(super) fn braced(out: &mut Vec<u8>, element: &SqlType, delimiter: u8, text: &[u8]) -> Result<(), RenderError> {
    let rest = after_bounds(text).ok_or(MALFORMED)?;
    if rest == b"{}" {
        out.extend_from_slice(b"[]");
        return Ok(());
    }
    let mut array = Array { element, delimiter, rest, lengths: [None; MAX_DIMENSIONS], dimensions: None };
    array.dimension(out, 0)?;
    if array.rest.is_empty() { Ok(()) } else { Err(MALFORMED) }
}

/// Appends an `int2vector` or `oidvector`: `1 2 3`, without nulls.
pub(super) fn vector(out: &mut Vec<u8>, element: &SqlType, text: &[u8]) -> Result<(), RenderError> {
    out.push(b'[');
    if !text.is_empty() {
        for (i, item) in text.split(|&byte| byte == b' ').enumerate() {
            if i > 0 {
                out.push(b',');
            }
            if item.is_empty() {
                return Err(MALFORMED);
            }
            value(out, element, item)?;
        }
    }
    out.push(b']');
    Ok(())
}

/// Skips `[1:2][-1:3]=`, if it is there.
fn after_bounds(text: &[u8]) -> Option<&[u8]> {
    if !text.starts_with(b"[") {
        return Some(text);
    }
    let equals = memchr::memchr(b'=', text)?;
    let is_bound = |bound: &[u8]| {
        let digits = bound.strip_prefix(b"-").unwrap_or(bound);
        !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
    };
    let mut bounds = &text[..equals];
    while let Some(inner) = bounds.strip_prefix(b"[") {
        let close = memchr::memchr(b']', inner)?;
        let colon = memchr::memchr(b':', &inner[..close])?;
        (is_bound(&inner[..colon]) && is_bound(&inner[colon + 1..close])).then_some(())?;
        bounds = &inner[close + 1..];
    }
    bounds.is_empty().then_some(&text[equals + 1..])
}

/// An array while it is read.
struct Array<'a> {
    element: &'a SqlType,
    delimiter: u8,
    rest: &'a [u8],
    /// The length of the arrays at each depth, once one was read: all of a depth are of one length.
    lengths: [Option<usize>; MAX_DIMENSIONS],
    /// The depth of elements, once one was read.
    dimensions: Option<usize>,
}

impl Array<'_> {
    /// Reads `{...}` at a depth; an empty one stands only for a whole array, never within one.
    fn dimension(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), RenderError> {
        if depth == MAX_DIMENSIONS || self.dimensions.is_some_and(|dimensions| depth >= dimensions) {
            return Err(MALFORMED);
        }
        self.take(b'{')?;
        out.push(b'[');
        let mut length = 0;
        loop {
            match self.rest.first() {
                Some(b'{') => self.dimension(out, depth + 1)?,
                Some(_) if *self.dimensions.get_or_insert(depth + 1) != depth + 1 => return Err(MALFORMED),
                Some(b'"') => self.quoted(out)?,
                Some(_) => self.bare(out)?,
                None => return Err(MALFORMED),
            }
            length += 1;
            match self.rest.split_first() {
                Some((b'}', rest)) => {
                    self.rest = rest;
                    break;
                }
                Some((&next, rest)) if next == self.delimiter => self.rest = rest,
                _ => return Err(MALFORMED),
            }
            out.push(b',');
        }
        out.push(b']');
        if *self.lengths[depth].get_or_insert(length) == length { Ok(()) } else { Err(MALFORMED) }
    }

    /// Reads an element without quotes, or NULL.
    fn bare(&mut self, out: &mut Vec<u8>) -> Result<(), RenderError> {
        let ends = |&byte: &u8| byte == self.delimiter || matches!(byte, b'{' | b'}' | b'"' | b'\\');
        let length = self.rest.iter().position(ends).ok_or(MALFORMED)?;
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        match text {
            b"" => Err(MALFORMED),
            b"NULL" => {
                out.extend_from_slice(b"null");
                Ok(())
            }
            _ => value(out, self.element, text),
        }
    }

    /// Reads an element in quotes, where backslashes stand before quotes and backslashes.
    fn quoted(&mut self, out: &mut Vec<u8>) -> Result<(), RenderError> {
        self.take(b'"')?;
        let mut end = memchr::memchr2(b'"', b'\\', self.rest).ok_or(MALFORMED)?;
        if self.rest[end] == b'"' {
            let text = &self.rest[..end];
            self.rest = &self.rest[end + 1..];
            return value(out, self.element, text);
        }
        let mut text = Vec::with_capacity(self.rest.len().min(2 * end + 16));
        loop {
            text.extend_from_slice(&self.rest[..end]);
            let found = self.rest[end];
            self.rest = &self.rest[end + 1..];
            if found == b'"' {
                return value(out, self.element, &text);
            }
            let (&escaped, rest) = self.rest.split_first().ok_or(MALFORMED)?;
            text.push(escaped);
            self.rest = rest;
            end = memchr::memchr2(b'"', b'\\', self.rest).ok_or(MALFORMED)?;
        }
    }

    fn take(&mut self, wanted: u8) -> Result<(), RenderError> {
        self.rest = self.rest.strip_prefix(&[wanted]).ok_or(MALFORMED)?;
        Ok(())
    }
}
