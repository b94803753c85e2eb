//! Keys of entries: the canonical, injective text form of a row's key columns.
//!
//! In Redis a key is `{prefix}{entity}:{key}`; `key` is the key columns' Postgres text joined by `,`, with `%`, `,`
//! and ASCII control characters of a part percent-encoded. In a URL each part is percent-encoded once and the commas
//! between parts are literal. A request that spells a value otherwise than Postgres does (`042`, an upper-case uuid)
//! is brought to the canonical form or refused: it never makes a second entry.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The longest key in its encoded form, in bytes: rows with longer keys are not cached, and requests for them refused.
pub const MAX_KEY_BYTES: usize = 16 * 1024;

/// The type of a key column: those whose equal values have exactly one text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyType {
    /// `int2`, `int4`, `int8`, `oid`, with the least and greatest value.
    Integer(i64, i64),
    /// `text`, `varchar` with a deterministic collation.
    Text,
    /// `char(n)`: blank-padded to `n` characters.
    Char(usize),
    /// `uuid`.
    Uuid,
    /// `bool`.
    Bool,
    /// An enum, with its labels.
    Enum(Vec<String>),
    /// `date`.
    Date,
    /// `timestamp`.
    Timestamp,
    /// `timestamptz`, in UTC.
    TimestampTz,
    /// `numeric(p, s)`, with its scale: a numeric without one has many texts for one value.
    Numeric(usize),
}

/// A request's key that can be no key of its entity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The number of parts differs from the number of key columns.
    #[error("the key has {found} part(s), the entity's key has {wanted} column(s): {columns}")]
    Parts {
        /// Parts in the request.
        found: usize,
        /// Columns of the key.
        wanted: usize,
        /// The columns' names, joined by commas.
        columns: String,
    },
    /// A part is not a value of its column's type.
    #[error("key column {column} is {expected}, not {found:?}")]
    Value {
        /// The column's name.
        column: String,
        /// What it takes.
        expected: String,
        /// What was sent, shortened.
        found: String,
    },
    /// Percent-encoding that does not decode to UTF-8, or a NUL character, which no Postgres text can hold.
    #[error("the key does not decode to text: it must be UTF-8, percent-encoded once, without NUL")]
    Encoding,
    /// Longer than [`MAX_KEY_BYTES`].
    #[error("the key is longer than {MAX_KEY_BYTES} bytes")]
    TooLong,
}

impl KeyError {
    fn parts(found: usize, columns: &[KeyColumn]) -> Self {
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        KeyError::Parts { found, wanted: columns.len(), columns: names.join(",") }
    }
}

/// A key column as its entity resolved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// The column's name.
    pub name: String,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// Its type, as far as keys are concerned.
    pub key_type: KeyType,
    /// The type's schema-qualified, quoted name without modifier, for casts in SQL: a cast to `varchar(n)` would cut
    /// values off.
    pub cast: String,
}

/// An entry's canonical key within its entity, encoded as it stands in Redis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Reads a key as it stands in a URL's last path segment (or in a batch request).
    ///
    /// # Errors
    /// [`KeyError`] names the part that cannot be a key of an entity with these key columns.
    pub fn from_request(segment: &str, columns: &[KeyColumn]) -> Result<Key, KeyError> {
        if segment.len() > 3 * MAX_KEY_BYTES {
            return Err(KeyError::TooLong);
        }
        let found = segment.split(',').count();
        if found != columns.len() {
            return Err(KeyError::parts(found, columns));
        }
        Key::canonical(segment.split(',').map(decode), columns)
    }

    /// Makes a key of the values of its columns, one by one: as they are, not encoded.
    ///
    /// # Errors
    /// As [`Key::from_request`].
    pub fn from_values(values: &[Cow<'_, str>], columns: &[KeyColumn]) -> Result<Key, KeyError> {
        if values.len() != columns.len() {
            return Err(KeyError::parts(values.len(), columns));
        }
        let checked = |value: &Cow<'_, str>| if value.contains('\0') { Err(KeyError::Encoding) } else { Ok(()) };
        Key::canonical(values.iter().map(|value| checked(value).map(|()| Cow::Borrowed(value.as_ref()))), columns)
    }

    /// Brings as many values as there are columns to their canonical form.
    fn canonical<'a>(
        values: impl Iterator<Item = Result<Cow<'a, str>, KeyError>>,
        columns: &[KeyColumn],
    ) -> Result<Key, KeyError> {
        let mut key = Vec::new();
        for (i, (value, column)) in values.zip(columns).enumerate() {
            let text = value?;
            let canonical = column.key_type.canonical(&text).ok_or_else(|| KeyError::Value {
                column: column.name.clone(),
                expected: column.key_type.to_string(),
                found: text.chars().take(60).collect(),
            })?;
            if i > 0 {
                key.push(b',');
            }
            push_part(&mut key, canonical.as_bytes());
            if key.len() > MAX_KEY_BYTES {
                return Err(KeyError::TooLong);
            }
        }
        // Only ASCII was replaced, by ASCII: what was UTF-8 still is.
        String::from_utf8(key).map(|key| Key(key.into_boxed_str())).map_err(|_| KeyError::Encoding)
    }

    /// Reads back a key as it stands in Redis; `None` if no request's key is brought to this form.
    pub fn from_stored(encoded: &str, columns: &[KeyColumn]) -> Option<Key> {
        if encoded.len() > MAX_KEY_BYTES || encoded.split(',').count() != columns.len() {
            return None;
        }
        let mut again = Vec::with_capacity(encoded.len());
        for (i, (part, column)) in encoded.split(',').zip(columns).enumerate() {
            let text = decode(part).ok()?;
            let canonical = column.key_type.canonical(&text)?;
            if i > 0 {
                again.push(b',');
            }
            push_part(&mut again, canonical.as_bytes());
        }
        (again == encoded.as_bytes()).then(|| Key(encoded.into()))
    }

    /// The encoded key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key columns' values of an encoded key, in Postgres' text form.
pub fn parts(encoded: &str) -> impl Iterator<Item = Cow<'_, str>> {
    // What was encoded from UTF-8 decodes to UTF-8.
    encoded.split(',').map(|part| percent_decode_str(part).decode_utf8_lossy())
}

/// Appends the encoded form of one part, given in Postgres' text form. Bytes of 0x80 and above stay as they are.
pub fn push_part(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &b in text {
        if b < 0x20 || matches!(b, 0x7F | b'%' | b',') {
            out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        } else {
            out.push(b);
        }
    }
}

fn decode(part: &str) -> Result<Cow<'_, str>, KeyError> {
    let bytes = part.as_bytes();
    for (i, _) in bytes.iter().enumerate().filter(|(_, b)| **b == b'%') {
        let hex = bytes.get(i + 1..i + 3).ok_or(KeyError::Encoding)?;
        if !hex.iter().all(u8::is_ascii_hexdigit) {
            return Err(KeyError::Encoding);
        }
    }
    let text = percent_decode_str(part).decode_utf8().map_err(|_| KeyError::Encoding)?;
    if text.contains('\0') { Err(KeyError::Encoding) } else { Ok(text) }
}

impl KeyType {
    /// The one text form that Postgres' output function gives for the value that `text` spells; `None` if it is none.
    pub fn canonical<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        match self {
            KeyType::Integer(least, greatest) => {
                let value: i64 = text.parse().ok()?;
                (least..=greatest).contains(&&value).then(|| value.to_string().into())
            }
            KeyType::Text => Some(text.into()),
            KeyType::Char(n) => {
                let bare = text.trim_end_matches(' ');
                let missing = n.checked_sub(bare.chars().count())?;
                Some(format!("{bare}{}", " ".repeat(missing)).into())
            }
            KeyType::Uuid => canonical_uuid(text).map(Cow::from),
            KeyType::Bool => match text {
                "t" | "true" => Some("t".into()),
                "f" | "false" => Some("f".into()),
                _ => None,
            },
            KeyType::Enum(labels) => labels.iter().any(|label| label == text).then(|| text.into()),
            KeyType::Date => (is_infinity(text) || is_date(text)).then(|| text.into()),
            KeyType::Timestamp => canonical_timestamp(text),
            KeyType::TimestampTz => {
                if is_infinity(text) {
                    return Some(text.into());
                }
                let bare = text.strip_suffix("+00").or_else(|| text.strip_suffix('Z'))?;
                canonical_timestamp(bare).map(|t| format!("{t}+00").into())
            }
            KeyType::Numeric(scale) => is_canonical_numeric(text, *scale).then(|| text.into()),
        }
    }
}

impl std::fmt::Display for KeyType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeyType::Integer(least, greatest) => write!(f, "an integer from {least} to {greatest}"),
            KeyType::Text => write!(f, "text"),
            KeyType::Char(n) => write!(f, "text of at most {n} characters"),
            KeyType::Uuid => write!(f, "a uuid"),
            KeyType::Bool => write!(f, "true or false"),
            KeyType::Enum(labels) => write!(f, "one of {}", labels.join(", ")),
            KeyType::Date => write!(f, "a date like 2024-02-29"),
            KeyType::Timestamp => write!(f, "a timestamp like 2024-02-29 13:05:00.25"),
            KeyType::TimestampTz => write!(f, "a timestamp in UTC like 2024-02-29 13:05:00.25+00"),
            KeyType::Numeric(scale) => write!(f, "a number with exactly {scale} decimals"),
        }
    }
}

fn canonical_uuid(text: &str) -> Option<String> {
    let bare: Vec<u8> = match text.len() {
        32 => text.bytes().collect(),
        36 if [8, 13, 18, 23].iter().all(|&i| text.as_bytes()[i] == b'-') => {
            text.bytes().filter(|b| *b != b'-').collect()
        }
        _ => return None,
    };
    if bare.len() != 32 || !bare.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let hex = String::from_utf8(bare).ok()?.to_ascii_lowercase();
    Some(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

fn is_infinity(text: &str) -> bool {
    matches!(text, "infinity" | "-infinity")
}

fn digits(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// `YYYY-MM-DD` of the common era, with five and more digits only where the year needs them.
fn is_date(text: &str) -> bool {
    let check = || {
        let (rest, day) = text.rsplit_once('-')?;
        let (year, month) = rest.rsplit_once('-')?;
        if year.len() < 4 || (year.len() > 4 && year.starts_with('0')) || month.len() != 2 || day.len() != 2 {
            return None;
        }
        let (year, month, day) = (digits(year)?, digits(month)?, digits(day)?);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 => 28 + u32::from(leap),
            _ => return None,
        };
        (1..=5_874_897).contains(&year).then_some((1..=days).contains(&day))
    };
    check().unwrap_or(false)
}

/// Takes `T` for the blank between date and time; refuses what Postgres would print otherwise.
fn canonical_timestamp(text: &str) -> Option<Cow<'_, str>> {
    if is_infinity(text) {
        return Some(text.into());
    }
    let (date, time) = text.split_once(' ').or_else(|| text.split_once('T'))?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "1"));
    let parts: Vec<&str> = whole.split(':').collect();
    let [hour, minute, second] = parts[..] else { return None };
    let two = |part: &str, below: u32| part.len() == 2 && digits(part).is_some_and(|v| v < below);
    let year_digits = date.split('-').next().map_or(0, str::len);
    let fits = is_date(date)
        && year_digits <= 6
        && (year_digits < 6 || &date[..6] <= "294276")
        && two(hour, 24)
        && two(minute, 60)
        && two(second, 60)
        && (1..=6).contains(&fraction.len())
        && digits(fraction).is_some()
        && !fraction.ends_with('0');
    fits.then(|| format!("{date} {time}").into())
}

fn is_canonical_numeric(text: &str, scale: usize) -> bool {
    if text == "NaN" {
        return true;
    }
    let bare = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = bare.split_once('.').unwrap_or((bare, ""));
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let zero = bare.bytes().all(|b| matches!(b, b'0' | b'.'));
    !whole.is_empty()
        && whole.len() <= 1000
        && plain(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && plain(fraction)
        && fraction.len() == scale
        && (scale == 0) != bare.contains('.')
        && !(zero && text.starts_with('-'))
}

#[cfg(test)]
mod tests {
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
}
