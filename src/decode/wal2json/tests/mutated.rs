//! Captured streams of wal2json, mutated.

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
