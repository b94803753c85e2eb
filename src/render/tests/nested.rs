//! Types nested in each other: texts as Postgres' output functions write them, and the same mutated.

use super::*;
use crate::decode::fuzz::{edited, edits, explore};

/// A value's text and the JSON that it is.
#[derive(Debug, Clone)]
struct Sample {
    text: String,
    json: String,
}

const WORDS: &[&[u8]] = &[
    b"\"\"", b"\\\\", b"\\\"", b"(", b")", b"{", b"}", b"()", b"{}", b"NULL", b",", b"\",\"", b"[0:1]=", b"\xff",
    b"(,)", b"{(,)}",
];

/// Types, those that hold others among them.
fn types() -> impl Strategy<Value = SqlType> {
    let scalar = prop_oneof![
        4 => Just(SqlType::Text),
        1 => Just(SqlType::Integer),
        1 => Just(SqlType::Bool),
        1 => Just(SqlType::Number),
        1 => Just(SqlType::Json),
        1 => Just(SqlType::TimestampTz),
        1 => Just(SqlType::Vector(Box::new(SqlType::Integer))),
    ];
    scalar.prop_recursive(4, 16, 4, |inner| {
        let attribute = ("\\PC{0,4}", inner.clone()).prop_map(|(name, sql_type)| Attribute { name, sql_type });
        prop_oneof![
            (inner, proptest::sample::select(vec![b',', b';'])).prop_map(|(i, d)| SqlType::Array(Box::new(i), d)),
            proptest::collection::vec(attribute, 0..4).prop_map(SqlType::Composite),
        ]
    })
}

/// Values of a type; `None` is null.
fn samples(sql_type: &SqlType) -> BoxedStrategy<Option<Sample>> {
    let same = |text: &str| Sample { text: text.to_owned(), json: text.to_owned() };
    let fixed = |pairs: &[(&str, &str)]| {
        let sample = |(text, json): &(&str, &str)| Sample { text: (*text).to_owned(), json: (*json).to_owned() };
        proptest::sample::select(pairs.iter().map(sample).collect::<Vec<_>>()).boxed()
    };
    let sample = match sql_type {
        SqlType::Text => prop_oneof![any::<String>(), "[nNuUlL(){}\"\\\\,; a\n\u{b}]{0,8}"]
            .prop_map(|text| Sample { json: serde_json::to_string(&text).unwrap(), text })
            .boxed(),
        SqlType::Integer => any::<i64>().prop_map(move |n| same(&n.to_string())).boxed(),
        SqlType::Bool => fixed(&[("t", "true"), ("f", "false")]),
        SqlType::Number => fixed(&[
            ("NaN", "\"NaN\""),
            ("-Infinity", "\"-Infinity\""),
            ("-0", "-0"),
            ("1.50", "1.50"),
            ("1e-45", "1e-45"),
        ]),
        SqlType::Json => {
            proptest::sample::select(vec!["null", " [ ] ", "\"\\\"\\\\\"", "{\"a\": \"(b,{c})\",\n\"d\":[1e400]}"])
                .prop_map(same)
                .boxed()
        }
        SqlType::TimestampTz => fixed(&[
            ("infinity", "\"infinity\""),
            ("2001-02-03 04:05:06.7+00", "\"2001-02-03T04:05:06.7+00:00\""),
            ("0044-03-15 00:00:00+00 BC", "\"0044-03-15T00:00:00+00:00 BC\""),
        ]),
        SqlType::Vector(_) => fixed(&[("", "[]"), ("1", "[1]"), ("-1 0 2", "[-1,0,2]")]),
        SqlType::Array(element, delimiter) => {
            let delimiter = char::from(*delimiter);
            let elements = proptest::collection::vec(samples(element), 0..4);
            // Rows of a second dimension, none for an array of one.
            (elements, 0..3usize, any::<bool>())
                .prop_map(move |(elements, rows, bounds)| {
                    let texts: Vec<Option<String>> =
                        elements.iter().map(|sample| sample.as_ref().map(|sample| sample.text.clone())).collect();
                    let line = json_array(elements.iter().map(json_or_null));
                    let row = array_text(&texts, delimiter);
                    let (text, json) = if rows == 0 || elements.is_empty() {
                        (row, line)
                    } else {
                        let text = vec![row.as_str(); rows].join(&delimiter.to_string());
                        (format!("{{{text}}}"), json_array(vec![line; rows]))
                    };
                    let bounds = if bounds && !elements.is_empty() { "[-1:7][5:6]=" } else { "" };
                    Sample { text: format!("{bounds}{text}"), json }
                })
                .boxed()
        }
        SqlType::Composite(attributes) => {
            let names: Vec<String> =
                attributes.iter().map(|attribute| serde_json::to_string(&attribute.name).unwrap()).collect();
            let fields: Vec<_> = attributes.iter().map(|attribute| samples(&attribute.sql_type)).collect();
            fields
                .prop_map(move |fields| {
                    let texts: Vec<String> =
                        fields.iter().map(|field| field.as_ref().map_or(String::new(), record_field)).collect();
                    let json: Vec<String> = names
                        .iter()
                        .zip(&fields)
                        .map(|(name, field)| format!("{name}:{}", json_or_null(field)))
                        .collect();
                    Sample { text: format!("({})", texts.join(",")), json: format!("{{{}}}", json.join(",")) }
                })
                .boxed()
        }
        other => unreachable!("{other:?} is not made"),
    };
    proptest::option::weighted(0.85, sample).boxed()
}

fn json_or_null(sample: &Option<Sample>) -> String {
    sample.as_ref().map_or("null".to_owned(), |sample| sample.json.clone())
}

fn json_array(elements: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", elements.into_iter().collect::<Vec<_>>().join(","))
}

/// Text as Postgres' `record_out` writes a field that is not null.
fn record_field(sample: &Sample) -> String {
    let text = &sample.text;
    let special = |c: char| matches!(c, '"' | '\\' | '(' | ')' | ',' | '\x0b') || c.is_ascii_whitespace();
    if text.is_empty() || text.contains(special) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
    } else {
        text.clone()
    }
}

fn typed_samples() -> impl Strategy<Value = (SqlType, Option<Sample>)> {
    types().prop_flat_map(|sql_type| {
        let sample = samples(&sql_type);
        (Just(sql_type), sample)
    })
}

#[test]
fn nested_values_render_as_what_they_are() {
    explore("rendered", &typed_samples(), |(sql_type, sample)| {
        let Some(sample) = sample else { return Ok(()) };
        prop_assert_eq!(rendered(&sql_type, sample.text.as_bytes()), Ok(sample.json));
        Ok(())
    });
}

/// Mutated texts are refused and leave what was there before; or they are JSON still.
#[test]
fn mutated_values_are_json_or_refused() {
    let cases = (typed_samples(), typed_samples(), edits(WORDS));
    explore("rendered, mutated", &cases, |((sql_type, sample), (_, other), edits)| {
        // The second one is there to be spliced in.
        let texts = [sample, other].into_iter().flatten().map(|sample| sample.text.into_bytes()).collect();
        for text in edited(texts, &edits) {
            let mut out = b"before".to_vec();
            match render(&mut out, &sql_type, &text) {
                Ok(()) => {
                    let json = std::str::from_utf8(&out[6..]);
                    let parsed = json.map(serde_json::from_str::<&serde_json::value::RawValue>);
                    prop_assert!(matches!(parsed, Ok(Ok(_))), "{:?} of {:?}", String::from_utf8_lossy(&out), text);
                }
                Err(_) => prop_assert_eq!(&out, b"before"),
            }
        }
        Ok(())
    });
}
