//! Captured streams with the events expected of them, rows that differ from the catalog, and arbitrary bytes.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::decode::pgoutput::tests::fixture;
use crate::entity::{Definition, Shape, StreamedColumn, StreamedTable};

mod mutated;

const INT: u32 = 23;
const TEXT: u32 = 25;

/// `name type position`, with `~` where a value may be left out, and `=` where it is computed when it is read.
fn column(text: &str) -> StreamedColumn {
    let [name, type_oid, position] =
        text.rsplitn(3, ' ').collect::<Vec<_>>()[..].try_into().map(|[p, t, n]: [&str; 3]| [n, t, p]).unwrap();
    StreamedColumn {
        name: name.trim_start_matches(['~', '=']).to_owned(),
        type_oid: type_oid.parse().unwrap(),
        position: position.parse().unwrap(),
        out_of_line: name.starts_with('~'),
        computed: name.starts_with('='),
    }
}

/// A table of schema `public`, or of the one before its first `/`.
fn table(oid: u32, name: &str, columns: &[&str]) -> StreamedTable {
    let (schema, name) = name.split_once('/').unwrap_or(("public", name));
    let columns = columns.iter().map(|text| column(text)).collect();
    StreamedTable { oid, schema: schema.into(), name: name.into(), columns, version: String::new() }
}

fn shape(tables: Vec<StreamedTable>) -> Shape {
    let oid = tables.first().map_or(0, |table| table.oid);
    Shape {
        table_oid: oid,
        columns: vec![],
        key: vec![],
        whole_row: true,
        partitioned: tables.len() > 1,
        version: 0,
        published: Default::default(),
        tables,
        query: None,
    }
}

fn entity(tables: Vec<StreamedTable>) -> Arc<Entity> {
    let (schema, name) = tables.first().map(|table| (table.schema.clone(), table.name.clone())).unwrap_or_default();
    Arc::new(Entity::new(0, Definition::rows("e", &schema, &name), "", shape(tables)))
}

/// The tables of `capture.sh`.
fn captured_tables() -> Vec<Arc<Entity>> {
    let plain = |oid, name, columns: &[&str]| entity(vec![table(oid, name, columns)]);
    vec![
        plain(1, "item", &["id 23 1", "~name 25 2", "~price 1700 3"]),
        plain(2, "whole", &["id 23 1", "~name 25 2"]),
        plain(3, "by_index", &["id 23 1", "~code 25 2"]),
        plain(4, "bare", &["id 23 1"]),
        plain(5, "document", &["id 23 1", "~title 25 2", "~body 25 3"]),
        plain(6, "parent", &["id 23 1"]),
        plain(7, "child", &["id 23 1", "parent 23 2"]),
        plain(8, "beside", &["id 23 1"]),
        plain(9, "person", &["id 23 1", "~name 25 2"]),
        plain(10, "a \"b\" ünï/sélect", &["the, id 23 1", "\" 18 2"]),
        plain(11, "no_columns", &[]),
        plain(
            12,
            "kinds",
            &[
                "id 23 1",
                "~bytes 17 2",
                "yes 16 3",
                "real 700 4",
                "double 701 5",
                "~number 1700 6",
                "~tags 1009 7",
                "oid 26 8",
                "~text 25 10",
                "twice 23 11",
            ],
        ),
        entity(vec![
            table(13, "split", &["id 23 1", "~note 25 2"]),
            table(14, "split_low", &["id 23 1", "~note 25 2"]),
            table(15, "split_high", &["~note 25 2", "id 23 3"]),
            table(16, "split_high_one", &["~note 25 1", "id 23 2"]),
        ]),
    ]
}

fn decoder(entities: Vec<Arc<Entity>>) -> Decoder {
    Decoder::new(entities, false)
}

fn events(decoder: &mut Decoder, message: &[u8]) -> Result<Vec<String>, DecodeError> {
    let mut events = Vec::new();
    decoder.decode(message, &mut |event| events.push(fixture::describe(&event)))?;
    Ok(events)
}

fn lines(text: &str) -> Vec<Vec<u8>> {
    let lines =
        text.lines().take_while(|line| *line != "----").filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.as_bytes().to_vec()).collect()
}

fn captured() -> Vec<(std::path::PathBuf, String)> {
    let paths = std::fs::read_dir(fixture::path("wal2json")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect();
    files.sort();
    files
}

/// Each file of `tests/data/wal2json` is a captured stream: comments with the SQL, one message a line, and behind `----`
/// the expected events. With `REWRITE` set the expectation is written instead of compared.
#[test]
fn captured_streams_decode_as_expected() {
    let mut files = 0;
    for (path, text) in captured() {
        let (input, expected) = text.split_once("----\n").unwrap();
        let mut decoder = decoder(captured_tables());
        let mut said = String::new();
        for message in lines(input) {
            for event in events(&mut decoder, &message).unwrap_or_else(|e| panic!("{e} in {}", path.display())) {
                writeln!(said, "{event}").unwrap();
            }
        }
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, format!("{input}----\n{said}")).unwrap();
        } else {
            assert_eq!(said, expected, "{}", path.display());
        }
        files += 1;
    }
    assert!(files >= 9, "{files} fixtures");
}

/// Every prefix of a captured message of a known table is an error, and leaves the decoder able to take the whole one.
#[test]
fn cut_off_messages_are_refused_without_a_trace() {
    let mut messages = 0;
    for (_, text) in captured() {
        let mut decoder = decoder(captured_tables());
        for message in lines(&text) {
            let elsewhere =
                [&b"\"other\""[..], b"\"stranger\""].iter().any(|n| memchr::memmem::find(&message, n).is_some());
            // Of other tables' rows no more is read than the name.
            for end in (0..message.len()).filter(|_| !elsewhere) {
                let error = events(&mut decoder, &message[..end]).unwrap_err();
                assert!(error.offset <= end, "{error}");
                messages += 1;
            }
            if !elsewhere {
                let longer = [&message[..], b" "].concat();
                let error = events(&mut decoder, &longer).unwrap_err();
                assert_eq!((error.problem, error.offset), (Problem::TrailingBytes(1), message.len()));
            }
            events(&mut decoder, &message).unwrap();
        }
    }
    assert!(messages > 1000, "{messages}");
}

const BEGIN: &[u8] = br#"{"action":"B","xid":9,"timestamp":"2000-01-01 00:00:00+00","lsn":"0/7","nextlsn":"0/8"}"#;

/// What rows of `public.t (id, ~big, plain)` make of it in one transaction.
fn made_of(messages: &[&str]) -> Vec<String> {
    let facts = table(7, "t", &["id 23 1", "~big 25 2", "plain 23 4"]);
    let mut decoder = decoder(vec![entity(vec![facts])]);
    events(&mut decoder, BEGIN).unwrap();
    messages.iter().flat_map(|message| events(&mut decoder, message.as_bytes()).unwrap()).collect()
}

fn row(columns: &[(&str, u32, &str, u32)]) -> String {
    let columns = columns.iter().map(|(name, type_oid, value, position)| {
        format!(r#"{{"name":"{name}","typeoid":{type_oid},"value":{value},"position":{position}}}"#)
    });
    format!("[{}]", columns.collect::<Vec<_>>().join(","))
}

fn change(action: char, columns: &[(&str, u32, &str, u32)]) -> String {
    let identity = r#"[{"name":"id","typeoid":23,"value":1}]"#;
    format!(
        r#"{{"action":"{action}","xid":9,"lsn":"0/6","schema":"public","table":"t","columns":{},"identity":{identity}}}"#,
        row(columns)
    )
}

/// Only a row whose columns are exactly the catalog's bears the relation that entities are made of.
#[test]
fn rows_of_another_shape_bear_a_relation_of_their_own() {
    let (id, big, plain) = (("id", INT, "1", 1), ("big", TEXT, "\"b\"", 2), ("plain", INT, "2", 4));
    let known = |action, columns: &[_]| made_of(&[&change(action, columns)])[0].starts_with("relation 7 ");
    assert!(known('I', &[id, big, plain]));
    assert!(known('U', &[id, big, plain]));
    assert!(known('U', &[id, plain]), "an unchanged value that lies out of line is left out");
    for (what, action, columns) in [
        ("an insert leaves nothing out", 'I', vec![id, plain]),
        ("an update leaves out only what can lie out of line", 'U', vec![id, big]),
        ("renamed", 'U', vec![id, ("huge", TEXT, "\"b\"", 2), plain]),
        ("another type", 'U', vec![id, big, ("plain", TEXT, "\"2\"", 4)]),
        ("dropped and added again", 'U', vec![id, big, ("plain", INT, "2", 5)]),
        ("added", 'U', vec![id, big, plain, ("more", INT, "2", 5)]),
        ("none", 'U', vec![]),
    ] {
        let said = made_of(&[&change(action, &columns)]);
        assert!(said[0].starts_with("relation 0 public.t Index: "), "{what}: {said:?}");
        assert_eq!(said.len(), 2, "{what}: {said:?}");
    }
}

/// It is announced once, and again after the table has been as the catalog says.
#[test]
fn strangers_are_announced_once() {
    let stranger = change('I', &[("id", INT, "1", 1)]);
    let known = change('U', &[("id", INT, "1", 1), ("big", TEXT, "\"b\"", 2), ("plain", INT, "2", 4)]);
    let said = made_of(&[&stranger, &stranger, &known, &known, &stranger]);
    let kinds: Vec<&str> = said.iter().map(|event| &event[..10]).collect();
    let (relation0, relation7) = ("relation 0", "relation 7");
    assert_eq!(
        kinds,
        [relation0, "insert pub", "insert pub", relation7, "update pub", "update pub", relation0, "insert pub"]
    );
    let relation = "relation 0 public.t Index: id 23(-1)";
    assert_eq!(said[..2], [relation.to_owned(), "insert public.t (\"1\")".to_owned()]);
}

/// Unchanged, or dropped: the catalog is asked before anything is made of the row, each time.
#[test]
fn a_value_that_is_left_out_has_its_table_looked_up() {
    let left_out = change('U', &[("id", INT, "1", 1), ("plain", INT, "2", 4)]);
    let said = made_of(&[&left_out, &left_out]);
    let looked_up = |event: &String| event.starts_with("relation 7 ");
    assert_eq!(said.iter().map(looked_up).collect::<Vec<_>>(), [true, true, false, true, false]);
}

/// Identity and row are put together by name, whatever the shape.
#[test]
fn a_stranger_without_its_key_column_keeps_the_old_one() {
    let said = made_of(&[&change('U', &[("plain", INT, "2", 4)])]);
    assert_eq!(said[1], "update public.t key (null, \"1\") to (\"2\", unchanged)");
}

#[test]
fn a_new_shape_is_looked_up_when_its_generation_is_raised() {
    let before = table(7, "t", &["id 23 1"]);
    let entity = entity(vec![before]);
    let mut decoder = decoder(vec![entity.clone()]);
    events(&mut decoder, BEGIN).unwrap();
    let wide = change('I', &[("id", INT, "1", 1), ("b", TEXT, "\"x\"", 2)]);
    let mut first = |wide: &str| events(&mut decoder, wide.as_bytes()).unwrap().remove(0);
    assert!(first(&wide).starts_with("relation 0 "));
    entity.reshape(shape(vec![table(7, "t", &["id 23 1", "~b 25 2"])]));
    entity.raise(crate::entity::Generation(5));
    assert_eq!(first(&wide), "relation 7 public.t Index: id 23(-1), b 25(-1)");
    // Nothing else was changed: the relation is the same, and not announced again.
    entity.raise(crate::entity::Generation(6));
    assert_eq!(first(&wide), "insert public.t (\"1\", \"x\")");
}

#[test]
fn other_tables_are_asked_for_until_they_are_known_to_be_elsewhere() {
    let mut decoder = decoder(captured_tables());
    events(&mut decoder, BEGIN).unwrap();
    let row = br#"{"action":"D","schema":"a\"b","table":"t","identity":[]}"#;
    for _ in 0..2 {
        assert_eq!(events(&mut decoder, row).unwrap(), ["unplaced a\"b.t"]);
    }
    decoder.set_elsewhere("a\"b", "t");
    assert_eq!(events(&mut decoder, row).unwrap(), ["elsewhere"]);
    let emptied = br#"{"action":"T","schema":"public","table":"u"}"#;
    assert_eq!(events(&mut decoder, emptied).unwrap(), ["unplaced public.u"]);
}

fn notice(text: &str) -> Vec<u8> {
    format!("SWARNING\0VWARNING\0C01000\0M{text}\0Fwal2json.c\0L2188\0\0").into_bytes()
}

/// Without an identity wal2json leaves changes out, and says so in a warning.
#[test]
fn warnings_of_changes_that_are_left_out_are_changes() {
    let mut decoder = decoder(captured_tables());
    let mut said = |text: &str| {
        let mut events = Vec::new();
        decoder.notice(&notice(text), &mut |event| events.push(fixture::describe(&event)));
        events
    };
    let text = "no tuple identifier for UPDATE in table \"public\".\"item\"";
    assert_eq!(said(text)[1..], ["untold public.item"]);
    assert_eq!(said(&text.replace("UPDATE", "DELETE")), ["untold public.item"]);
    assert_eq!(said("no old tuple data for DELETE in table \"public\".\"split_low\"")[1..], ["untold public.split"]);
    let odd = "no tuple identifier for UPDATE in table \"a \"b\" ünï\".\"sélect\"";
    assert_eq!(said(odd)[1..], ["untold a \"b\" ünï.sélect"]);
    assert_eq!(said("no tuple identifier for UPDATE in table \"public\".\"stranger\""), ["unplaced public.stranger"]);
    assert_eq!(said("something in table \"public\".\"item\""), [""; 0]);
    assert_eq!(said("no tuple identifier for UPDATE"), [""; 0]);
}

#[test]
fn numbers_that_are_quoted_tell_null_from_not_a_number() {
    let of = |quoted: bool, value: &str| {
        let facts = table(7, "t", &["f 701 1", "~n 1700 2"]);
        let mut decoder = Decoder::new(vec![entity(vec![facts])], quoted);
        events(&mut decoder, BEGIN).unwrap();
        let row = change('I', &[("f", 701, value, 1), ("n", 1700, "null", 2)]);
        events(&mut decoder, row.as_bytes()).unwrap().remove(1)
    };
    assert_eq!(of(true, "\"NaN\""), "insert public.t (\"NaN\", null)");
    assert_eq!(of(false, "null"), "insert public.t (untold, untold)");
    assert_eq!(of(false, "-1e-05"), "insert public.t (\"-1e-05\", untold)");
}

/// A column that is computed when it is read has no value in the log, and reads as null there.
#[test]
fn computed_columns_are_not_told() {
    let facts = table(7, "t", &["id 23 1", "=twice 23 2"]);
    let mut decoder = decoder(vec![entity(vec![facts])]);
    events(&mut decoder, BEGIN).unwrap();
    let row = change('I', &[("id", INT, "1", 1), ("twice", INT, "null", 2)]);
    assert_eq!(events(&mut decoder, row.as_bytes()).unwrap()[1], "insert public.t (\"1\", untold)");
}

#[test]
fn escapes() {
    let row =
        |value: &str| made_of(&[&change('I', &[("id", INT, "1", 1), ("big", TEXT, value, 2), ("plain", INT, "2", 4)])]);
    for (escaped, text) in
        [(r#"a\"\\\/b"#, "a\"\\/b"), (r"\b\f\n\r\t", "\u{8}\u{c}\n\r\t"), (r"\u0001\u00e9\ud83d\ude00.", "\u{1}é😀.")]
    {
        assert_eq!(row(&format!("\"{escaped}\""))[1], format!("insert public.t (\"1\", {text:?}, \"2\")"));
    }
    let mut decoder = decoder(vec![entity(vec![table(7, "t", &["id 23 1"])])]);
    events(&mut decoder, BEGIN).unwrap();
    for bad in [r"\x", r"\u12", r"\ud83d", r"\ud83dx", r"\ud83d\u0041", r"\udc00", r"\uzzzz"] {
        let message = change('I', &[("id", INT, &format!("\"secret{bad}\""), 1)]);
        let error = events(&mut decoder, message.as_bytes()).unwrap_err();
        assert_eq!(error.problem, Problem::Syntax("an escape"), "{bad}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn oids_are_printed_with_a_sign() {
    let facts = table(7, "t", &["id 4294967295 1"]);
    let mut decoder = decoder(vec![entity(vec![facts])]);
    events(&mut decoder, BEGIN).unwrap();
    let row = change('I', &[("id", 1, "\"x\"", 1)]).replace("\"typeoid\":1", "\"typeoid\":-1");
    let row = row.replace(r#","identity":[{"name":"id","typeoid":23,"value":1}]"#, "");
    assert_eq!(events(&mut decoder, row.as_bytes()).unwrap()[1], "insert public.t (\"x\")");
}

#[test]
fn what_may_not_come_is_refused() {
    let problem = |messages: &[&str]| {
        let mut decoder = decoder(captured_tables());
        let mut last = None;
        for message in messages {
            last = events(&mut decoder, message.as_bytes()).err();
        }
        last.map(|error| (error.message, error.problem))
    };
    let begin = std::str::from_utf8(BEGIN).unwrap();
    let row = r#"{"action":"I","schema":"public","table":"bare","columns":[{"name":"id","value":1,"position":1}]}"#;
    assert_eq!(problem(&[row]), Some(("Insert", Problem::NoTransaction)));
    assert_eq!(problem(&[begin, begin]), Some(("Begin", Problem::TransactionOpen)));
    assert_eq!(problem(&[begin, row]), Some(("Insert", Problem::TooOld("typeoid"))));
    assert_eq!(problem(&[r#"{"action":"C","nextlsn":"0/8"}"#]), Some(("Commit", Problem::NoTransaction)));
    assert_eq!(problem(&[r#"{"action":"X"}"#]), Some(("unknown", Problem::UnknownTag(b'X'))));
    assert_eq!(problem(&[r#"{"change":[]}"#]), Some(("unknown", Problem::MissingField("action"))));
    assert_eq!(problem(&[r#"{"action":"B","xid":1}"#]), Some(("Begin", Problem::MissingField("lsn"))));
    let message = r#"{"action":"M","transactional":true,"prefix":"p","content":""}"#;
    assert_eq!(problem(&[message]), Some(("Message", Problem::NoTransaction)));
    let late = begin.replace("2000-01-01 00:00:00+00", "infinity");
    assert_eq!(problem(&[&late]), Some(("Begin", Problem::CommitTime)));
    assert_eq!(
        problem(&[begin, r#"{"action":"I","schema":"public"}"#]),
        Some(("Insert", Problem::MissingField("table")))
    );
}

#[test]
fn the_beginning_of_a_message_says_what_it_is_of() {
    let mut decoder = decoder(captured_tables());
    let mut cut = |head: &str| {
        let mut said = Vec::new();
        let done = decoder.cut(head.as_bytes(), &mut |event| said.push(fixture::describe(&event)));
        done.map(|()| said.join("; ")).map_err(|error| error.problem)
    };
    let row = |table: &str| format!(r#"{{"action":"I","schema":"public","table":"{table}","columns":[{{"name":"i"#);
    assert_eq!(cut(&row("item")), Err(Problem::NoTransaction));
    let message = r#"{"action":"M","transactional":false,"prefix":"walcache","content":"{"#;
    assert_eq!(cut(message).as_deref(), Ok("large message walcache"));
    assert_eq!(cut(&message[..50]).as_deref(), Ok(""), "a prefix that is cut off itself");
    assert_eq!(cut(r#"{"action":"C","#), Err(Problem::UnknownTag(b'C')));
    assert!(cut("").is_err());
    let begin = r#"{"action":"B","xid":7,"timestamp":"2026-11-22 10:00:00.000000+00","lsn":"0/10","nextlsn":"0/20"}"#;
    decoder.decode(begin.as_bytes(), &mut |_| {}).unwrap();
    let mut said = Vec::new();
    for head in [row("item"), row("item"), row("nobody")] {
        decoder.cut(head.as_bytes(), &mut |event| said.push(fixture::describe(&event))).unwrap();
    }
    assert_eq!(said[1..], ["large change of public.item", "large change of public.item", "unplaced public.nobody"]);
    assert!(said[0].starts_with("relation"), "{said:?}");
}

/// A content that is cut in the middle of a character is still a content: anybody may write one.
#[test]
fn messages_may_hold_any_bytes() {
    let message =
        [br#"{"action":"M","transactional":false,"prefix":"walcache","content":"a"#, &b"\xff\xfe\"}"[..]].concat();
    let mut content = Vec::new();
    decoder(vec![])
        .decode(&message, &mut |event| {
            if let Event::Message(message) = event {
                content = message.content.to_vec();
            }
        })
        .unwrap();
    assert_eq!(content, b"a\xff\xfe");
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

    /// Any text comes back as it was, whatever had to be escaped.
    #[test]
    fn texts_come_back(text in any::<String>().prop_filter("no NUL in Postgres", |text| !text.contains('\0'))) {
        let value = serde_json::to_string(&text).unwrap();
        let said = made_of(&[&change('I', &[("id", INT, "1", 1), ("big", TEXT, &value, 2), ("plain", INT, "2", 4)])]);
        prop_assert_eq!(&said[1], &format!("insert public.t (\"1\", {text:?}, \"2\")"));
    }
}

/// How much slower it is than pgoutput, for the same rows. The ratio is what counts: tests are not optimized.
///
///     cargo test --lib -- --ignored --nocapture wal2json_beside_pgoutput
#[test]
#[ignore = "a measurement"]
fn wal2json_beside_pgoutput() {
    const ROUNDS: u32 = 50_000;
    let read = |name: &str| std::fs::read_to_string(fixture::path(name)).unwrap();
    let measure = |what: &str, messages: Vec<Vec<u8>>, decode: &mut dyn FnMut(&[u8]) -> bool| {
        let bytes: usize = messages.iter().map(Vec::len).sum();
        let mut rows = 0_u32;
        let began = std::time::Instant::now();
        for _ in 0..ROUNDS {
            rows += messages.iter().map(|message| u32::from(decode(message))).sum::<u32>();
        }
        let rate = f64::from(rows) / began.elapsed().as_secs_f64();
        println!("{what}: {rate:.0} rows/s, {} bytes a row", bytes / (rows / ROUNDS) as usize);
        assert!(rows > ROUNDS);
    };
    let mut ours = decoder(captured_tables());
    measure("wal2json", lines(&read("wal2json/row_changes.txt")), &mut |message| {
        let mut rows = false;
        ours.decode(message, &mut |event| rows |= matches!(event, Event::Change(_))).unwrap();
        rows
    });
    let mut theirs = crate::decode::pgoutput::Decoder::new();
    let text = read("pgoutput/row_changes.txt");
    measure("pgoutput", fixture::messages(text.split("----").next().unwrap()), &mut |message| {
        matches!(theirs.decode(message).unwrap(), Event::Change(_))
    });
}
