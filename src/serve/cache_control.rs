//! `Cache-Control` of a request, as RFC 9111 has it (section 5.2.1).
//!
//! `no-cache`, `max-age` and `max-stale` are understood. Other directives are ignored, as are `max-age` and `max-stale`
//! with an argument that is no number of seconds (a `max-stale` that says nonsense allows nothing). Where one is given
//! twice, the stricter counts.

use std::time::Duration;

use warp::http::HeaderMap;
use warp::http::header::CACHE_CONTROL;

/// What a request says of cached answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CacheControl {
    /// `no-cache`, or a `max-age` of zero: nothing that is cached may be given.
    pub fresh: bool,
    /// `max-age`.
    pub max_age: Option<Duration>,
    /// `max-stale`; [`Duration::MAX`] where it has no argument.
    pub max_stale: Option<Duration>,
}

impl CacheControl {
    /// Reads all the lines of the header. Without any this costs one look-up.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut found = CacheControl::default();
        for value in headers.get_all(CACHE_CONTROL) {
            let mut rest = value.as_bytes();
            while !rest.is_empty() {
                let directive;
                (directive, rest) = split(rest);
                found.take(directive);
            }
        }
        found
    }

    fn take(&mut self, directive: &[u8]) {
        let mut parts = directive.splitn(2, |b| *b == b'=');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let argument = parts.next().map(<[u8]>::trim_ascii);
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let stricter =
            |held: &mut Option<Duration>, new: Duration| *held = Some(held.map_or(new, |held| held.min(new)));
        if is("no-cache") {
            self.fresh = true;
        } else if is("max-age") {
            if let Some(seconds) = argument.and_then(seconds) {
                self.fresh |= seconds.is_zero();
                stricter(&mut self.max_age, seconds);
            }
        } else if is("max-stale")
            && let Some(seconds) = argument.map_or(Some(Duration::MAX), seconds)
        {
            stricter(&mut self.max_stale, seconds);
        }
    }
}

/// The first directive of a list, and the rest. A comma within a quoted string separates nothing.
fn split(list: &[u8]) -> (&[u8], &[u8]) {
    let mut quoted = false;
    let mut escaped = false;
    for (i, b) in list.iter().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return (&list[..i], &list[i + 1..]),
            _ => {}
        }
    }
    (list, &[])
}

/// A number of seconds, quoted or not. One that is too large to count stands for the largest.
fn seconds(argument: &[u8]) -> Option<Duration> {
    let bare = argument.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(argument);
    if bare.is_empty() {
        return None;
    }
    let seconds = bare.iter().try_fold(0_u64, |seconds, b| {
        b.is_ascii_digit().then(|| seconds.saturating_mul(10).saturating_add(u64::from(b - b'0')))
    });
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use warp::http::HeaderValue;

    use super::*;

    fn of(lines: &[&str]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        CacheControl::of(&headers)
    }

    fn wants(fresh: bool, max_age: Option<u64>, max_stale: Option<u64>) -> CacheControl {
        let of = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        CacheControl { fresh, max_age: of(max_age), max_stale: of(max_stale) }
    }

    #[test]
    fn directives_are_read() {
        for (line, wanted) in [
            ("no-cache", wants(true, None, None)),
            ("No-Cache", wants(true, None, None)),
            ("max-age=0", wants(true, Some(0), None)),
            ("max-age=5", wants(false, Some(5), None)),
            ("MAX-AGE = \"5\"", wants(false, Some(5), None)),
            ("max-stale=7, max-age=5", wants(false, Some(5), Some(7))),
            (" ,, max-stale=0,", wants(false, None, Some(0))),
            ("max-age=99999999999999999999999", wants(false, Some(u64::MAX), None)),
            ("max-age=9, max-age=3, max-age=6", wants(false, Some(3), None)),
            ("max-stale, max-stale=4", wants(false, None, Some(4))),
        ] {
            assert_eq!(of(&[line]), wanted, "{line}");
        }
        assert_eq!(of(&["max-stale"]).max_stale, Some(Duration::MAX));
        assert_eq!(of(&["max-age=5", "no-cache", "max-stale=1"]), wants(true, Some(5), Some(1)));
    }

    #[test]
    fn what_is_malformed_or_unknown_is_ignored() {
        for line in [
            "",
            "no-store",
            "no-cached",
            "only-if-cached, min-fresh=5",
            "max-age",
            "max-age=",
            "max-age=-1",
            "max-age=1.5",
            "max-age=5s",
            "max-age=\"\"",
            "max-age=\"5",
            "max-age=0x0",
            "max-stale=",
            "max-stale=soon",
            "private=\"no-cache, max-age=0\"",
            "x=\"\\\", no-cache\"",
            "max-age=\u{661}",
        ] {
            assert_eq!(of(&[line]), CacheControl::default(), "{line}");
        }
        assert_eq!(of(&["x=\"a\\\\\", no-cache"]), wants(true, None, None), "an escaped backslash ends nothing");
    }
}
