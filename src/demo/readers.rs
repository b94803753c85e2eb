//! The clients that read over HTTP, and what they hold walcache to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::client::Http;
use super::error::DemoError;
use super::shop::{self, Table};
use super::writer::{Journal, LINES, Written};
use crate::lsn::Lsn;

/// Between two requests of one reader.
const PACE: Duration = Duration::from_millis(4);
/// Keys of a batch.
const BATCH: usize = 10;
/// Violations that are described; the others are only counted.
const DESCRIBED: usize = 10;

/// How a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Takes whatever comes.
    Plain,
    /// Passes `X-Read-LSN` back as `X-Min-LSN`: then it must never see an older state after a newer one.
    Session,
    /// As a session, several keys at a time.
    Batches,
}

/// What was checked, and what did not hold.
#[derive(Debug, Default)]
pub struct Checks {
    /// Reads that could have shown an older state than one seen before.
    pub order: AtomicU64,
    /// Reads of one's own writes.
    pub own_writes: AtomicU64,
    /// What did not hold.
    pub violations: Mutex<Violations>,
}

/// What did not hold.
#[derive(Debug, Default)]
pub struct Violations {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub described: Vec<String>,
}

impl Violations {
    /// Adds one.
    pub fn add(&mut self, what: String) {
        self.count += 1;
        if self.described.len() < DESCRIBED {
            self.described.push(what);
        }
    }
}

/// The last that a session saw of a row.
struct Seen {
    version: i64,
    /// It was gone after that.
    gone: bool,
}

/// The version in a row's JSON.
#[derive(Deserialize)]
struct Versioned {
    version: i64,
}

fn version(json: &[u8]) -> Option<i64> {
    serde_json::from_slice::<Versioned>(json).ok().map(|row| row.version)
}

/// One reader.
pub struct Reader {
    http: Http,
    manner: Manner,
    journal: Arc<Journal>,
    checks: Arc<Checks>,
    rng: StdRng,
    /// The highest `X-Read-LSN` so far.
    read: Option<Lsn>,
    seen: HashMap<(Table, String), Seen>,
}

impl Reader {
    /// A reader that has not read yet.
    pub fn new(http: Http, manner: Manner, journal: Arc<Journal>, checks: Arc<Checks>) -> Self {
        Reader { http, manner, journal, checks, rng: StdRng::from_os_rng(), read: None, seen: HashMap::new() }
    }

    /// Reads until stopped.
    ///
    /// # Errors
    /// If a request gets no response.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), DemoError> {
        let mut pace = interval(if self.manner == Manner::Batches { PACE * 10 } else { PACE });
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = pace.tick() => {}
            }
            match self.manner {
                Manner::Plain | Manner::Session => self.read_one().await?,
                Manner::Batches => self.read_batch().await?,
            }
        }
    }

    async fn read_one(&mut self) -> Result<(), DemoError> {
        let (table, key) = self.pick();
        let reply = self.http.row(table.entity(), &key, self.read).await?;
        let row = match reply.status {
            200 => version(&reply.body),
            404 => None,
            status => {
                self.refused(table, &key, status, &reply.body);
                return Ok(());
            }
        };
        if self.manner == Manner::Session {
            self.read = self.read.max(reply.read);
            self.observe(table, key, row);
        }
        Ok(())
    }

    async fn read_batch(&mut self) -> Result<(), DemoError> {
        let table = if self.rng.random_bool(0.7) { Table::Product } else { Table::Order };
        let keys: Vec<String> = (0..BATCH).map(|_| self.key(table)).collect();
        let (reply, items) = self.http.rows(table.entity(), &keys, self.read).await?;
        let Some(items) = items else {
            self.refused(table, "batch", reply.status, &reply.body);
            return Ok(());
        };
        self.read = self.read.max(reply.read);
        for (key, item) in keys.into_iter().zip(items) {
            match item.status {
                200 | 404 => self.observe(table, key, item.value.and_then(|value| version(value.get().as_bytes()))),
                status => self.refused(table, &key, status, b"in a batch"),
            }
        }
        Ok(())
    }

    fn pick(&mut self) -> (Table, String) {
        let table = match self.rng.random_range(0..100) {
            0..60 => Table::Product,
            60..70 => Table::Customer,
            70..85 => Table::Order,
            85..96 => Table::OrderItem,
            _ => Table::Promotion,
        };
        (table, self.key(table))
    }

    fn key(&mut self, table: Table) -> String {
        let newest = self.journal.newest_order.load(Ordering::Relaxed);
        let rng = &mut self.rng;
        match table {
            Table::Product => shop::skewed(rng, shop::PRODUCTS).to_string(),
            Table::Customer => shop::skewed(rng, shop::CUSTOMERS).to_string(),
            Table::Order => shop::order(rng, newest).to_string(),
            Table::OrderItem => format!("{},{}", shop::order(rng, newest), LINES[rng.random_range(0..LINES.len())]),
            Table::Promotion => shop::promotion(rng.random_range(1..=shop::PROMOTIONS)),
        }
    }

    /// Compares with what this session saw before. A row's versions grow, also from one life of it to the next.
    fn observe(&mut self, table: Table, key: String, row: Option<i64>) {
        self.checks.order.fetch_add(1, Ordering::Relaxed);
        let seen = self.seen.get_mut(&(table, key.clone()));
        match (seen, row) {
            (None, None) => {}
            (None, Some(version)) => drop(self.seen.insert((table, key), Seen { version, gone: false })),
            (Some(seen), None) => seen.gone = true,
            (Some(seen), Some(version)) => {
                if version < seen.version || (seen.gone && version == seen.version) {
                    let (entity, last, gone) =
                        (table.entity(), seen.version, if seen.gone { ", then none" } else { "" });
                    let what = format!("{entity} {key} went backwards: version {last}{gone}, then {version}");
                    self.checks.violations.lock().add(what);
                }
                *seen = Seen { version, gone: false };
            }
        }
    }

    fn refused(&self, table: Table, key: &str, status: u16, body: &[u8]) {
        let what = format!("{} {key} was answered {status}: {}", table.entity(), String::from_utf8_lossy(body));
        self.checks.violations.lock().add(what);
    }
}

/// Reads what was just written, with its LSN as `X-Min-LSN`, until nothing is written any more: it must be there.
///
/// # Errors
/// If a request gets no response.
pub async fn read_own_writes(
    http: Http,
    mut written: mpsc::Receiver<Written>,
    journal: Arc<Journal>,
    checks: Arc<Checks>,
) -> Result<(), DemoError> {
    while let Some(Written { table, key, version: wrote, lsn }) = written.recv().await {
        let reply = http.row(table.entity(), &key, Some(lsn)).await?;
        checks.own_writes.fetch_add(1, Ordering::Relaxed);
        let read = version(&reply.body);
        let held = match (wrote, reply.status) {
            (Some(wrote), 200) => read.is_some_and(|read| read >= wrote),
            (Some(_), 404) => journal.may_be_gone(table, &key),
            (None, 404) => true,
            _ => false,
        };
        if !held {
            let (entity, status) = (table.entity(), reply.status);
            let what = format!("{entity} {key}: version {wrote:?} was written, {read:?} was read (status {status})");
            checks.violations.lock().add(what);
        }
    }
    Ok(())
}
