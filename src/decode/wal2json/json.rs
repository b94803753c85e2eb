//! Reading of JSON in the form that wal2json writes it: without blanks, in a fixed order of fields. Strings are cut out,
//! not copied.

use super::Located;
use crate::decode::Problem;

/// A message and how far it was read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

/// A string as it stands in the message, between its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quoted<'a> {
    pub(super) raw: &'a [u8],
    /// Where it begins in the message.
    pub(super) start: usize,
    /// Whether anything in it is escaped.
    pub(super) escaped: bool,
}

/// A value that holds no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    Null,
    True,
    False,
    /// Its digits, and where they begin in the message.
    Number(&'a [u8], usize),
    Text(Quoted<'a>),
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Reader { message, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    fn fail<T>(&self, wanted: &'static str) -> Result<T, Located> {
        Err((Problem::Syntax(wanted), self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.message.get(self.at).copied()
    }

    /// Reads this byte, if it comes next.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    pub(super) fn expect(&mut self, byte: u8, name: &'static str) -> Result<(), Located> {
        if self.take(byte) { Ok(()) } else { self.fail(name) }
    }

    /// Fails unless the message was read to its end.
    pub(super) fn end(&self) -> Result<(), Located> {
        match self.message.len() - self.at {
            0 => Ok(()),
            left => Err((Problem::TrailingBytes(left), self.at)),
        }
    }

    /// The next field's name, or `None` at the object's end. `first`: the object has just begun.
    pub(super) fn field(&mut self, first: &mut bool) -> Result<Option<&'a [u8]>, Located> {
        if self.take(b'}') {
            return Ok(None);
        }
        if !std::mem::replace(first, false) {
            self.expect(b',', "a comma")?;
        }
        let name = self.quoted()?.raw;
        self.expect(b':', "a colon")?;
        Ok(Some(name))
    }

    /// Whether another element of an array follows. `first`: the array has just begun.
    pub(super) fn element(&mut self, first: &mut bool) -> Result<bool, Located> {
        if self.take(b']') {
            return Ok(false);
        }
        if !std::mem::replace(first, false) {
            self.expect(b',', "a comma")?;
        }
        Ok(true)
    }

    /// A string.
    pub(super) fn quoted(&mut self) -> Result<Quoted<'a>, Located> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = &self.message[self.at..];
            let Some(to) = memchr::memchr2(b'"', b'\\', rest) else {
                return Err((Problem::Syntax("the end of a string"), self.message.len()));
            };
            if rest[to] == b'"' {
                let raw = &self.message[start..self.at + to];
                self.at += to + 1;
                return Ok(Quoted { raw, start, escaped });
            }
            escaped = true;
            // What is escaped may be a quote. A message that ends here has no end of the string.
            self.at = (self.at + to + 2).min(self.message.len());
        }
    }

    fn word(&mut self, word: &'static str) -> Result<(), Located> {
        if self.message[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            self.fail(word)
        }
    }

    /// A value that holds no others.
    pub(super) fn scalar(&mut self) -> Result<Scalar<'a>, Located> {
        match self.peek() {
            Some(b'"') => Ok(Scalar::Text(self.quoted()?)),
            Some(b'n') => self.word("null").map(|()| Scalar::Null),
            Some(b't') => self.word("true").map(|()| Scalar::True),
            Some(b'f') => self.word("false").map(|()| Scalar::False),
            Some(b'-' | b'0'..=b'9') => {
                let start = self.at;
                while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
                    self.at += 1;
                }
                Ok(Scalar::Number(&self.message[start..self.at], start))
            }
            _ => self.fail("a value"),
        }
    }

    /// Passes over a value of a field that is not needed.
    pub(super) fn skip(&mut self) -> Result<(), Located> {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                Some(b'{' | b'[') => {
                    self.at += 1;
                    depth += 1;
                }
                Some(b'}' | b']') if depth > 0 => {
                    self.at += 1;
                    depth -= 1;
                }
                Some(b',' | b':') if depth > 0 => self.at += 1,
                _ => {
                    self.scalar()?;
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

/// Appends a string without its escapes.
pub(super) fn unescape(quoted: Quoted<'_>, out: &mut Vec<u8>) -> Result<(), Located> {
    let mut rest = quoted.raw;
    let bad = |rest: &[u8]| (Problem::Syntax("an escape"), quoted.start + quoted.raw.len() - rest.len());
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let simple = match rest.get(1) {
            Some(c @ (b'"' | b'\\' | b'/')) => *c,
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let first = unit(rest).ok_or_else(|| bad(rest))?;
                let (code, length) = match first {
                    0xD800..=0xDBFF => {
                        let second = rest.get(6..).and_then(unit).filter(|u| (0xDC00..=0xDFFF).contains(u));
                        let second = second.ok_or_else(|| bad(rest))?;
                        (0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00), 12)
                    }
                    other => (other, 6),
                };
                let c = char::from_u32(code).ok_or_else(|| bad(rest))?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[length..];
                continue;
            }
            _ => return Err(bad(rest)),
        };
        out.push(simple);
        rest = &rest[2..];
    }
    out.extend_from_slice(rest);
    Ok(())
}

/// The UTF-16 unit of `\uXXXX` at the front.
fn unit(text: &[u8]) -> Option<u32> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |n, digit| Some(n << 4 | char::from(*digit).to_digit(16)?))
}
