//! Captured streams with the events expected of them, hand-made faults, and arbitrary bytes.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

pub(crate) mod fixture;
mod mutated;

/// Each file of `tests/data/pgoutput` is a captured stream: comments with the SQL, one message in hex a line, and
/// behind `----` the expected events. With `REWRITE` set the expectation is written instead of compared.
#[test]
fn captured_streams_decode_as_expected() {
    let mut files = 0;
    for entry in std::fs::read_dir(fixture::path("pgoutput")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let (input, expected) = text.split_once("----\n").unwrap();
        let mut decoder = Decoder::new();
        let mut events = String::new();
        for message in fixture::messages(input) {
            writeln!(events, "{}", fixture::describe(&decoder.decode(&message).unwrap())).unwrap();
        }
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, format!("{input}----\n{events}")).unwrap();
        } else {
            assert_eq!(events, expected, "{}", path.display());
        }
        files += 1;
    }
    assert!(files >= 8, "{files} fixtures");
}

/// Every prefix of a captured message is an error, and leaves the decoder able to take the whole one.
#[test]
fn cut_off_messages_are_refused_without_a_trace() {
    for stream in fixture::captured() {
        let mut decoder = Decoder::new();
        for message in stream {
            for end in 0..message.len() {
                let error = decoder.decode(&message[..end]).unwrap_err();
                assert!(error.offset <= end, "{error}");
            }
            let longer = [&message[..], &[0]].concat();
            let error = decoder.decode(&longer).unwrap_err();
            assert_eq!((error.problem, error.offset), (Problem::TrailingBytes(1), message.len()));
            decoder.decode(&message).unwrap();
        }
    }
}

fn begin() -> Vec<u8> {
    [&b"B"[..], &7u64.to_be_bytes(), &1_000_000i64.to_be_bytes(), &9u32.to_be_bytes()].concat()
}

fn commit() -> Vec<u8> {
    [&b"C\0"[..], &7u64.to_be_bytes(), &8u64.to_be_bytes(), &1_000_000i64.to_be_bytes()].concat()
}

/// A relation of columns of type text, all but the first outside of its identity.
fn relation(oid: u32, columns: u16) -> Vec<u8> {
    let mut message = [&b"R"[..], &oid.to_be_bytes(), b"public\0t\0d", &columns.to_be_bytes()].concat();
    for i in 0..columns {
        message.push(u8::from(i == 0));
        message.extend_from_slice(format!("c{i}\0").as_bytes());
        message.extend_from_slice(&25u32.to_be_bytes());
        message.extend_from_slice(&(-1i32).to_be_bytes());
    }
    message
}

fn encode_tuple(tuple: &[Datum<'_>]) -> Vec<u8> {
    let mut out = u16::try_from(tuple.len()).unwrap().to_be_bytes().to_vec();
    for datum in tuple {
        match datum {
            Datum::Null => out.push(b'n'),
            Datum::Unchanged => out.push(b'u'),
            Datum::Untold => unreachable!("pgoutput tells every value"),
            Datum::Text(text) => {
                out.push(b't');
                out.extend_from_slice(&i32::try_from(text.len()).unwrap().to_be_bytes());
                out.extend_from_slice(text);
            }
        }
    }
    out
}

fn row(tag: u8, oid: u32, tuples: &[(u8, &[Datum<'_>])]) -> Vec<u8> {
    let mut message = [&[tag][..], &oid.to_be_bytes()].concat();
    for (kind, tuple) in tuples {
        message.push(*kind);
        message.extend_from_slice(&encode_tuple(tuple));
    }
    message
}

/// A decoder inside a transaction that knows relation 1, of two columns.
fn prepared() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.decode(&begin()).unwrap();
    decoder.decode(&relation(1, 2)).unwrap();
    decoder
}

#[test]
fn transactions_are_told_from_their_frames() {
    let mut decoder = Decoder::new();
    let expected = Event::Begin { xid: 9, commit_lsn: Lsn::from_u64(7), commit_micros: 946_684_801_000_000 };
    assert_eq!(decoder.decode(&begin()).unwrap(), expected);
    let error = decoder.decode(&begin()).unwrap_err();
    assert_eq!(error, DecodeError { message: "Begin", offset: 0, problem: Problem::TransactionOpen });
    assert_eq!(error.to_string(), "decode Begin message: a transaction is open already, at byte 0");
    assert_eq!(decoder.decode(&commit()).unwrap(), Event::Commit { end_lsn: Lsn::from_u64(8) });

    let truncate = [&b"T"[..], &0u32.to_be_bytes(), &[0]].concat();
    let transactional = [&b"M\x01"[..], &[0; 8], b"p\0", &[0; 4]].concat();
    for message in [commit(), row(b'I', 1, &[]), row(b'U', 1, &[]), row(b'D', 1, &[]), truncate, transactional] {
        assert_eq!(decoder.decode(&message).unwrap_err().problem, Problem::NoTransaction);
    }
    let beside = [&b"M\x00"[..], &[0; 8], b"p\0", &[0; 4]].concat();
    let message = Message { transactional: false, prefix: "p", content: b"" };
    assert_eq!(decoder.decode(&beside).unwrap(), Event::Message(message));
}

#[test]
fn each_fault_is_named_with_its_place() {
    let two = [Datum::Text(b"x"), Datum::Null];
    let insert = row(b'I', 1, &[(b'N', &two)]);
    let patched = |at: usize, bytes: &[u8]| {
        let mut message = insert.clone();
        message[at..at + bytes.len()].copy_from_slice(bytes);
        message
    };
    let kind = |what, found| Problem::UnknownKind { what, found };
    let mut late = begin();
    late[9..17].copy_from_slice(&i64::MAX.to_be_bytes());
    let mut flagged = commit();
    flagged[1] = 2;
    let mut replident = relation(1, 0);
    replident[14] = b'x';
    let bad_names = [&b"R"[..], &[0; 4], b"\xff\0"].concat();
    for (message, offset, problem) in [
        (vec![], 0, Problem::Short { wanted: 1, left: 0 }),
        (b"S".to_vec(), 0, Problem::UnknownTag(b'S')),
        (patched(1, &2u32.to_be_bytes()), 1, Problem::UnknownRelation(2)),
        (patched(5, b"K"), 5, kind("tuple kind", b'K')),
        (patched(6, &3u16.to_be_bytes()), 6, Problem::ColumnCount { found: 3, wanted: 2 }),
        (patched(8, b"b"), 8, Problem::Binary),
        (patched(8, b"x"), 8, kind("value kind", b'x')),
        (patched(9, &(-1i32).to_be_bytes()), 9, Problem::NegativeLength(-1)),
        (patched(9, &i32::MAX.to_be_bytes()), 13, Problem::Short { wanted: i32::MAX as usize, left: 2 }),
        (row(b'U', 1, &[(b'K', &two), (b'O', &two)]), 15, kind("tuple kind", b'O')),
        (row(b'U', 1, &[(b'X', &two)]), 5, kind("tuple kind", b'X')),
        (row(b'D', 1, &[(b'N', &two)]), 5, kind("tuple kind", b'N')),
        (
            [&b"T"[..], &i32::MAX.to_be_bytes(), &[0]].concat(),
            6,
            Problem::Short { wanted: i32::MAX as usize * 4, left: 0 },
        ),
        ([&b"T"[..], &(-5i32).to_be_bytes(), &[0]].concat(), 1, Problem::NegativeLength(-5)),
        ([&b"T"[..], &1u32.to_be_bytes(), &[0], &3u32.to_be_bytes()].concat(), 6, Problem::UnknownRelation(3)),
        ([&b"R"[..], &[0; 4], b"a\0b\0d\xff\xff"].concat(), 12, Problem::Short { wanted: 655_350, left: 0 }),
        (replident, 14, kind("replica identity", b'x')),
        (bad_names, 5, Problem::InvalidUtf8),
        (b"Y\0\0\0\0abc".to_vec(), 5, Problem::UnterminatedName),
        (flagged, 1, kind("commit flags", 2)),
    ] {
        let error = prepared().decode(&message).unwrap_err();
        assert_eq!((error.offset, error.problem), (offset, problem), "{message:02x?}");
    }
    let error = Decoder::new().decode(&late).unwrap_err();
    assert_eq!((error.offset, error.problem), (9, Problem::CommitTime));
}

#[test]
fn a_relation_announced_again_takes_the_place_of_the_old_one() {
    let mut decoder = prepared();
    decoder.decode(&row(b'I', 1, &[(b'N', &[Datum::Null; 2])])).unwrap();
    let Event::Relation(announced) = decoder.decode(&relation(1, 3)).unwrap() else { panic!("not a relation") };
    assert_eq!(announced.columns.len(), 3);
    assert!(decoder.decode(&row(b'I', 1, &[(b'N', &[Datum::Null; 2])])).is_err());
    // Two relations in turn: the shortcut for the last one must not mix them up.
    decoder.decode(&relation(2, 1)).unwrap();
    for (oid, columns) in [(1, 3), (2, 1), (1, 3), (1, 3), (2, 1)] {
        let tuple = vec![Datum::Unchanged; columns];
        let message = row(b'I', oid, &[(b'N', &tuple)]);
        let Event::Change(Change::Insert { relation, new }) = decoder.decode(&message).unwrap() else {
            panic!("not an insert")
        };
        assert_eq!((relation.oid, new), (oid, tuple));
    }
}

#[derive(Debug, Clone)]
enum Value {
    Null,
    Unchanged,
    Text(Vec<u8>),
}

impl Value {
    fn datum(&self) -> Datum<'_> {
        match self {
            Value::Null => Datum::Null,
            Value::Unchanged => Datum::Unchanged,
            Value::Text(text) => Datum::Text(text),
        }
    }
}

fn values() -> impl Strategy<Value = [Vec<Value>; 2]> {
    let value = prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Text)
    ];
    (0usize..30).prop_flat_map(move |columns| {
        let tuple = proptest::collection::vec(value.clone(), columns);
        [tuple.clone(), tuple]
    })
}

proptest! {
    #[test]
    fn tuples_read_back_as_they_were_written([old, new] in values()) {
        let old: Vec<_> = old.iter().map(Value::datum).collect();
        let new: Vec<_> = new.iter().map(Value::datum).collect();
        let mut decoder = Decoder::new();
        decoder.decode(&begin()).unwrap();
        let Event::Relation(relation) = decoder.decode(&relation(5, new.len() as u16)).unwrap() else { panic!() };
        let relation = || Arc::clone(&relation);
        for (message, expected) in [
            (row(b'I', 5, &[(b'N', &new)]), Change::Insert { relation: relation(), new: new.clone() }),
            (
                row(b'U', 5, &[(b'N', &new)]),
                Change::Update { relation: relation(), old: OldTuple::None, new: new.clone() },
            ),
            (
                row(b'U', 5, &[(b'K', &old), (b'N', &new)]),
                Change::Update { relation: relation(), old: OldTuple::Key(old.clone()), new: new.clone() },
            ),
            (
                row(b'U', 5, &[(b'O', &old), (b'N', &new)]),
                Change::Update { relation: relation(), old: OldTuple::Full(old.clone()), new: new.clone() },
            ),
            (row(b'D', 5, &[(b'K', &old)]), Change::Delete { relation: relation(), old: OldTuple::Key(old.clone()) }),
            (row(b'D', 5, &[(b'O', &old)]), Change::Delete { relation: relation(), old: OldTuple::Full(old.clone()) }),
        ] {
            prop_assert_eq!(decoder.decode(&message).unwrap(), Event::Change(expected));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(messages in proptest::collection::vec(
        (proptest::sample::select(b"BCDIMORTUYxS".to_vec()), proptest::collection::vec(any::<u8>(), 0..80)), 1..8,
    )) {
        let mut decoder = prepared();
        for (tag, body) in messages {
            let message = [&[tag][..], &body].concat();
            if let Err(error) = decoder.decode(&message) {
                prop_assert!(error.offset <= message.len());
            }
        }
    }

    #[test]
    fn mutated_streams_never_panic(
        stream in proptest::sample::select(fixture::captured()),
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>(), any::<u8>(), 0..3), 1..12),
    ) {
        let mut stream = stream;
        for (message, at, byte, how) in edits {
            let message = message.index(stream.len());
            let at = at.index(stream[message].len().max(1));
            match how {
                0 if at < stream[message].len() => stream[message][at] = byte,
                1 if at < stream[message].len() => { stream[message].remove(at); }
                2 => stream[message].insert(at, byte),
                _ => {}
            }
        }
        let mut decoder = Decoder::new();
        for message in &stream {
            let _ = decoder.decode(message);
        }
    }
}

#[test]
fn the_beginning_of_a_message_says_what_it_is_of() {
    let relation = [&b"R"[..], &7u32.to_be_bytes(), b"public\0items\0d\0\0"].concat();
    let begin = [&b"B"[..], &[0; 16], &[0, 0, 0, 9]].concat();
    let mut decoder = Decoder::new();
    let row = |tag: u8, oid: u32| [&[tag][..], &oid.to_be_bytes(), b"N\0\x01t"].concat();
    assert_eq!(decoder.cut(&row(b'I', 7)).unwrap_err().problem, Problem::NoTransaction);
    decoder.decode(&relation).unwrap();
    decoder.decode(&begin).unwrap();
    for tag in *b"IUD" {
        let Event::LargeChange(found) = decoder.cut(&row(tag, 7)).unwrap() else { panic!("{tag}") };
        assert_eq!(found.name, "items");
    }
    assert_eq!(decoder.cut(&row(b'I', 8)).unwrap_err().problem, Problem::UnknownRelation(8));
    let message = [&b"M\x01"[..], &[0; 8], b"walcache\0\0\x10\0\0{"].concat();
    assert_eq!(decoder.cut(&message).unwrap(), Event::LargeMessage("walcache"));
    assert_eq!(decoder.cut(&message[..12]).unwrap(), Event::Nothing, "a prefix that is cut off itself");
    assert_eq!(decoder.cut(b"C").unwrap_err().problem, Problem::UnknownTag(b'C'));
    assert!(decoder.cut(b"").is_err());
}
