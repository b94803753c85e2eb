//! Cutting what was received into whole CopyData messages, without copying them.

use bytes::{Buf, Bytes, BytesMut};

use super::CaptureError;
use crate::lsn::Lsn;

/// Postgres cannot send more in one message.
const MAX_MESSAGE: usize = 1 << 30;
/// Tag and length of a message.
const HEADER: usize = 5;

/// A run of whole messages, as received together.
#[derive(Debug)]
pub struct Chunk(Bytes);

/// A message of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message of the output plugin.
    Data(&'a [u8]),
    /// The server's position: everything before it has been sent.
    Keepalive(Lsn),
}

/// What a scan of the buffer found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Whole messages, if any.
    pub chunk: Option<Chunk>,
    /// The server wants to hear at once.
    pub reply_requested: bool,
    /// The newest position that the server has said.
    pub sent: Lsn,
}

/// Takes all whole messages off the front of `buffer`.
///
/// # Errors
/// An error that the server sent, the end of the stream, or bytes that are not of the protocol. It comes only once
/// what stands before it was handed on.
pub fn scan(buffer: &mut BytesMut) -> Result<Scan, CaptureError> {
    let mut scan = Scan::default();
    let mut at = 0;
    while let Some(header) = buffer.get(at..at + HEADER) {
        // The length counts itself but not the tag.
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if !(4..=MAX_MESSAGE).contains(&length) {
            return Err(malformed(format!("message of {length} bytes")));
        }
        // At once: what counts as its payload may be long in coming, or never end.
        if !is_known(header[0], buffer.get(at + HEADER).copied()) {
            if at > 0 {
                break;
            }
            return Err(malformed(format!("message with tag {:?}", char::from(header[0]))));
        }
        let Some(payload) = buffer.get(at + HEADER..at + 1 + length) else {
            buffer.reserve(at + 1 + length - buffer.len());
            break;
        };
        match header[0] {
            b'd' => match payload.first() {
                Some(b'w') if payload.len() >= 25 => scan.sent = scan.sent.max(lsn(&payload[1..9])),
                Some(b'k') if payload.len() == 18 => {
                    scan.reply_requested |= payload[17] != 0;
                    scan.sent = scan.sent.max(lsn(&payload[1..9]));
                }
                _ => return Err(malformed("unknown replication message".into())),
            },
            // Hand on what came before it; the next scan begins with it.
            _ if at > 0 => break,
            b'E' => return Err(CaptureError::server("stream changes", payload)),
            b'c' | b'C' => return Err(CaptureError::Ended),
            // Notices and parameter changes say nothing about data.
            b'N' | b'S' => {
                buffer.advance(1 + length);
                continue;
            }
            // Not known, see above.
            tag => return Err(malformed(format!("message with tag {:?}", char::from(tag)))),
        }
        at += 1 + length;
    }
    if at > 0 {
        scan.chunk = Some(Chunk(buffer.split_to(at).freeze()));
    }
    Ok(scan)
}

/// Whether a walsender sends messages with this tag, and of this kind where that has come already.
fn is_known(tag: u8, kind: Option<u8>) -> bool {
    match tag {
        b'd' => kind.is_none_or(|kind| matches!(kind, b'w' | b'k')),
        // An error, the end of the stream or of the command, a notice, a parameter.
        _ => matches!(tag, b'E' | b'c' | b'C' | b'N' | b'S'),
    }
}

impl Chunk {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a chunk holds at least one message.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its messages in order. Their form was checked by [`scan`].
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let length = u32::from_be_bytes(rest.get(1..HEADER)?.try_into().ok()?) as usize;
            let payload = rest.get(HEADER..1 + length)?;
            rest = &rest[1 + length..];
            Some(if payload[0] == b'w' { Frame::Data(&payload[25..]) } else { Frame::Keepalive(lsn(&payload[1..9])) })
        })
    }
}

fn lsn(bytes: &[u8]) -> Lsn {
    Lsn::from_u64(bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
}

fn malformed(what: String) -> CaptureError {
    CaptureError::wire("stream changes")(pgwire_replication::PgWireError::Protocol(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
        [&[tag][..], &(payload.len() as u32 + 4).to_be_bytes(), payload].concat()
    }

    fn keepalive(lsn: u64, reply: u8) -> Vec<u8> {
        message(b'd', &[&b"k"[..], &lsn.to_be_bytes(), &[0; 8], &[reply]].concat())
    }

    fn data(payload: &[u8]) -> Vec<u8> {
        message(b'd', &[&b"w"[..], &[0; 24], payload].concat())
    }

    #[test]
    fn whole_messages_are_taken_and_the_rest_stays() {
        let all = [data(b"abc"), keepalive(7, 1), message(b'N', b"x"), data(b""), keepalive(9, 0)].concat();
        for cut in 0..=all.len() {
            let mut buffer = BytesMut::from(&all[..cut]);
            let mut seen = Vec::new();
            let mut reply = false;
            let mut take = |buffer: &mut BytesMut| {
                while let Some(chunk) = {
                    let found = scan(buffer).unwrap();
                    reply |= found.reply_requested;
                    found.chunk
                } {
                    seen.extend(chunk.frames().map(|f| format!("{f:?}")));
                }
            };
            take(&mut buffer);
            buffer.extend_from_slice(&all[cut..]);
            take(&mut buffer);
            assert_eq!(seen, ["Data([97, 98, 99])", "Keepalive(0/7)", "Data([])", "Keepalive(0/9)"], "cut at {cut}");
            assert!(reply && buffer.is_empty());
        }
    }

    #[test]
    fn an_error_comes_after_what_stands_before_it() {
        let error = message(b'E', b"SERROR\0C57P01\0Mgoing down\0\0");
        let mut buffer = BytesMut::from(&[data(b"x"), error].concat()[..]);
        assert!(scan(&mut buffer).unwrap().chunk.is_some());
        let error = scan(&mut buffer).unwrap_err();
        assert_eq!(error.sqlstate(), Some("57P01"));
    }

    #[test]
    fn garbage_that_announces_a_long_message_is_refused_before_it_has_come() {
        for start in [&b"x\0\x10\0\0"[..], b"\xf7\0\x10\0\0", b"d\0\x10\0\0?"] {
            assert!(scan(&mut BytesMut::from(start)).is_err(), "{start:?}");
            // What stands before it is handed on.
            let mut buffer = BytesMut::from(&[&data(b"a"), start].concat()[..]);
            assert!(scan(&mut buffer).unwrap().chunk.is_some());
            assert!(scan(&mut buffer).is_err(), "{start:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            if let Ok(Scan { chunk: Some(chunk), .. }) = scan(&mut buffer) {
                chunk.frames().count();
            }
        }
    }
}
