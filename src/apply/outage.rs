//! How long L2 may be away before the leader goes on without it.
//!
//! While L2 is away, nothing is confirmed that it has not taken: the slot keeps the log, and once L2 is back it misses
//! nothing. But the log takes up the source's disk, and the watermark stands still. Past a bound the leader therefore
//! goes on without L2: it distrusts it, applies to L1 alone, and confirms.
//!
//! That L2 is distrusted is on record in the source: what the slot has confirmed lies beyond what L2's fence shows as
//! done. Whoever claims L2 next, also after any crash, finds that and starts a new generation.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What is tolerated.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Bytes of log that L2 may lag behind.
    pub max_backlog: u64,
    /// How long it may fail.
    pub max_backlog_age: Duration,
}

/// Since when L2 fails, across sessions of the stream.
#[derive(Debug)]
pub struct Outage {
    tolerance: Tolerance,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    since: Option<Instant>,
    /// It was claimed after the last failure, and nothing has failed since: it may be over.
    claimed: bool,
    /// The leader goes on without it.
    without: bool,
}

impl Outage {
    /// L2 works, as far as is known.
    pub fn new(tolerance: Tolerance) -> Self {
        Outage { tolerance, state: Mutex::default() }
    }

    /// L2 did not take what it was to take.
    pub fn failed(&self) {
        let mut state = self.state.lock();
        state.since.get_or_insert_with(Instant::now);
        state.claimed = false;
    }

    /// The leader goes on without L2.
    pub fn go_without(&self) {
        self.state.lock().without = true;
    }

    /// Whether the leader goes on without L2.
    pub fn goes_without(&self) -> bool {
        self.state.lock().without
    }

    /// L2 was claimed. Whether it takes what is written remains to be seen.
    pub fn claimed(&self) {
        let mut state = self.state.lock();
        state.claimed = true;
        state.without = false;
    }

    /// L2 has taken everything.
    pub fn over(&self) {
        *self.state.lock() = State::default();
    }

    /// How long it has failed; `None` while it works.
    pub fn lasts(&self) -> Option<Duration> {
        self.state.lock().since.map(|since| since.elapsed())
    }

    /// How long nothing is applied for want of it; `None` while it works, as far as is known, or is done without.
    pub fn holds_up(&self) -> Option<Duration> {
        let state = *self.state.lock();
        state.since.filter(|_| !state.claimed && !state.without).map(|since| since.elapsed())
    }

    /// Whether it has failed for too long, or lags too far behind: by `backlog` bytes of log.
    pub fn is_past_bound(&self, backlog: u64) -> bool {
        let state = *self.state.lock();
        let lasts = state.since.filter(|_| !state.claimed).map(|since| since.elapsed());
        lasts.is_some_and(|lasts| lasts >= self.tolerance.max_backlog_age || backlog > self.tolerance.max_backlog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasts_from_the_first_failure_until_all_was_taken() {
        let tolerance = Tolerance { max_backlog: 1000, max_backlog_age: Duration::from_secs(3600) };
        let outage = Outage::new(tolerance);
        assert!(!outage.is_past_bound(u64::MAX), "a backlog alone is no outage: L2 may be just catching up");
        outage.failed();
        let first = outage.state.lock().since;
        outage.failed();
        assert!(outage.holds_up().is_some());
        assert_eq!(outage.state.lock().since, first);
        assert!(!outage.is_past_bound(1000) && outage.is_past_bound(1001));
        outage.claimed();
        assert!(!outage.is_past_bound(1001) && outage.holds_up().is_none(), "it may be over");
        outage.failed();
        assert!(outage.is_past_bound(1001), "it was not");
        outage.over();
        assert!(outage.lasts().is_none() && !outage.is_past_bound(u64::MAX));
        outage.failed();
        outage.go_without();
        assert!(outage.holds_up().is_none());
        let at_once = Outage::new(Tolerance { max_backlog_age: Duration::ZERO, ..tolerance });
        at_once.failed();
        assert!(at_once.is_past_bound(0));
    }
}
