//! The watermark W: the LSN up to which everything has been applied, and since when that may have been overtaken.
//!
//! How current W is is measured, not guessed from idleness, and without comparing clocks: every now and then a
//! *heartbeat*, a message, is written into the source's log. Its LSN (the end of the message's record) is kept as a mark
//! together with this machine's monotonic time from **before** it was sent. Once W has passed the mark, everything that
//! anybody could see on the primary at that time is applied:
//!
//! - Whatever was visible then had written its commit record before: a transaction leaves the list of those in progress
//!   only afterwards. That holds with `synchronous_commit = off`, too, where the record need not be on disk yet; so a
//!   position of the *flushed* log would not do as a mark. The message is written later, so at a higher LSN.
//! - The log is decoded in its order, and only as far as it is on disk. When W has passed the message, so it has every
//!   commit record before it. Commits that were written before the message but are not visible yet are held back by
//!   the gate, and W with them.
//! - W gets there although a message has no effects: the server tells in its keepalives how far it has decoded, once
//!   everything before was sent. They come in order with the changes.
//!
//! The *staleness* is the time since the newest such mark was taken. It is never less than what is true, and exceeds it
//! by no more than the heartbeat's interval and the time of its way. Nothing but a heartbeat that came back makes it
//! smaller: not the silence of the stream, nor a position that was merely asked for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::lsn::Lsn;

/// Progress of replication as readers see it. It only moves forward.
#[derive(Debug)]
pub struct Watermark {
    lsn: AtomicU64,
    marks: Mutex<Marks>,
    /// Microseconds from `origin` to the newest mark that was passed, plus 1; 0 before the first.
    current_at: AtomicU64,
    origin: Instant,
    moved: Notify,
    restarted: Mutex<Instant>,
}

/// Why an LSN was not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReached {
    /// It took too long.
    Late,
    /// It is of another timeline.
    StartedOver,
}

/// Marks that wait at a time. When there are more they are thinned out evenly: how exactly a lag is known stays in
/// proportion to it.
const MAX_MARKS: usize = 64;

/// Marks that the watermark has not reached, in order.
#[derive(Debug, Default)]
struct Marks {
    queue: VecDeque<(Lsn, Instant)>,
    /// Of so many heartbeats one is kept; and the newest, until the next one takes its place.
    stride: usize,
    /// Heartbeats since the last one that is kept for good.
    since: usize,
}

impl Marks {
    fn push(&mut self, lsn: Lsn, at: Instant) {
        if self.since > 0 {
            self.queue.pop_back();
        }
        if self.queue.len() >= MAX_MARKS {
            // The oldest stays: it is the next to say that we are less behind.
            let mut keep = false;
            self.queue.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride = 2 * self.stride.max(1);
        } else if self.queue.len() < MAX_MARKS / 4 {
            self.stride /= 2;
        }
        self.queue.push_back((lsn, at));
        self.since += 1;
        if self.since >= self.stride {
            self.since = 0;
        }
    }

    /// Takes off those up to `reached`, and gives the newest of them.
    fn pass(&mut self, reached: Lsn) -> Option<Instant> {
        let mut passed = None;
        while let Some((_, at)) = self.queue.front().filter(|(lsn, _)| *lsn <= reached) {
            passed = Some(*at);
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            *self = Marks::default();
        }
        passed
    }
}

impl Default for Watermark {
    fn default() -> Self {
        Watermark {
            lsn: AtomicU64::new(0),
            marks: Mutex::default(),
            current_at: AtomicU64::new(0),
            origin: Instant::now(),
            moved: Notify::new(),
            restarted: Mutex::new(Instant::now()),
        }
    }
}

impl Watermark {
    /// The LSN up to which everything has been applied.
    pub fn load(&self) -> Lsn {
        Lsn::from_u64(self.lsn.load(Ordering::Acquire))
    }

    /// Moves forward to `lsn`. The fences of all events up to there must have been raised before.
    pub fn advance(&self, lsn: Lsn) {
        if self.lsn.fetch_max(lsn.as_u64(), Ordering::AcqRel) < lsn.as_u64() {
            self.pass();
            self.moved.notify_waiters();
        }
    }

    /// Everything that was visible on the primary at `at` was committed before `lsn`: the LSN of a heartbeat that was
    /// sent after `at`. Heartbeats are marked in the order of their LSNs.
    pub fn mark(&self, lsn: Lsn, at: Instant) {
        self.marks.lock().push(lsn, at);
        self.pass();
    }

    /// Takes off the marks that the watermark has reached.
    fn pass(&self) {
        let mut marks = self.marks.lock();
        if let Some(at) = marks.pass(self.load()) {
            let micros = at.saturating_duration_since(self.origin).as_micros() as u64 + 1;
            self.current_at.fetch_max(micros, Ordering::AcqRel);
        }
    }

    /// Starts over at `lsn` in a new generation, where LSNs may be smaller than before.
    pub fn restart(&self, lsn: Lsn) {
        *self.restarted.lock() = Instant::now();
        *self.marks.lock() = Marks::default();
        self.current_at.store(0, Ordering::Release);
        self.lsn.store(lsn.as_u64(), Ordering::Release);
        self.moved.notify_waiters();
    }

    /// When it started over for the last time. Connections of before may lead to another server.
    pub fn restarted(&self) -> Instant {
        *self.restarted.lock()
    }

    /// When the watermark was certainly current for the last time: whatever was visible on the primary then is applied.
    /// `None` before the first heartbeat came back.
    ///
    /// A reader asks this before it asks [`Watermark::load`]: then what the latter gives contains all that.
    pub fn current_at(&self) -> Option<Instant> {
        let micros = self.current_at.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.origin + Duration::from_micros(micros))
    }

    /// How long ago that was.
    pub fn staleness(&self) -> Option<Duration> {
        self.current_at().map(|at| at.elapsed())
    }

    /// Waits until the watermark has reached `lsn`, for at most `patience`; says whether it has.
    pub async fn reached(&self, lsn: Lsn, patience: Duration) -> bool {
        if self.load() >= lsn {
            return true;
        }
        let wait = self.moves_until(|| self.load() >= lsn);
        tokio::time::timeout(patience, wait).await.is_ok() || self.load() >= lsn
    }

    /// As [`Watermark::reached`], of an LSN that was known at `since`: once the watermark has started over after that, it means
    /// nothing any more.
    ///
    /// # Errors
    /// [`NotReached`], which says why.
    pub async fn reached_of(&self, lsn: Lsn, since: Instant, patience: Duration) -> Result<(), NotReached> {
        // In this order: `restart` does it the other way round.
        let reached = || self.load() >= lsn && self.restarted() <= since;
        let wait = self.moves_until(|| reached() || self.restarted() > since);
        let is_late = tokio::time::timeout(patience, wait).await.is_err();
        match (reached(), is_late) {
            (true, _) => Ok(()),
            (false, true) => Err(NotReached::Late),
            (false, false) => Err(NotReached::StartedOver),
        }
    }

    /// Waits for something that only a move may bring about.
    async fn moves_until(&self, is_so: impl Fn() -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if is_so() {
                return;
            }
            moved.await;
        }
    }
}

#[cfg(test)]
impl Watermark {
    /// One that was last current so long ago.
    pub(super) fn last_current(ago: Duration) -> Self {
        let watermark = Watermark { origin: Instant::now() - ago, ..Watermark::default() };
        watermark.mark(Lsn::from_u64(1), watermark.origin);
        watermark.advance(Lsn::from_u64(1));
        watermark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_as_current_as_the_newest_mark_it_has_passed() {
        let watermark = Watermark::default();
        let lsn = Lsn::from_u64;
        assert_eq!(watermark.staleness(), None);
        watermark.mark(lsn(10), Instant::now());
        assert_eq!(watermark.staleness(), None, "the mark is not reached");
        watermark.advance(lsn(10));
        let passed = watermark.staleness().unwrap();
        assert!(passed < Duration::from_secs(5));
        watermark.mark(lsn(20), Instant::now() + Duration::from_secs(60));
        assert!(watermark.staleness().unwrap() >= passed, "a mark ahead changes nothing");
        watermark.advance(lsn(25));
        assert_eq!(watermark.staleness(), Some(Duration::ZERO));
        watermark.advance(lsn(5));
        assert_eq!(watermark.load(), lsn(25), "it only moves forward");
        watermark.restart(lsn(3));
        assert_eq!((watermark.load(), watermark.staleness()), (lsn(3), None));
    }

    #[test]
    fn a_long_lag_is_known_in_proportion() {
        let watermark = Watermark::default();
        let begin = Instant::now();
        let beat = |n: u64| begin + Duration::from_secs(n);
        // An hour of heartbeats, none of which comes back.
        for n in 1..=3600 {
            watermark.mark(Lsn::from_u64(n), beat(n));
            assert!(watermark.marks.lock().queue.len() <= MAX_MARKS);
        }
        assert_eq!(watermark.current_at(), None);
        for reached in [1, 900, 1800, 2700, 3600] {
            watermark.advance(Lsn::from_u64(reached));
            // Kept in whole microseconds.
            let at = watermark.current_at().unwrap() + Duration::from_micros(1);
            assert!(at <= beat(reached) + Duration::from_micros(1), "never better than it is");
            assert!(at + Duration::from_secs(180) >= beat(reached), "{reached}: off by {:?}", beat(reached) - at);
        }
        assert!(watermark.current_at().unwrap() + Duration::from_micros(1) >= beat(3600), "the newest was kept");
        assert!(watermark.marks.lock().queue.is_empty());
    }

    #[tokio::test]
    async fn waits_for_an_lsn_but_not_for_ever() {
        let watermark = std::sync::Arc::new(Watermark::default());
        assert!(!watermark.reached(Lsn::from_u64(1), Duration::from_millis(1)).await);
        let waiter = tokio::spawn({
            let watermark = watermark.clone();
            async move { watermark.reached(Lsn::from_u64(7), Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        watermark.advance(Lsn::from_u64(6));
        watermark.advance(Lsn::from_u64(8));
        assert!(waiter.await.unwrap());
    }
}
