//! Cutting what was received into whole CopyData messages, without copying them.
//!
//! A message may be as large as a row, up to 1 GiB. Of one that is larger than a bound only the beginning is kept, which
//! tells what it is of; the rest is dropped as it comes.

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::CaptureError;
use crate::lsn::Lsn;

/// What was being done when the server reports an error in the middle of the stream.
pub const STREAM: &str = "stream changes";

/// Postgres cannot send more in one message.
const MAX_MESSAGE: usize = 1 << 30;
/// Tag and length of a message.
const HEADER: usize = 5;

/// Tag, position, end and time, before a message of the output plugin.
const DATA_HEADER: usize = 25;
/// What is kept of a message of the output plugin that is too large: more than its names take, also where
/// every character of theirs is escaped.
const HEAD: usize = 1024;
/// Stands in place of the `w` of a message of which only the beginning was kept. No walsender sends it.
const CUT: u8 = b'!';

/// A run of whole messages, as received together.
#[derive(Debug)]
pub struct Chunk {
    bytes: Bytes,
    /// Its share of what may wait, until it is dropped.
    _room: Option<OwnedSemaphorePermit>,
}

/// A message of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message of the output plugin.
    Data(&'a [u8]),
    /// The beginning of a message of the output plugin that is too large.
    Cut(&'a [u8]),
    /// A notice: its fields.
    Notice(&'a [u8]),
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
    /// Bytes of the message that the buffer begins with now, where it has come in part; 0 if that is not known.
    wanted: usize,
}

impl Scan {
    /// Makes room for what comes next, `least` bytes or more. A large message gets a buffer of its own: one that grows
    /// would hold what came before it, too.
    pub fn make_room(&self, buffer: &mut BytesMut, least: usize) {
        if self.wanted <= least {
            buffer.reserve(least);
        } else if buffer.capacity() < self.wanted {
            let mut exact = BytesMut::with_capacity(self.wanted);
            exact.extend_from_slice(buffer);
            *buffer = exact;
        }
    }
}

/// Takes messages off what was received.
#[derive(Debug)]
pub struct Scanner {
    max_message: usize,
    /// Bytes that are still to come of a message that is too large.
    skip: usize,
}

impl Scanner {
    /// Keeps messages of up to `max_message` bytes whole.
    pub fn new(max_message: usize) -> Self {
        Scanner { max_message, skip: 0 }
    }

    /// Takes all whole messages off the front of `buffer`, and the beginning of one that is too large.
    ///
    /// # Errors
    /// An error that the server sent, the end of the stream, or bytes that are not of the protocol. It comes only once
    /// what stands before it was handed on.
    pub fn scan(&mut self, buffer: &mut BytesMut) -> Result<Scan, CaptureError> {
        let skipped = self.skip.min(buffer.len());
        buffer.advance(skipped);
        self.skip -= skipped;
        if self.skip > 0 {
            return Ok(Scan::default());
        }
        scan(buffer, self)
    }
}

fn scan(buffer: &mut BytesMut, scanner: &mut Scanner) -> Result<Scan, CaptureError> {
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
        if header[0] == b'd' && length > scanner.max_message.max(DATA_HEADER + HEAD + 4) {
            let kept = HEADER + DATA_HEADER + HEAD;
            let Some(message) = buffer.get_mut(at..at + kept) else { break };
            if message[HEADER] != b'w' {
                if at > 0 {
                    break;
                }
                return Err(malformed(format!("message of {length} bytes that is no change")));
            }
            scan.sent = scan.sent.max(lsn(&message[HEADER + 1..HEADER + 9]));
            message[1..HEADER].copy_from_slice(&(kept as u32 - 1).to_be_bytes());
            message[HEADER] = CUT;
            scan.chunk = Some(Chunk::new(buffer.split_to(at + kept)));
            // What has come of the rest goes with the next scan.
            scanner.skip = 1 + length - kept;
            return Ok(scan);
        }
        let Some(payload) = buffer.get(at + HEADER..at + 1 + length) else {
            scan.wanted = 1 + length;
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
            // A plugin may say in one what it leaves out.
            b'N' => {}
            // Hand on what came before it; the next scan begins with it.
            _ if at > 0 => break,
            b'E' => return Err(CaptureError::server(STREAM, payload)),
            b'c' | b'C' => return Err(CaptureError::Ended),
            // Parameter changes say nothing about data.
            b'S' => {
                buffer.advance(1 + length);
                continue;
            }
            // Not known, see above.
            tag => return Err(malformed(format!("message with tag {:?}", char::from(tag)))),
        }
        at += 1 + length;
    }
    if at > 0 {
        scan.chunk = Some(Chunk::new(buffer.split_to(at)));
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
    fn new(bytes: BytesMut) -> Self {
        Chunk { bytes: bytes.freeze(), _room: None }
    }

    /// Holds its share of what may wait for as long as it lives.
    pub fn in_room(self, room: OwnedSemaphorePermit) -> Self {
        Chunk { _room: Some(room), ..self }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a chunk holds at least one message.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its messages in order. Their form was checked by [`scan`].
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        let mut rest: &[u8] = &self.bytes;
        std::iter::from_fn(move || {
            let length = u32::from_be_bytes(rest.get(1..HEADER)?.try_into().ok()?) as usize;
            let payload = rest.get(HEADER..1 + length)?;
            let tag = rest[0];
            rest = &rest[1 + length..];
            Some(match (tag, payload[0]) {
                (b'N', _) => Frame::Notice(payload),
                (_, b'w') => Frame::Data(&payload[DATA_HEADER..]),
                (_, CUT) => Frame::Cut(&payload[DATA_HEADER..]),
                _ => Frame::Keepalive(lsn(&payload[1..9])),
            })
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

    fn scan(buffer: &mut BytesMut) -> Result<Scan, CaptureError> {
        Scanner::new(MAX_MESSAGE).scan(buffer)
    }

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
            assert_eq!(
                seen,
                ["Data([97, 98, 99])", "Keepalive(0/7)", "Notice([120])", "Data([])", "Keepalive(0/9)"],
                "cut at {cut}"
            );
            assert!(reply && buffer.is_empty());
        }
    }

    #[test]
    fn of_a_message_that_is_too_large_the_beginning_is_kept() {
        let long: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        let all = [data(b"abc"), data(&long), data(b"def"), data(&long), keepalive(7, 1)].concat();
        for step in [1, 7, 600, 4096, all.len()] {
            let (mut scanner, mut buffer, mut seen) = (Scanner::new(2000), BytesMut::new(), Vec::new());
            for piece in all.chunks(step) {
                buffer.extend_from_slice(piece);
                // As the stream does: until there is no more.
                while let Some(chunk) = scanner.scan(&mut buffer).unwrap().chunk {
                    seen.extend(chunk.frames().map(|frame| match frame {
                        Frame::Cut(head) => {
                            assert_eq!(head, &long[..HEAD]);
                            "cut".to_owned()
                        }
                        other => format!("{other:?}"),
                    }));
                }
                assert!(buffer.len() < 2100, "what is not kept is not held: {}", buffer.len());
            }
            assert_eq!(seen, ["Data([97, 98, 99])", "cut", "Data([100, 101, 102])", "cut", "Keepalive(0/7)"], "{step}");
        }
        let whole = data(&long);
        let mut buffer = BytesMut::from(&whole[..]);
        let chunk = Scanner::new(whole.len()).scan(&mut buffer).unwrap().chunk.unwrap();
        assert_eq!(chunk.frames().collect::<Vec<_>>(), [Frame::Data(&long)], "one within the bound");
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
