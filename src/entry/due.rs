//! When an entry is due, by the wall clock of the instance that wrote it.
//!
//! Clocks decide how long an entry lives, and nothing else: what is in it, and whether it is older than something, is
//! told by LSNs. Where clocks differ, an entry lives longer or shorter by the difference, in Redis never longer than its
//! own expiry allows, and in process never longer than the entity's ttl by a clock that does not jump.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time in milliseconds since the Unix epoch, of thirteen digits. Zero: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Due(u64);

/// The largest number of thirteen digits: in the year 2286.
const LAST: u64 = 9_999_999_999_999;

impl Due {
    /// Nothing but Redis' own expiry ends the entry.
    pub const NEVER: Due = Due(0);

    /// The present moment, by the wall clock.
    pub fn now() -> Due {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Due::from_millis(u64::try_from(since.as_millis()).unwrap_or(LAST))
    }

    /// A moment; at least the first millisecond, at most the last that thirteen digits can tell.
    pub fn from_millis(millis: u64) -> Due {
        Due(millis.clamp(1, LAST))
    }

    /// In milliseconds since the Unix epoch; 0 if there is none.
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// So much later; in full milliseconds.
    pub fn after(self, duration: Duration) -> Due {
        Due::from_millis(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(LAST)))
    }

    /// So much earlier; in full milliseconds.
    pub fn before(self, duration: Duration) -> Due {
        Due::from_millis(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(LAST)))
    }

    /// How long it is from `now` until then; zero if it is over, `None` if there is no such time.
    pub fn from(self, now: Due) -> Option<Duration> {
        (self.0 != 0).then(|| Duration::from_millis(self.0.saturating_sub(now.0)))
    }

    /// How long ago it was at `now`; `None` if it is still to come, or there is no such time.
    pub fn since(self, now: Due) -> Option<Duration> {
        (self.0 != 0 && self.0 <= now.0).then(|| Duration::from_millis(now.0 - self.0))
    }

    /// The form in an entry's head, compared as a string.
    pub fn digits(self) -> [u8; 13] {
        let mut digits = [b'0'; 13];
        let mut rest = self.0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        digits
    }

    /// Reads back what [`Due::digits`] wrote.
    pub fn from_digits(digits: &[u8]) -> Option<Due> {
        if digits.len() != 13 {
            return None;
        }
        let digit = |sum: u64, byte: &u8| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0'));
        digits.iter().try_fold(0, digit).map(Due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_read_back_and_order_as_times_do() {
        for (millis, digits) in [(0, "0000000000000"), (1, "0000000000001"), (1_763_861_234_567, "1763861234567")] {
            assert_eq!(std::str::from_utf8(&Due(millis).digits()).unwrap(), digits);
            assert_eq!(Due::from_digits(digits.as_bytes()), Some(Due(millis)));
        }
        assert_eq!(Due::from_millis(u64::MAX).digits(), *b"9999999999999");
        for bad in ["", "123", "12345678901234", "123456789012x", "-123456789012"] {
            assert_eq!(Due::from_digits(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_has_no_end_is_never_over() {
        let (second, now) = (Duration::from_secs(1), Due::from_millis(1_763_861_234_567));
        assert_eq!((Due::NEVER.since(now), Due::NEVER.from(now)), (None, None));
        let due = now.after(second);
        assert_eq!((due.since(now), due.from(now)), (None, Some(second)));
        assert_eq!((now.since(due), now.from(due)), (Some(second), Some(Duration::ZERO)));
        assert_eq!(due.since(due), Some(Duration::ZERO));
        assert_eq!(now.after(Duration::MAX), Due(LAST));
    }
}
