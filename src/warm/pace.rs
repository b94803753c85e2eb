//! How soon an entity is warmed again where its generation is raised again and again.
//!
//! Whatever raises it, an operator or each change of a table that many results depend on, must not have the same keys
//! read without end. So passes for new generations are followed by pauses: none after the first one, and ever longer
//! ones as long as generations follow each other.

use std::time::{Duration, Instant};

/// The first pause that is one.
const FIRST: Duration = Duration::from_secs(1);
/// Pauses grow up to this, or to [`TIMES`] what a pass takes.
const LONGEST: Duration = Duration::from_secs(30);
/// In the long run no more than one part of so many and one is spent on new generations.
const TIMES: u32 = 10;

/// When the next pass for a new generation may begin.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    pause: Duration,
    until: Option<Instant>,
}

impl Pace {
    /// Until when nothing is to begin; `None`, or in the past: it may.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// A pass for a new generation, or one that a new generation has voided, has ended.
    pub(super) fn ended(&mut self, began: Instant, now: Instant) {
        let most = now.saturating_duration_since(began).saturating_mul(TIMES).max(LONGEST);
        let quiet = self.until.is_none_or(|until| began.saturating_duration_since(until) > most);
        self.pause = if quiet { Duration::ZERO } else { (2 * self.pause).clamp(FIRST, most) };
        self.until = Some(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Generations that are raised all the while, and passes of `took` each: how many begin in `time`, and how much of it
    /// they take.
    fn passes(pace: &mut Pace, from: Instant, time: Duration, took: Duration) -> (u32, Duration) {
        let (mut now, mut count) = (from, 0);
        while now < from + time {
            pace.ended(now, now + took);
            count += 1;
            now = pace.until().unwrap();
        }
        (count, took * count)
    }

    #[test]
    fn generations_without_end_are_followed_at_ever_longer_pauses() {
        let (hour, start) = (Duration::from_secs(3600), Instant::now());
        let mut pace = Pace::default();
        assert!(pace.until().is_none());
        let (count, _) = passes(&mut pace, start, hour, Duration::from_millis(10));
        // 0, 1, 2, 4, 8, 16 s, and 30 s from then on.
        assert!((120..=126).contains(&count), "{count}");
        let later = pace.until().unwrap();
        let (count, busy) = passes(&mut pace, later, 100 * hour, Duration::from_secs(60));
        assert!(busy * 8 < 100 * hour && count > 500, "{count}");
    }

    #[test]
    fn after_a_quiet_time_the_first_one_is_followed_at_once() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let second = Duration::from_secs(1);
        for wait in [0, 1, 2, 4] {
            let began = pace.until().unwrap_or(start);
            pace.ended(began, began + second);
            assert_eq!(pace.until(), Some(began + second + wait * second));
        }
        let began = pace.until().unwrap() + 31 * second;
        pace.ended(began, began + second);
        assert_eq!(pace.until(), Some(began + second));
    }
}
