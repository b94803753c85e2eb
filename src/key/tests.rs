use super::*;
use proptest::prelude::*;

fn column(key_type: KeyType) -> KeyColumn {
    KeyColumn { name: "k".into(), type_oid: 0, key_type, cast: String::new() }
}

#[test]
fn spellings_of_one_value_reach_one_key() {
    let int = KeyType::Integer(i32::MIN.into(), i32::MAX.into());
    let labels = KeyType::Enum(vec!["new".into(), "paid".into()]);
    let cases: &[(&KeyType, &str, Option<&str>)] = &[
        (&int, "042", Some("42")),
        (&int, "+42", Some("42")),
        (&int, "-0", Some("0")),
        (&int, "2147483648", None),
        (&int, "abc", None),
        (&int, "", None),
        (&int, " 42", None),
        (&KeyType::Uuid, "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        (&KeyType::Uuid, "a0eebc999c0b4ef8bb6d6bb9bd380a11", Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        (&KeyType::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g", None),
        (&KeyType::Char(3), "a", Some("a  ")),
        (&KeyType::Char(3), "abcd", None),
        (&KeyType::Bool, "true", Some("t")),
        (&KeyType::Bool, "yes", None),
        (&labels, "paid", Some("paid")),
        (&labels, "gone", None),
        (&KeyType::Date, "2024-02-29", Some("2024-02-29")),
        (&KeyType::Date, "2023-02-29", None),
        (&KeyType::Date, "2023-2-9", None),
        (&KeyType::Timestamp, "2024-02-29T13:05:00.25", Some("2024-02-29 13:05:00.25")),
        (&KeyType::Timestamp, "2024-02-29 13:05:00.250", None),
        (&KeyType::TimestampTz, "2024-02-29T13:05:00Z", Some("2024-02-29 13:05:00+00")),
        (&KeyType::TimestampTz, "2024-02-29 13:05:00+01", None),
        (&KeyType::Numeric(2), "10.50", Some("10.50")),
        (&KeyType::Numeric(2), "10.5", None),
        (&KeyType::Numeric(2), "-0.00", None),
        (&KeyType::Numeric(0), "7", Some("7")),
        (&KeyType::Numeric(0), "7.", None),
    ];
    for (key_type, text, wanted) in cases {
        assert_eq!(key_type.canonical(text).as_deref(), *wanted, "{key_type:?} {text:?}");
    }
}

#[test]
fn requests_decode_once_and_count_parts() {
    let columns = [column(KeyType::Text), column(KeyType::Integer(0, 9))];
    assert_eq!(Key::from_request("a%2Fb%2Cc,3", &columns).unwrap().as_str(), "a/b%2Cc,3");
    assert_eq!(Key::from_request("%252f,3", &columns).unwrap().as_str(), "%252f,3");
    assert_eq!(Key::from_request("a%00,3", &columns), Err(KeyError::Encoding));
    assert_eq!(Key::from_request("%ff,3", &columns), Err(KeyError::Encoding));
    assert_eq!(Key::from_request("100%,3", &columns), Err(KeyError::Encoding));
    assert!(matches!(Key::from_request("a", &columns), Err(KeyError::Parts { found: 1, wanted: 2, .. })));
    let long = "x".repeat(MAX_KEY_BYTES + 1);
    assert_eq!(Key::from_request(&format!("{long},3"), &columns), Err(KeyError::TooLong));
}

#[test]
fn only_keys_that_requests_reach_are_read_back() {
    let columns = [column(KeyType::Text), column(KeyType::Integer(0, 99))];
    for stored in ["a,3", "a/b%2Cc,42", ",0", "%25,7", "é,1", "%0A,1"] {
        assert_eq!(Key::from_stored(stored, &columns).unwrap().as_str(), stored);
    }
    for foreign in ["a", "a,03", "a,x", "a,3,4", "a%2c,3", "%41,3", "\n,3", "%,3", "%00,3", "a,100"] {
        assert_eq!(Key::from_stored(foreign, &columns), None, "{foreign}");
    }
}

proptest! {
    #[test]
    fn encoding_is_injective(a in proptest::collection::vec("[a%,\\x00-\\x1f2Cé]{0,6}", 2), b in proptest::collection::vec("[a%,2Cé]{0,6}", 2)) {
        let encode = |parts: &[String]| {
            let mut out = Vec::new();
            push_part(&mut out, parts[0].as_bytes());
            out.push(b',');
            push_part(&mut out, parts[1].as_bytes());
            out
        };
        prop_assert_eq!(encode(&a) == encode(&b), a == b);
        let key = String::from_utf8(encode(&a)).unwrap();
        prop_assert_eq!(parts(&key).map(Cow::into_owned).collect::<Vec<_>>(), a);
    }
}
