//! Postgres as the oracle, faults, and array texts made by Postgres' rules.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::change::{Change, Datum, Event};
use crate::decode::pgoutput::{Decoder, tests::fixture};
use crate::sqltype::{Attribute, TypeFacts};

mod nested;

fn rendered(sql_type: &SqlType, text: &[u8]) -> Result<String, RenderError> {
    let mut out = Vec::new();
    render(&mut out, sql_type, text).map(|()| String::from_utf8(out).unwrap())
}

fn array(element: SqlType) -> SqlType {
    SqlType::Array(Box::new(element), b',')
}

fn object(attributes: &[(&str, SqlType)]) -> SqlType {
    let attribute =
        |(name, sql_type): &(&str, SqlType)| Attribute { name: (*name).to_owned(), sql_type: sql_type.clone() };
    SqlType::Composite(attributes.iter().map(attribute).collect())
}

fn captured_facts() -> HashMap<u32, TypeFacts> {
    let text = std::fs::read_to_string(fixture::path("types/facts.txt")).unwrap();
    let facts = text.lines().map(|line| {
        let facts: serde_json::Value = serde_json::from_str(line).unwrap();
        // Postgres writes oids as strings.
        let oid = |value: &serde_json::Value| value.as_str().unwrap().parse().unwrap();
        let byte = |name: &str| facts[name].as_str().unwrap().as_bytes()[0];
        let list = |name: &str| facts[name].as_array().unwrap().clone();
        let names = list("attribute_names").into_iter().map(|name| name.as_str().unwrap().to_owned());
        let this = TypeFacts {
            typtype: byte("typtype"),
            base: oid(&facts["base"]),
            element: oid(&facts["element"]),
            delimiter: byte("delimiter"),
            has_json_cast: facts["has_json_cast"].as_bool().unwrap(),
            attributes: names.zip(list("attribute_types").iter().map(oid)).collect(),
        };
        (oid(&facts["oid"]), this)
    });
    facts.collect()
}

/// The rows of `types.sql` as Postgres sent them, rendered, against what `row_to_json` made of them there.
#[test]
fn every_type_renders_as_row_to_json_does() {
    let oracle = std::fs::read_to_string(fixture::path("types/json.txt")).unwrap();
    let mut oracle: HashMap<[String; 3], String> = oracle
        .lines()
        .map(|line| {
            let [table, id, column, json] = line.splitn(4, '\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            ([table, id, column].map(str::to_owned), serde_json::from_str(json).unwrap())
        })
        .collect();
    let facts = captured_facts();
    let mut decoder = Decoder::new();
    let mut refetched = 0;
    for message in fixture::messages(&std::fs::read_to_string(fixture::path("types/stream.txt")).unwrap()) {
        let Event::Change(Change::Insert { relation, new }) = decoder.decode(&message).unwrap() else { continue };
        let Datum::Text(id) = new[0] else { panic!("no id") };
        for (column, datum) in relation.columns.iter().zip(&new) {
            let sql_type = SqlType::of(column.type_oid, &facts);
            if relation.name == "types_refetched" && column.name != "id" {
                assert!(sql_type.is_err(), "{}", column.name);
                refetched += 1;
                continue;
            }
            let sql_type = sql_type.unwrap();
            let json = match datum {
                Datum::Text(text) => rendered(&sql_type, text),
                Datum::Null => Ok("null".to_owned()),
                Datum::Unchanged | Datum::Untold => panic!("{datum:?} in an insert"),
            };
            if relation.name.starts_with("types") && relation.name != "types_refetched" {
                let key = [relation.name.clone(), String::from_utf8(id.to_vec()).unwrap(), column.name.clone()];
                let expected = oracle.remove(&key).unwrap_or_else(|| panic!("no oracle for {key:?}"));
                assert_eq!(json.as_ref(), Ok(&expected), "{key:?} of {sql_type:?}: {datum:?}");
            }
        }
    }
    assert_eq!(refetched, 3);
    assert!(oracle.is_empty(), "not in the stream: {oracle:?}");
}

#[test]
fn what_is_not_of_its_type_is_refused() {
    let numbers = array(SqlType::Integer);
    let texts = array(SqlType::Text);
    let pair = object(&[("a", SqlType::Integer), ("b", SqlType::Text)]);
    let cases: &[(&SqlType, &[&str])] = &[
        (&SqlType::Bool, &["", "true", "T", "tt"]),
        (&SqlType::Integer, &["", "-", "+1", "01", "1.0", "1e3", " 1", "--1", "1-", "NaN", "0x1"]),
        (&SqlType::Number, &["", "-", ".5", "1.", "01", "1e", "1e+", "nan", "-NaN", "inf", "1 ", "+1", "1.5.5"]),
        (&SqlType::Json, &["", " ", "{", "{}{}", "[1,]", "nul", "{a:1}", "\"\n\"", "01", "'a'"]),
        (
            &SqlType::Date,
            &[
                "",
                "2001-02-03 ",
                "01-02-03",
                "2001-13-01",
                "2001-00-01",
                "2001-01-32",
                "03.02.2001",
                "Infinity",
                "2001-02-03 AD",
                "2001-02-03 BC BC",
                "12345678-01-01",
                "2001-2-3",
                "2001-02-0",
                "-001-02-03",
                "\"-01-02-03",
            ],
        ),
        (
            &SqlType::Timestamp,
            &[
                "",
                "2001-02-03",
                "2001-02-03T04:05:06",
                "2001-02-03 04:05",
                "2001-02-03 24:00:00",
                "2001-02-03 04:05:06.",
                "2001-02-03 04:05:06.1234567",
                "2001-02-03 04:05:06+00",
                "2001-02-03 04:05:06 ",
                "2001-02-03 04-05-06",
            ],
        ),
        (
            &SqlType::TimestampTz,
            &[
                "",
                "2001-02-03 04:05:06",
                "2001-02-03 04:05:06+01",
                "2001-02-03 04:05:06+00:00",
                "2001-02-03 04:05:06-00",
                "2001-02-03 04:05:06 UTC",
                "+00",
            ],
        ),
        (
            &numbers,
            &[
                "",
                "{",
                "}",
                "{}}",
                "{1",
                "{1,}",
                "{,1}",
                "{,}",
                "1",
                "{1}x",
                "{a}",
                "{1}{2}",
                "{{1},2}",
                "{1,{2}}",
                "{{1},{2,3}}",
                "{{}}",
                "{{1},{}}",
                "{1,2",
                "{null}",
                "{1;2}",
                "{{{{{{{1}}}}}}}",
                "[1:1={1}",
                "[1]={1}",
                "[:1]={1}",
                "[1:]={1}",
                "=",
                "[1:1]",
                "[1:1]{1}",
                "[a:b]={1}",
                "x={1}",
                "{1 }",
                "{{{1}},{2}}",
            ],
        ),
        (&texts, &["{\"}", "{\"a}", "{\"a\\", "{\"a\\\"", "{\"a\"b}", "{a\"b\"}", "{a\\b}", "{\"a\" }", "{a{b}}"]),
        (&SqlType::Vector(Box::new(SqlType::Integer)), &[" ", "1  2", "1 ", " 1", "1,2", "{1}"]),
        (
            &pair,
            &[
                "",
                "(",
                ")",
                "()",
                "(1)",
                "(1,a",
                "1,a)",
                "(1,a))",
                "(1,a) ",
                "((1,a)",
                "(1,a,)",
                "(1,,)",
                "(a,1)",
                "(1,a\"b\")",
                "(1,\"a\"b)",
                "(1,\"a)",
                "(1,\"a\"\")",
                "(1,\"a\\b\")",
                "(1,a\\)",
                "(1,\"\\\")",
                "(1.5,a)",
                "(\"\",a)",
                "{1,a}",
            ],
        ),
        (&SqlType::Composite(vec![]), &["", "(", "(,)", "(1)", "(\"\")", "()x"]),
        (&SqlType::Opaque, &["", "(1,a)"]),
    ];
    for (sql_type, texts) in cases {
        for text in *texts {
            let mut out = b"before".to_vec();
            assert!(render(&mut out, sql_type, text.as_bytes()).is_err(), "{sql_type:?} {text:?}");
            assert_eq!(out, b"before", "{sql_type:?} {text:?}");
        }
    }
    assert!(rendered(&SqlType::Text, b"\xff").is_err());
    assert!(rendered(&SqlType::Json, b"\"\xff\"").is_err());
    assert!(rendered(&array(SqlType::Opaque), b"{1}").is_err());
}

#[test]
fn json_may_be_nested_deeply() {
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    assert_eq!(rendered(&SqlType::Json, deep.as_bytes()), Ok(deep));
}

/// Text as Postgres' `array_out` writes an element.
fn array_element(out: &mut String, element: Option<&str>, delimiter: char) {
    let Some(text) = element else { return out.push_str("NULL") };
    let special =
        |c: char| matches!(c, '{' | '}' | '"' | '\\') || c == delimiter || c.is_ascii_whitespace() || c == '\x0b';
    if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
        out.push('"');
        for c in text.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    } else {
        out.push_str(text);
    }
}

fn array_text(elements: &[Option<String>], delimiter: char) -> String {
    let mut out = "{".to_owned();
    for (i, element) in elements.iter().enumerate() {
        if i > 0 {
            out.push(delimiter);
        }
        array_element(&mut out, element.as_deref(), delimiter);
    }
    out + "}"
}

fn texts() -> impl Strategy<Value = Vec<Option<String>>> {
    let text = prop_oneof![any::<String>(), "[nNuUlL{}\"\\\\,; a\n\u{b}]{0,8}"];
    proptest::collection::vec(proptest::option::of(text), 0..6)
}

fn sql_types() -> impl Strategy<Value = SqlType> {
    let scalar = proptest::sample::select(vec![
        SqlType::Bool,
        SqlType::Integer,
        SqlType::Number,
        SqlType::Json,
        SqlType::Date,
        SqlType::Timestamp,
        SqlType::TimestampTz,
        SqlType::Text,
        SqlType::Opaque,
    ]);
    scalar.prop_recursive(2, 4, 1, |inner| {
        prop_oneof![
            (inner.clone(), proptest::sample::select(b",;\"{}".to_vec()))
                .prop_map(|(i, d)| SqlType::Array(Box::new(i), d)),
            inner.prop_map(|i| SqlType::Vector(Box::new(i))),
        ]
    })
}

proptest! {
    #[test]
    fn strings_escape_to_what_json_reads_back(text in any::<String>()) {
        let json = rendered(&SqlType::Text, text.as_bytes()).unwrap();
        prop_assert!(json.bytes().all(|byte| byte >= b' '));
        prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn array_texts_read_back(elements in texts(), delimiter in proptest::sample::select(vec![',', ';'])) {
        let sql_type = SqlType::Array(Box::new(SqlType::Text), delimiter as u8);
        let json = rendered(&sql_type, array_text(&elements, delimiter).as_bytes()).unwrap();
        prop_assert_eq!(serde_json::from_str::<Vec<Option<String>>>(&json).unwrap(), elements);
    }

    #[test]
    fn arrays_of_two_dimensions_and_of_arrays_read_back(elements in texts(), rows in 1usize..4) {
        prop_assume!(!elements.is_empty());
        let inner = array_text(&elements, ',');
        let dimensions = format!("[0:{}][-5:9]={{{}}}", rows - 1, vec![inner.as_str(); rows].join(","));
        let nested = array_text(&vec![Some(inner); rows], ',');
        for (sql_type, text) in [(array(SqlType::Text), dimensions), (array(array(SqlType::Text)), nested)] {
            let json = rendered(&sql_type, text.as_bytes()).unwrap();
            let read: Vec<Vec<Option<String>>> = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read, vec![elements.clone(); rows]);
        }
    }

    #[test]
    fn whatever_renders_is_json(
        sql_type in sql_types(),
        text in prop_oneof!["[-+0-9a-zA-Z{}\"\\\\,; :.\\[\\]=]{0,24}", "\\{[1tf\",{}]{0,12}\\}", any::<String>()],
    ) {
        if let Ok(json) = rendered(&sql_type, text.as_bytes()) {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok() || sql_type == SqlType::Json, "{}", json);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(sql_type in sql_types(), text in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = rendered(&sql_type, &text);
    }

    #[test]
    fn floats_stand_as_they_are(value in any::<f64>()) {
        let text = format!("{value:e}");
        let json = rendered(&SqlType::Number, text.as_bytes());
        prop_assert_eq!(json, if value.is_finite() { Ok(text) } else { Err(RenderError::Malformed("number")) });
    }
}
