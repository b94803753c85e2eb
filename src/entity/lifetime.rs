//! How long entries live.
//!
//! An entry that is made at one time is due at another, which its head tells: after the entity's `ttl`, a random part
//! shorter; after `negative_ttl` where the row is absent; or when one of its own columns says. Past that it is served only
//! where `stale_while_revalidate` says so, marked, while it is filled anew. None of this decides whether an entry is
//! right: an event drops or replaces it at any age.

use std::time::Duration;

use super::Entity;
use crate::entry::{Due, gaps};

/// What the configuration says of the lives of an entity's entries, beside its ttl.
#[derive(Debug, Clone, PartialEq)]
pub struct Lifetime {
    /// Lives of absent rows' entries; `None`: the ttl.
    pub negative_ttl: Option<Duration>,
    /// The largest part by which a life is shortened by chance, 0 to 0.5: entries that are filled together then do not end
    /// together.
    pub jitter: f64,
    /// The value's column that says when an entry is due, if that is sooner than its ttl.
    pub column: Option<String>,
    /// For how long past its due time an entry is still served; zero: not at all.
    pub stale: Duration,
    /// The part of its life at whose beginning an entry that is read is filled anew, counted from its end; zero: none.
    pub refresh_ahead: f64,
}

impl Default for Lifetime {
    fn default() -> Self {
        Lifetime { negative_ttl: None, jitter: 0.1, column: None, stale: Duration::ZERO, refresh_ahead: 0.0 }
    }
}

/// What becomes of a stored entry's life where an event replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Replaced {
    /// Redis' expiry goes on as it was.
    KeepsExpiry,
    /// So it does, and the due time stays, too, or is sooner: it is what renewals go by.
    KeepsDue,
    /// The new image has a life of its own: the row says how long.
    Own,
}

impl Lifetime {
    /// Whether entries may be filled anew while they still stand.
    pub fn renews(&self) -> bool {
        !self.stale.is_zero() || self.refresh_ahead > 0.0
    }

    /// What an event's image does.
    pub fn replaced(&self) -> Replaced {
        match &self.column {
            Some(_) => Replaced::Own,
            None if self.renews() => Replaced::KeepsDue,
            None => Replaced::KeepsExpiry,
        }
    }
}

impl Entity {
    /// The longest life of an entry with this value; `None`: of an absent row.
    pub fn longest(&self, value: Option<&[u8]>) -> Duration {
        match value {
            Some(_) => self.ttl,
            None => self.lifetime.negative_ttl.unwrap_or(self.ttl),
        }
    }

    /// When an entry is due that is made of this value `now`; `None` if it is over already, and not to be cached.
    pub fn due(&self, value: Option<&[u8]>, now: Due) -> Option<Due> {
        let longest = self.longest(value);
        let shortened = match self.lifetime.jitter {
            0.0 => longest,
            jitter => longest.mul_f64(1.0 - jitter * rand::random::<f64>()),
        };
        let due = now.after(shortened.max(Duration::from_millis(1)));
        let Some((column, value)) = self.lifetime.column.as_deref().zip(value) else { return Some(due) };
        let due = match column_says(value, column) {
            Says::Nothing => due,
            // The column's word is exact: it is shortened by nothing.
            Says::At(millis) => now.after(longest).min(Due::from_millis(millis)),
            Says::After(millis) => now.after(longest).min(now.after(Duration::from_millis(millis))),
            Says::Over => return None,
        };
        (due > now).then_some(due)
    }

    /// From so long before its due time on an entry is filled anew when it is read.
    pub fn ahead(&self, value: Option<&[u8]>) -> Duration {
        match self.lifetime.refresh_ahead {
            0.0 => Duration::ZERO,
            part => self.longest(value).mul_f64(part),
        }
    }
}

/// What a column says of an entry's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// Nothing: NULL, or for ever.
    Nothing,
    /// Due at this time, in milliseconds since the Unix epoch.
    At(u64),
    /// Due so many milliseconds after it was written.
    After(u64),
    /// It is over; also where the value cannot be read: then it is not cached.
    Over,
}

/// Reads a column of a value: a number of seconds, an interval, or a time as `row_to_json` writes it.
fn column_says(value: &[u8], column: &str) -> Says {
    let Some(member) = gaps::member(value, column) else { return Says::Over };
    if let number @ [b'-' | b'0'..=b'9', ..] = member.trim_ascii() {
        // A numeric may lie beyond all f64: as a text such a number is infinite, as JSON an error.
        let seconds = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
        return seconds.map_or(Says::Over, after);
    }
    let Ok(member) = serde_json::from_slice::<serde_json::Value>(member) else { return Says::Over };
    match member {
        serde_json::Value::Null => Says::Nothing,
        serde_json::Value::String(text) => match text.as_str() {
            // Of numbers, NaN says nothing.
            "infinity" | "Infinity" | "NaN" => Says::Nothing,
            "-infinity" | "-Infinity" => Says::Over,
            text => match moment(text) {
                Some(millis) if millis > 0 => Says::At(millis.unsigned_abs()),
                Some(_) => Says::Over,
                None => interval(text).map_or(Says::Over, after),
            },
        },
        _ => Says::Over,
    }
}

fn after(seconds: f64) -> Says {
    if seconds <= 0.0 { Says::Over } else { Says::After((seconds * 1000.0).min(1e15) as u64) }
}

/// Milliseconds since the Unix epoch of `2001-02-03`, `2001-02-03T04:05:06.789` or the same with `+00:00`; years of more
/// than six digits count as beyond every ttl, those before Christ as over.
fn moment(text: &str) -> Option<i64> {
    if let Some(rest) = text.strip_suffix(" BC") {
        return moment(rest).map(|_| 0);
    }
    let text = text.strip_suffix("+00:00").unwrap_or(text);
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i64>().ok()).flatten();
    let mut parts = date.split('-').map(number);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) || year > 9_999_999 {
        return None;
    }
    // Days since 1970, by years that begin in March, so that a leap day is a year's last.
    let year = year - i64::from(month <= 2);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    Some(days * 86_400_000 + (clock(time)? * 1000.0).floor() as i64)
}

/// Seconds of `04:05:06.789`.
fn clock(text: &str) -> Option<f64> {
    let mut parts = text.split(':');
    let whole = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<f64>().ok()).flatten();
    let (hours, minutes) = (whole(parts.next()?)?, whole(parts.next()?)?);
    let seconds = parts.next()?;
    let plain = seconds.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds: f64 = plain.then(|| seconds.parse().ok()).flatten()?;
    parts.next().is_none().then_some(hours * 3600.0 + minutes * 60.0 + seconds)
}

/// Seconds of an interval in the style `postgres`, `1 year 2 mons -3 days +04:05:06.789`, counted as `extract(epoch from ..)`
/// does: a month has 30 days, a year 365.25.
fn interval(text: &str) -> Option<f64> {
    let mut seconds = 0.0;
    let mut words = text.split_ascii_whitespace().peekable();
    words.peek()?;
    while let Some(word) = words.next() {
        if word.contains(':') {
            let (sign, time) = match word.strip_prefix('-') {
                Some(time) => (-1.0, time),
                None => (1.0, word.strip_prefix('+').unwrap_or(word)),
            };
            seconds += sign * clock(time)?;
            continue;
        }
        let count: f64 = word.parse::<i64>().ok()? as f64;
        seconds += count
            * match words.next()? {
                "year" | "years" => 365.25 * 86_400.0,
                "mon" | "mons" => 30.0 * 86_400.0,
                "day" | "days" => 86_400.0,
                _ => return None,
            };
    }
    Some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{Definition, Shape};

    const NOW: u64 = 1_763_861_234_567;
    const HOUR: u64 = 3_600_000;

    fn entity(lifetime: Lifetime) -> Entity {
        let definition = Definition { lifetime, ..Definition::rows("offer", "public", "offers") };
        Entity::new(0, definition, "", Shape::unknown(0))
    }

    fn by_column(jitter: f64) -> Entity {
        entity(Lifetime { column: Some("e".into()), jitter, ..Lifetime::default() })
    }

    /// How long an entry with this member lives, in milliseconds.
    fn life(entity: &Entity, member: &str) -> Option<u64> {
        let value = format!(r#"{{"id":1,"e":{member},"f":"x"}}"#);
        entity.due(Some(value.as_bytes()), Due::from_millis(NOW)).map(|due| due.as_millis() - NOW)
    }

    #[test]
    fn a_column_says_when_an_entry_is_due() {
        let entity = by_column(0.5);
        for (member, millis) in [
            (r#""2025-11-23T01:27:15.567""#, Some(1000)),
            (r#""2025-11-23T01:27:15.5679+00:00""#, Some(1000)),
            (r#""2025-11-23T01:27:14.567""#, None),
            (r#""2025-11-23""#, None),
            (r#""2025-11-24""#, Some(HOUR)),
            (r#""9999999-01-01T00:00:00+00:00""#, Some(HOUR)),
            (r#""0044-03-15T00:00:00+00:00 BC""#, None),
            (r#""-infinity""#, None),
            ("90", Some(90_000)),
            ("0.5", Some(500)),
            ("0", None),
            ("-3", None),
            ("1e99", Some(HOUR)),
            ("1e400", Some(HOUR)),
            ("-1e400", None),
            (&format!("1{}", "0".repeat(400)), Some(HOUR)),
            (&format!("-1{}.5", "0".repeat(400)), None),
            ("0.00001", None),
            (r#""00:01:00.25""#, Some(60_250)),
            (r#""-1 days +24:00:01""#, Some(1000)),
            (r#""1 year 2 mons""#, Some(HOUR)),
            (r#""-00:00:01""#, None),
            (r#""soon""#, None),
            ("{}", None),
        ] {
            assert_eq!(life(&entity, member), millis, "{member}");
        }
        // Without the column there is no telling.
        assert_eq!(entity.due(Some(b"{\"id\":1}"), Due::from_millis(NOW)), None);
        for nothing in ["null", r#""infinity""#, r#""NaN""#] {
            assert_eq!(life(&by_column(0.0), nothing), Some(HOUR), "{nothing}");
        }
    }

    #[test]
    fn days_are_counted_as_postgres_does() {
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-03-01T00:00:01", 951_868_801),
            ("2024-02-29T23:59:59+00:00", 1_709_251_199),
            ("1969-12-31", -86_400),
        ] {
            assert_eq!(moment(text), Some(seconds * 1000), "{text}");
        }
        for bad in ["2000", "2000-1", "2000-13-01", "2000-01-01T1", "2000-01-01T00:00:00x", "a-b-c", "--"] {
            assert_eq!(moment(bad), None, "{bad}");
        }
        assert_eq!(interval("1 year 1 mon 1 day 01:00:00"), Some(31_557_600.0 + 2_592_000.0 + 86_400.0 + 3600.0));
        assert_eq!((interval(""), interval("1"), interval("1 week")), (None, None, None));
    }

    #[test]
    fn lives_are_shortened_by_chance_and_absent_rows_have_their_own() {
        let minute = Duration::from_secs(60);
        let entity = entity(Lifetime { negative_ttl: Some(minute), jitter: 0.25, ..Lifetime::default() });
        let lives = |value: Option<&[u8]>| -> Vec<u64> {
            (0..200).map(|_| entity.due(value, Due::from_millis(NOW)).unwrap().as_millis() - NOW).collect()
        };
        for (value, longest) in [(Some(&b"{}"[..]), HOUR), (None, 60_000)] {
            let lives = lives(value);
            assert!(lives.iter().all(|life| (longest * 3 / 4..=longest).contains(life)), "{lives:?}");
            let spread = lives.iter().max().unwrap() - lives.iter().min().unwrap();
            assert!(spread > longest / 8, "they end together: {lives:?}");
        }
    }
}
