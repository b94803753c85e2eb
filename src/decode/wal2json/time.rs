//! Commit times, as `timestamptz_to_str` prints them in a session with `TimeZone=UTC`.

/// Microseconds since the Unix epoch of `2001-02-03 04:05:06.789+00`; `None` for anything else.
pub(super) fn unix_micros(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix("+00")?;
    let (date, time) = text.split_once(' ')?;
    let mut date = date.splitn(3, '-').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(digits);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !in_range || year > 300_000 || fraction.len() > 6 {
        return None;
    }
    let scale = 10_i64.pow(6 - fraction.len() as u32);
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(seconds * 1_000_000 + digits(fraction)? * scale)
}

fn digits(text: &str) -> Option<i64> {
    let plain = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// Days from 1970-01-01, in the Gregorian calendar: years are counted from March, so that the leap day is their last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let since_march = (month + 9) % 12;
    let of_year = (153 * since_march + 2) / 5 + day - 1;
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_times() {
        for (text, micros) in [
            ("1970-01-01 00:00:00+00", 0),
            ("2000-01-01 00:00:00+00", 946_684_800_000_000),
            ("2026-11-23 00:03:29.471174+00", 1_795_392_209_471_174),
            ("2024-02-29 23:59:59.5+00", 1_709_251_199_500_000),
            ("2100-03-01 00:00:00+00", 4_107_542_400_000_000),
        ] {
            assert_eq!(unix_micros(text.as_bytes()), Some(micros), "{text}");
        }
        for text in [
            "",
            "infinity",
            "2026-11-23 00:03:29",
            "2026-11-23 00:03:29+01",
            "2026-13-01 00:00:00+00",
            "x-1-1 0:0:0+00",
        ] {
            assert_eq!(unix_micros(text.as_bytes()), None, "{text}");
        }
    }
}
