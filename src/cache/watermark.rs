//! The watermark W: the LSN up to which everything has been applied, and when that was known.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::lsn::Lsn;

/// Progress of replication as readers see it. It only moves forward.
///
/// How current it is is known without comparing clocks: the source's position is marked every now and then with the
/// time here at which it was read; once the watermark has passed a mark, it contains everything that was committed
/// until that time.
#[derive(Debug)]
pub struct Watermark {
    lsn: AtomicU64,
    /// Marks that the watermark has not reached, in order.
    marks: Mutex<VecDeque<(Lsn, Instant)>>,
    /// Microseconds from `origin` to the newest mark that was passed, plus 1; 0 before the first.
    current_at: AtomicU64,
    origin: Instant,
    moved: Notify,
}

/// Marks that wait at a time: a minute's at one a second; then the newest is replaced.
const MAX_MARKS: usize = 60;

impl Default for Watermark {
    fn default() -> Self {
        Watermark {
            lsn: AtomicU64::new(0),
            marks: Mutex::default(),
            current_at: AtomicU64::new(0),
            origin: Instant::now(),
            moved: Notify::new(),
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

    /// At `at`, nothing had been committed beyond `lsn`.
    pub fn mark(&self, lsn: Lsn, at: Instant) {
        let mut marks = self.marks.lock();
        if marks.len() >= MAX_MARKS {
            // How old the oldest is says how far behind we are: it must stay.
            marks.pop_back();
        }
        marks.push_back((lsn, at));
        drop(marks);
        self.pass();
    }

    /// Takes off the marks that the watermark has reached.
    fn pass(&self) {
        let reached = self.load();
        let mut marks = self.marks.lock();
        while let Some((_, at)) = marks.front().filter(|(lsn, _)| *lsn <= reached) {
            let micros = at.saturating_duration_since(self.origin).as_micros() as u64 + 1;
            self.current_at.fetch_max(micros, Ordering::AcqRel);
            marks.pop_front();
        }
    }

    /// Starts over at `lsn` in a new generation, where LSNs may be smaller than before.
    pub fn restart(&self, lsn: Lsn) {
        self.marks.lock().clear();
        self.current_at.store(0, Ordering::Release);
        self.lsn.store(lsn.as_u64(), Ordering::Release);
    }

    /// How long ago the watermark was certainly current; `None` before the first mark was passed.
    pub fn staleness(&self) -> Option<Duration> {
        let at = self.current_at.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.origin.elapsed().saturating_sub(Duration::from_micros(at)))
    }

    /// Waits until the watermark has reached `lsn`, for at most `patience`; says whether it has.
    pub async fn reached(&self, lsn: Lsn, patience: Duration) -> bool {
        if self.load() >= lsn {
            return true;
        }
        let wait = async {
            loop {
                let moved = self.moved.notified();
                tokio::pin!(moved);
                moved.as_mut().enable();
                if self.load() >= lsn {
                    return;
                }
                moved.await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok() || self.load() >= lsn
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
