//! Valid streams of pgoutput, mutated.

use super::*;
use crate::decode::fuzz::{edited, edits, explore, refused_leave_no_trace};

/// Tags and kinds, names' ends, and the oids of the generated relations.
const WORDS: &[&[u8]] =
    &[b"N", b"K", b"O", b"n", b"u", b"t\0\0\0\x01", b"b", b"\0", b"\0\0\0\x01", b"I\0\0\0\x01N", b"R", b"C"];

/// One message of a stream in which relations 1 to 3 may have been announced.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let oid = || 1..4u32;
    let other = prop_oneof![
        Just(begin()),
        Just(commit()),
        (oid(), 0..5u16).prop_map(|(oid, columns)| relation(oid, columns)),
        proptest::collection::vec(oid(), 0..4).prop_map(|oids| {
            let oids: Vec<u8> = oids.iter().flat_map(|oid| oid.to_be_bytes()).collect();
            [&b"T"[..], &((oids.len() / 4) as u32).to_be_bytes(), &[3], &oids].concat()
        }),
        (any::<bool>(), "[a-z]{0,9}", "\\PC{0,9}").prop_map(|(within, prefix, content)| {
            let length = (content.len() as u32).to_be_bytes();
            [&b"M"[..], &[u8::from(within)], &[7; 8], prefix.as_bytes(), b"\0", &length, content.as_bytes()].concat()
        }),
        Just(b"O\0\0\0\0\0\0\0\x07elsewhere\0".to_vec()),
        Just(b"Y\0\0\0\x07public\0mood\0".to_vec()),
    ];
    let rows = (oid(), values(), 0..6).prop_map(|(oid, [old, new], kind)| {
        let tuple = |values: &[Value]| encode_tuple(&values.iter().map(Value::datum).collect::<Vec<_>>());
        let (old, new) = (tuple(&old), tuple(&new));
        let parts: &[&[u8]] = match kind {
            0 => &[b"I", b"N", &new],
            1 => &[b"U", b"N", &new],
            2 => &[b"U", b"K", &old, b"N", &new],
            3 => &[b"U", b"O", &old, b"N", &new],
            4 => &[b"D", b"K", &old],
            _ => &[b"D", b"O", &old],
        };
        [parts[0], &oid.to_be_bytes(), &parts[1..].concat()].concat()
    });
    prop_oneof![1 => other, 2 => rows]
}

#[test]
fn what_is_refused_leaves_no_trace() {
    let made = proptest::collection::vec(message(), 1..12).prop_map(|mut stream| {
        stream.splice(0..0, [begin(), relation(1, 2), relation(2, 0)]);
        stream
    });
    let streams = prop_oneof![made, proptest::sample::select(fixture::captured())];
    explore("pgoutput", &(streams, edits(WORDS)), |(stream, edits)| {
        let decode = |decoder: &mut Decoder, message: &[u8]| {
            decoder.decode(message).map(|event| fixture::describe(&event)).map_err(|error| error.offset)
        };
        refused_leave_no_trace(Decoder::new, decode, &edited(stream, &edits))
    });
}
