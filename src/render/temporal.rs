//! Dates and timestamps: from DateStyle ISO to the ISO 8601 that `row_to_json` writes.

use super::quoted;

/// Appends a date.
pub(super) fn date(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    if !is_infinite(text) {
        // The era stands the same in both forms.
        let (date, _era) = split_era(text);
        after_date(date)?.is_empty().then_some(())?;
    }
    quoted(out, text);
    Some(())
}

/// Appends a timestamp: a `T` takes the place of the space.
pub(super) fn timestamp(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    if is_infinite(text) {
        quoted(out, text);
        return Some(());
    }
    let (moment, era) = split_era(text);
    iso_8601(out, moment, b"", era)
}

/// Appends a timestamp with time zone: the same with the offset, which must be that of UTC, written with minutes.
pub(super) fn timestamptz(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    if is_infinite(text) {
        quoted(out, text);
        return Some(());
    }
    let (moment, era) = split_era(text);
    iso_8601(out, moment.strip_suffix(b"+00")?, b"+00:00", era)
}

fn iso_8601(out: &mut Vec<u8>, moment: &[u8], offset: &[u8], era: &[u8]) -> Option<()> {
    let time = after_date(moment)?.strip_prefix(b" ")?;
    is_time(time).then_some(())?;
    out.push(b'"');
    out.extend_from_slice(&moment[..moment.len() - time.len() - 1]);
    out.push(b'T');
    out.extend_from_slice(time);
    out.extend_from_slice(offset);
    out.extend_from_slice(era);
    out.push(b'"');
    Some(())
}

fn is_infinite(text: &[u8]) -> bool {
    text == b"infinity" || text == b"-infinity"
}

fn split_era(text: &[u8]) -> (&[u8], &[u8]) {
    match text.strip_suffix(b" BC") {
        Some(rest) => (rest, b" BC"),
        None => (text, b""),
    }
}

/// What follows a date, `2001-02-03`; years have at least four digits and at most seven.
fn after_date(text: &[u8]) -> Option<&[u8]> {
    let year = text.iter().take(8).position(|&byte| byte == b'-').filter(|&digits| (4..=7).contains(&digits))?;
    let (date, rest) = text.split_at_checked(year + 6)?;
    let plausible = date[..year].iter().all(u8::is_ascii_digit)
        && date[year + 3] == b'-'
        && (1..=12).contains(&two_digits(&date[year + 1..])?)
        && (1..=31).contains(&two_digits(&date[year + 4..])?);
    plausible.then_some(rest)
}

/// Whether the text is a time of day, `23:59:59.999999`, with up to six decimals.
fn is_time(text: &[u8]) -> bool {
    let Some((time, rest)) = text.split_at_checked(8) else { return false };
    let in_range = |at, limit| two_digits(&time[at..]).is_some_and(|value| value < limit);
    let fraction = match rest {
        [] => true,
        [b'.', decimals @ ..] => (1..=6).contains(&decimals.len()) && decimals.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    fraction && time[2] == b':' && time[5] == b':' && in_range(0, 24) && in_range(3, 60) && in_range(6, 60)
}

fn two_digits(text: &[u8]) -> Option<u8> {
    match text {
        [tens @ b'0'..=b'9', units @ b'0'..=b'9', ..] => Some((tens - b'0') * 10 + (units - b'0')),
        _ => None,
    }
}
