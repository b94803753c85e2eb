//! Reading of the primitive fields: every length is checked before it is read.

use super::Located;
use crate::decode::Problem;

/// A message and how far it was read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    message: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Reader { message, rest: message }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> usize {
        self.message.len() - self.rest.len()
    }

    /// Fails unless this many bytes are left.
    pub(super) fn demand(&self, wanted: usize) -> Result<(), Located> {
        let left = self.rest.len();
        if wanted <= left { Ok(()) } else { Err((Problem::Short { wanted, left }, self.offset())) }
    }

    /// Fails unless the message was read to its end.
    pub(super) fn end(&self) -> Result<(), Located> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err((Problem::TrailingBytes(left), self.offset())),
        }
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Located> {
        match self.rest.split_at_checked(length) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err((Problem::Short { wanted: length, left: self.rest.len() }, self.offset())),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Located> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err((Problem::Short { wanted: N, left: self.rest.len() }, self.offset())),
        }
    }

    pub(super) fn u8(&mut self) -> Result<u8, Located> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Located> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Located> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Located> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Located> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Located> {
        self.array().map(i64::from_be_bytes)
    }

    /// A signed 32-bit length or count, which must not be negative.
    pub(super) fn length(&mut self) -> Result<usize, Located> {
        let at = self.offset();
        let length = self.i32()?;
        usize::try_from(length).map_err(|_| (Problem::NegativeLength(length), at))
    }

    /// A name that ends with NUL.
    pub(super) fn name(&mut self) -> Result<&'a str, Located> {
        let at = self.offset();
        let end = memchr::memchr(0, self.rest).ok_or((Problem::UnterminatedName, at))?;
        let name = std::str::from_utf8(&self.rest[..end]).map_err(|_| (Problem::InvalidUtf8, at))?;
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }
}
