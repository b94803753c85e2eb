//! Types of key columns, and the one text form of each of their values.

use std::borrow::Cow;

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
