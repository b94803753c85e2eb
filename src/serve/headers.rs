//! Request headers to demands, answers to response headers.

use std::cell::RefCell;
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use warp::http::header::{AGE, CONTENT_LENGTH, IF_NONE_MATCH};
use warp::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::Response;
use super::cache_control::CacheControl;
use super::problem::Problem;
use crate::cache::answer::{Answer, Demand, Outcome};
use crate::lsn::Lsn;

static X_MIN_LSN: HeaderName = HeaderName::from_static("x-min-lsn");
static X_APPLIED_LSN: HeaderName = HeaderName::from_static("x-applied-lsn");
static X_READ_LSN: HeaderName = HeaderName::from_static("x-read-lsn");
static X_CACHE: HeaderName = HeaderName::from_static("x-cache");
static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
static PREFER: HeaderName = HeaderName::from_static("prefer");
static PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The longest header section, in bytes of names and values.
const MAX_HEADERS: usize = 32 * 1024;

/// Reads what a request's headers demand.
///
/// # Errors
/// Headers that are too long in total, and an `X-Min-LSN` that is none. An unknown or malformed preference is
/// ignored, as RFC 7240 wants it; for `Cache-Control` see [`super::cache_control`].
pub fn demand(headers: &HeaderMap) -> Result<Demand, Problem> {
    let total: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if total > MAX_HEADERS {
        return Err(Problem::headers_too_large(MAX_HEADERS));
    }
    let CacheControl { fresh, max_age, max_stale } = CacheControl::of(headers);
    Ok(Demand { min_lsn: min_lsn(headers)?, wait: wait(headers), fresh, max_age, max_stale })
}

fn min_lsn(headers: &HeaderMap) -> Result<Option<Lsn>, Problem> {
    let mut values = headers.get_all(&X_MIN_LSN).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::malformed_header("X-Min-LSN is given more than once"));
    }
    let text = String::from_utf8_lossy(value.as_bytes());
    text.trim().parse().map(Some).map_err(|error| Problem::malformed_header(format!("X-Min-LSN: {error}")))
}

/// The first `wait` among the preferences, in milliseconds: seconds, as RFC 7240 has them, are far too coarse for
/// waiting on replication.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all(&PREFER).iter().filter_map(|value| value.to_str().ok());
    let wait = preferences.flat_map(|value| value.split(',')).find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"'))
    })?;
    wait.bytes().all(|b| b.is_ascii_digit()).then(|| wait.parse().ok().map(Duration::from_millis)).flatten()
}

/// The strong entity tag of a value.
pub fn etag(hash: u64) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'"'; 18];
    for (i, digit) in text[1..17].iter_mut().enumerate() {
        *digit = DIGITS[(hash >> (60 - 4 * i)) as usize & 0xF];
    }
    ascii(&text)
}

/// Whether `If-None-Match` names this tag: weak comparison, as RFC 9110 wants it for reads.
pub fn names_etag(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    // Our tags contain no comma, so an element that equals one is that one, wherever the list was split.
    headers.get_all(IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|b| *b == b',')).any(|element| {
        let element = element.trim_ascii();
        element == b"*" || element.strip_prefix(b"W/").unwrap_or(element) == etag.as_bytes()
    })
}

/// What the headers say of an answer, or of all answers of a batch together.
#[derive(Debug, Clone, Copy)]
pub struct Provenance {
    outcome: Outcome,
    stale: Option<Duration>,
    applied: Lsn,
    read: Lsn,
}

impl From<&Answer> for Provenance {
    fn from(answer: &Answer) -> Self {
        Provenance { outcome: answer.outcome, stale: answer.stale, applied: answer.applied, read: answer.read }
    }
}

impl Provenance {
    /// Of two answers in one response: the bounds that hold for both, the slower way, the greater age.
    pub fn and(self, other: Provenance) -> Provenance {
        let rank = |outcome| match outcome {
            Outcome::HitL1 => 0,
            Outcome::HitL2 => 1,
            Outcome::Miss => 2,
            Outcome::Bypass => 3,
        };
        Provenance {
            outcome: if rank(other.outcome) > rank(self.outcome) { other.outcome } else { self.outcome },
            stale: self.stale.max(other.stale),
            applied: self.applied.min(other.applied),
            read: self.read.max(other.read),
        }
    }

    /// Writes `X-Cache`, `Cache-Status`, `Age`, the two LSNs, and `Preference-Applied`.
    pub fn write(&self, headers: &mut HeaderMap, demand: &Demand) {
        let (x_cache, cache_status) = match self.outcome {
            Outcome::HitL1 => ("HIT-L1", "walcache; hit; detail=L1"),
            Outcome::HitL2 => ("HIT-L2", "walcache; hit; detail=L2"),
            Outcome::Miss => ("MISS", "walcache; fwd=miss"),
            // RFC 9211 tells the client's wish from the cache's own decision.
            Outcome::Bypass if demand.fresh => ("BYPASS", "walcache; fwd=request"),
            Outcome::Bypass => ("BYPASS", "walcache; fwd=bypass"),
        };
        match self.stale {
            None => {
                headers.insert(&X_CACHE, HeaderValue::from_static(x_cache));
                headers.insert(&CACHE_STATUS, HeaderValue::from_static(cache_status));
            }
            Some(age) => {
                // Rounded up: it is a promise.
                let age = age.as_secs() + u64::from(age.subsec_nanos() > 0);
                headers.insert(&X_CACHE, HeaderValue::from_static("STALE"));
                // Freshness lifetime is zero, so what remains of it is the age below zero.
                headers.insert(&CACHE_STATUS, ascii(format!("{cache_status}; ttl=-{age}").as_bytes()));
                headers.insert(AGE, HeaderValue::from(age));
            }
        }
        let (applied, read) = lsn_values(self.applied, self.read);
        headers.insert(&X_APPLIED_LSN, applied);
        headers.insert(&X_READ_LSN, read);
        if let Some(wait) = demand.wait {
            headers.insert(&PREFERENCE_APPLIED, ascii(format!("wait={}", wait.as_millis()).as_bytes()));
        }
    }
}

thread_local! {
    /// The values of the last two LSNs written by this thread. The watermark moves far less often than it is sent.
    static LSNS: RefCell<[(Lsn, HeaderValue); 2]> =
        RefCell::new([(Lsn::ZERO, lsn_value(Lsn::ZERO)), (Lsn::ZERO, lsn_value(Lsn::ZERO))]);
}

fn lsn_values(applied: Lsn, read: Lsn) -> (HeaderValue, HeaderValue) {
    LSNS.with_borrow_mut(|[last_applied, last_read]| {
        if last_applied.0 != applied {
            *last_applied = (applied, lsn_value(applied));
        }
        if applied == read {
            return (last_applied.1.clone(), last_applied.1.clone());
        }
        if last_read.0 != read {
            *last_read = (read, lsn_value(read));
        }
        (last_applied.1.clone(), last_read.1.clone())
    })
}

fn lsn_value(lsn: Lsn) -> HeaderValue {
    let mut text = String::with_capacity(17);
    // Writing to a string cannot fail.
    let _ = write!(text, "{lsn}");
    ascii(text.as_bytes())
}

/// A header value of printable ASCII that we composed ourselves.
fn ascii(text: &[u8]) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(text)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Makes a response to GET one to HEAD: the same headers, the length of the body that is left out.
pub fn without_body(mut response: Response) -> Response {
    if response.status() != StatusCode::NOT_MODIFIED {
        let length = HeaderValue::from(response.body().len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    *response.body_mut() = Bytes::new();
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn demands_are_read() {
        let plain = demand(&of(&[])).unwrap();
        assert!(plain.min_lsn.is_none() && plain.wait.is_none() && !plain.fresh);
        assert!(plain.max_age.is_none() && plain.max_stale.is_none());
        let cache_control = ("cache-control", "a, No-Cache, max-age=7, max-stale=2");
        let all = [("x-min-lsn", "1/A"), ("prefer", "return=minimal, Wait=250; x=1"), cache_control];
        let all = demand(&of(&all)).unwrap();
        assert_eq!(all.min_lsn, Some(Lsn::from_u64(0x1_0000_000A)));
        assert_eq!(all.wait, Some(Duration::from_millis(250)));
        assert!(all.fresh);
        assert_eq!((all.max_age, all.max_stale), (Some(Duration::from_secs(7)), Some(Duration::from_secs(2))));
        for bad in ["", "16", "x/y", "0/1, 0/2"] {
            assert_eq!(demand(&of(&[("x-min-lsn", bad)])).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(demand(&of(&[("x-min-lsn", "0/1"), ("x-min-lsn", "0/2")])).unwrap_err().status, 400);
        for ignored in ["wait", "wait=", "wait=-1", "wait=1s", "wait=99999999999999999999999", "respond-async"] {
            assert_eq!(demand(&of(&[("prefer", ignored)])).unwrap().wait, None, "{ignored}");
        }
        assert_eq!(demand(&of(&[("x-big", &"x".repeat(MAX_HEADERS))])).unwrap_err().status, 431);
    }

    #[test]
    fn etags_compare_weakly_in_lists() {
        let tag = etag(0xAB);
        assert_eq!(tag, "\"00000000000000ab\"");
        for hit in ["\"00000000000000ab\"", "\"x\", W/\"00000000000000ab\"", "*"] {
            assert!(names_etag(&of(&[("if-none-match", hit)]), &tag), "{hit}");
        }
        for miss in ["", "00000000000000ab", "\"00000000000000AB\"", "\"x\""] {
            assert!(!names_etag(&of(&[("if-none-match", miss)]), &tag), "{miss}");
        }
    }

    #[test]
    fn batches_keep_the_weakest_bounds() {
        let of = |outcome, stale, applied, read| Provenance {
            outcome,
            stale,
            applied: Lsn::from_u64(applied),
            read: Lsn::from_u64(read),
        };
        let both = of(Outcome::Bypass, None, 5, 9).and(of(Outcome::HitL1, Some(Duration::from_millis(2001)), 4, 7));
        let mut headers = HeaderMap::new();
        both.write(&mut headers, &Demand::default());
        assert_eq!(headers["x-applied-lsn"], "0/4");
        assert_eq!(headers["x-read-lsn"], "0/9");
        assert_eq!(headers["x-cache"], "STALE");
        assert_eq!(headers["age"], "3");
        assert_eq!(headers["cache-status"], "walcache; fwd=bypass; ttl=-3");
    }
}
