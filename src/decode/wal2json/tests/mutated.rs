//! Captured streams of wal2json, mutated, and arbitrary bytes.

use proptest::prelude::*;

use super::*;
use crate::decode::fuzz::{edited, edits, explore, refused_leave_no_trace};

const WORDS: &[&[u8]] = &[
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00\\ud83d",
    b"null",
    b"-",
    b"1e999",
    b"18446744073709551616",
    b"\"I\"",
    b"\"M\"",
    b"\"value\":",
    b"\"position\":0,",
    b"\"columns\":[],",
    b"\"identity\":[{\"name\":\"id\",\"typeoid\":23,\"value\":1,\"position\":1}],",
    b"[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b"\xff",
];

#[test]
fn what_is_refused_leaves_no_trace() {
    let streams: Vec<Vec<Vec<u8>>> = captured().iter().map(|(_, text)| lines(text)).collect();
    explore("wal2json", &(proptest::sample::select(streams), edits(WORDS)), |(stream, edits)| {
        let decode = |decoder: &mut Decoder, message: &[u8]| {
            let mut said = String::new();
            let mut each = |event: Event<'_>| said.push_str(&fixture::describe(&event));
            decoder.decode(message, &mut each).map_err(|error| error.offset)?;
            Ok(said)
        };
        refused_leave_no_trace(|| decoder(captured_tables()), decode, &edited(stream, &edits))
    });
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..6)) {
        let mut decoder = decoder(captured_tables());
        for message in messages {
            let _ = decoder.decode(&message, &mut |_| {});
            decoder.notice(&message, &mut |_| {});
        }
    }

    /// Bytes of a captured stream changed at random: an error or an event, and never a panic.
    #[test]
    fn mutated_streams_never_panic(
        file in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let files = captured();
        let mut messages = lines(&files[file.index(files.len())].1);
        for (message, at, byte) in changes {
            let at_message = message.index(messages.len());
            let message = &mut messages[at_message];
            let at = at.index(message.len());
            message[at] = byte;
        }
        let shortened = cut.index(messages.len());
        let length = cut.index(messages[shortened].len());
        messages[shortened].truncate(length);
        let mut decoder = decoder(captured_tables());
        for message in messages {
            if let Err(error) = decoder.decode(&message, &mut |_| {}) {
                prop_assert!(error.offset <= message.len());
            }
        }
    }
}
