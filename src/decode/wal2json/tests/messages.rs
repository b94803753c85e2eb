//! What single messages hold: values, names, contents, and what may not come.

use proptest::prelude::*;

use super::*;

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
    /// Any text comes back as it was, whatever had to be escaped.
    #[test]
    fn texts_come_back(text in any::<String>().prop_filter("no NUL in Postgres", |text| !text.contains('\0'))) {
        let value = serde_json::to_string(&text).unwrap();
        let said = made_of(&[&change('I', &[("id", INT, "1", 1), ("big", TEXT, &value, 2), ("plain", INT, "2", 4)])]);
        prop_assert_eq!(&said[1], &format!("insert public.t (\"1\", {text:?}, \"2\")"));
    }
}
