//! Loads: writers, and readers that judge whatever they read.

mod reader;
mod writer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use walcache::lsn::Lsn;

use super::failure::INCONSISTENT;
use super::histories::{Histories, Violation};
use super::shop::Shop;
use super::{Daemon, Http, Stage, eventually};

pub(super) use writer::upsert;

/// The pause after a failed connection or request, so that a load does not spin.
const PAUSE: Duration = Duration::from_millis(10);
/// Violations that are kept.
const KEPT: usize = 100;
/// Writes that wait for a reader who demands them.
const OWN: usize = 64;

/// Who takes part in a load.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Connections that write.
    pub writers: usize,
    /// The pause of each between two transactions, where there is one.
    pub pace: Option<Duration>,
    /// Clients that read over HTTP.
    pub readers: usize,
    /// Clients that read Redis themselves.
    pub raw: usize,
    /// How often an entry or a lease is dropped from Redis, if that is wanted.
    pub evict: Option<Duration>,
}

impl Default for Crowd {
    fn default() -> Self {
        Crowd { writers: 3, pace: None, readers: 3, raw: 1, evict: None }
    }
}

/// What those who take part share.
struct Shared {
    stop: CancellationToken,
    histories: Arc<Histories>,
    stage: Arc<Stage>,
    violations: Mutex<Vec<Violation>>,
    /// Writes, and a position at or above each.
    own: Mutex<VecDeque<(usize, Lsn, u64)>>,
    writes: AtomicU64,
    reads: AtomicU64,
    failed_reads: AtomicU64,
    raw_reads: AtomicU64,
    wrong: AtomicU64,
}

impl Shared {
    fn wrong(&self, violation: Violation) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
        let mut violations = self.violations.lock();
        if violations.len() < KEPT {
            violations.push(violation);
        }
    }

    /// Pauses after a failure, unless it is over.
    async fn pause(&self) {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// Writers and readers under way.
pub struct Load {
    shared: Arc<Shared>,
    writers: JoinSet<()>,
    readers: JoinSet<()>,
}

/// How much a load has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Transactions that were acknowledged.
    pub writes: u64,
    /// Values that were read over HTTP and judged.
    pub reads: u64,
    /// Reads over HTTP that failed, or were refused.
    pub failed_reads: u64,
    /// Entries that were read from Redis and judged.
    pub raw_reads: u64,
    /// Violations.
    pub wrong: u64,
}

impl Shop {
    /// Starts writers and readers, seeded.
    pub fn load(&self, daemon: &Daemon, seed: u64) -> Load {
        self.load_of(daemon, seed, Crowd::default())
    }

    /// As [`Shop::load`] without writers, on another daemon than that of the load that has them.
    pub fn readers(&self, daemon: &Daemon, seed: u64) -> Load {
        self.load_of(daemon, seed, Crowd { writers: 0, ..Crowd::default() })
    }

    /// Starts those who are asked for, seeded.
    pub fn load_of(&self, daemon: &Daemon, seed: u64, crowd: Crowd) -> Load {
        let shared = Arc::new(Shared {
            stop: CancellationToken::new(),
            histories: self.histories.clone(),
            stage: self.stage.clone(),
            violations: Mutex::default(),
            own: Mutex::default(),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            failed_reads: AtomicU64::new(0),
            raw_reads: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
        });
        let mut numbers = 0..;
        let mut rng = || StdRng::seed_from_u64(seed * 1000 + numbers.next().unwrap_or_default());
        let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
        for _ in 0..crowd.writers {
            writers.spawn(writer::write(shared.clone(), crowd.pace, rng()));
        }
        for _ in 0..crowd.readers {
            readers.spawn(reader::read(shared.clone(), Http::new(daemon.http_address()), rng()));
        }
        for _ in 0..crowd.raw {
            readers.spawn(reader::read_raw(shared.clone(), rng()));
        }
        if let Some(pace) = crowd.evict {
            readers.spawn(reader::evict(shared.clone(), pace, rng()));
        }
        Load { shared, writers, readers }
    }
}

impl Load {
    /// How much was done until now.
    pub fn done(&self) -> Done {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let s = &self.shared;
        Done {
            writes: load(&s.writes),
            reads: load(&s.reads),
            failed_reads: load(&s.failed_reads),
            raw_reads: load(&s.raw_reads),
            wrong: load(&s.wrong),
        }
    }

    /// Waits until so many more transactions were acknowledged.
    pub async fn writes(&self, more: u64) {
        let goal = self.done().writes + more;
        eventually(&format!("write {more} transactions more"), || async { at_least(self.done().writes, goal) }).await;
    }

    /// Waits until so many more values were read over HTTP.
    pub async fn reads(&self, more: u64) {
        let goal = self.done().reads + more;
        eventually(&format!("answer {more} reads more"), || async { at_least(self.done().reads, goal) }).await;
    }

    /// Waits until something was found to be wrong.
    pub async fn violated(&self) {
        eventually("find a violation", || async { at_least(self.done().wrong, 1) }).await;
    }

    /// Stops the writers, then the readers; gives what was found to be wrong.
    pub async fn end(mut self) -> (Done, Vec<Violation>) {
        self.shared.stop.cancel();
        while let Some(ended) = self.writers.join_next().await {
            ended.expect("a writer");
        }
        while let Some(ended) = self.readers.join_next().await {
            ended.expect("a reader");
        }
        let violations = std::mem::take(&mut *self.shared.violations.lock());
        (self.done(), violations)
    }

    /// As [`Load::end`]; panics if anything was wrong.
    pub async fn stop(self) -> Done {
        let (done, violations) = self.end().await;
        assert_none(&violations);
        done
    }
}

/// Panics if there are any.
#[track_caller]
pub fn assert_none(violations: &[Violation]) {
    let shown: Vec<String> = violations.iter().take(5).map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{INCONSISTENT}{} violations, among them:\n{}", violations.len(), shown.join("\n"));
}

fn at_least(now: u64, goal: u64) -> Result<(), String> {
    if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
}
