//! Fills: values read from Postgres after a miss, and published to L2 only under a lease that still stands.
//!
//! Reads of one key share one flight; flights of one entity that come together share one query. A reader may join a
//! flight only if the flight reads Postgres after that reader looked at the watermark: else the shared answer could
//! be older than what the reader's answer says.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::answer::{Outcome, ReadError};
use super::l1::Cached;
use super::l2::Looked;
use super::rows::Rows;
use super::{Hierarchy, etag};
use crate::entity::{Entity, EntryKey, Generation};
use crate::entry::{self, Label, Stored};
use crate::lsn::Lsn;
use crate::metrics::{CacheMetrics, Fill};

/// Queries of one entity that run at a time; more keys wait and go together.
const MAX_RUNNING: usize = 4;
/// Keys of one query.
const MAX_KEYS: usize = 256;
/// How often somebody else's fill is looked for.
const LEASE_POLL: Duration = Duration::from_millis(5);

/// A value brought from L2 or Postgres.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The value's JSON; `None` if the row is absent.
    pub value: Option<Bytes>,
    /// Hash of the value.
    pub etag: u64,
    /// Where it came from.
    pub outcome: Outcome,
    /// The watermark before it was fetched.
    pub as_of: Lsn,
    /// Nothing committed after here is in it.
    pub hi: Lsn,
}

type Landing = Option<Result<Fetched, ReadError>>;

/// One key on its way, and those who wait for it.
struct Flight {
    key: EntryKey,
    /// Reads Postgres without asking L2.
    direct: bool,
    /// The watermark when it started; [`WAITING`] before.
    as_of: AtomicU64,
    landing: watch::Sender<Landing>,
}

/// A flight that has not started reads after anybody who joins it now.
const WAITING: u64 = u64::MAX;

#[derive(Default)]
struct Queue {
    flights: HashMap<(Box<str>, bool), Arc<Flight>>,
    waiting: VecDeque<Arc<Flight>>,
    running: usize,
}

impl Queue {
    /// Drops what nobody waits for any more. Receivers are made under the queue's lock: none can be added meanwhile.
    fn forget_abandoned(&mut self) {
        let flights = &mut self.flights;
        self.waiting.retain(|flight| {
            let wanted = flight.landing.receiver_count() > 0;
            if !wanted {
                let name = (flight.key.redis().into(), flight.direct);
                if flights.get(&name).is_some_and(|known| Arc::ptr_eq(known, flight)) {
                    flights.remove(&name);
                }
            }
            wanted
        });
    }
}

/// Brings values that L1 does not have.
pub struct Filler {
    hierarchy: Arc<Hierarchy>,
    rows: Rows,
    queues: Vec<Mutex<Queue>>,
    waiting: AtomicUsize,
    max_waiting: usize,
    metrics: Arc<Vec<CacheMetrics>>,
}

impl Filler {
    /// For the hierarchy's entities; at most `max_waiting` reads wait at a time.
    pub fn new(
        hierarchy: Arc<Hierarchy>,
        rows: Rows,
        max_waiting: usize,
        metrics: Arc<Vec<CacheMetrics>>,
    ) -> Arc<Self> {
        let queues = hierarchy.entities.iter().map(|_| Mutex::default()).collect();
        Arc::new(Filler { hierarchy, rows, queues, waiting: AtomicUsize::new(0), max_waiting, metrics })
    }

    /// Brings one value, which contains everything committed up to `at_least`. With `direct`, L2 is not asked.
    ///
    /// # Errors
    /// If Postgres was needed and did not answer, or too many wait already.
    pub async fn fetch(
        self: &Arc<Self>,
        entity: &Arc<Entity>,
        key: EntryKey,
        direct: bool,
        at_least: Lsn,
    ) -> Result<Fetched, ReadError> {
        let _place = Place::take(&self.waiting, self.max_waiting)?;
        let mut landing = self.join(entity, key, direct, at_least);
        match landing.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            // The task that flew it was torn down with the runtime.
            _ => Err(ReadError::SourceUnavailable),
        }
    }

    fn join(
        self: &Arc<Self>,
        entity: &Arc<Entity>,
        key: EntryKey,
        direct: bool,
        at_least: Lsn,
    ) -> watch::Receiver<Landing> {
        let mut queue = self.queues[entity.id].lock();
        let name: (Box<str>, bool) = (key.redis().into(), direct);
        if let Some(flight) = queue.flights.get(&name)
            && flight.as_of.load(Ordering::Acquire) >= at_least.as_u64()
        {
            return flight.landing.subscribe();
        }
        if queue.waiting.len() >= 2 * self.max_waiting {
            // Readers that went away leave their flights behind. Less than half of these are still waited for.
            queue.forget_abandoned();
        }
        let (landing, receiver) = watch::channel(None);
        let flight = Arc::new(Flight { key, direct, as_of: AtomicU64::new(WAITING), landing });
        queue.flights.insert(name, flight.clone());
        queue.waiting.push_back(flight);
        if queue.running < MAX_RUNNING {
            queue.running += 1;
            tokio::spawn(self.clone().run(entity.clone()));
        }
        receiver
    }

    /// Takes what waits, as many keys at a time as one query holds, until nothing waits.
    async fn run(self: Arc<Self>, entity: Arc<Entity>) {
        loop {
            let batch = {
                let mut queue = self.queues[entity.id].lock();
                queue.forget_abandoned();
                let count = queue.waiting.len().min(MAX_KEYS);
                if count == 0 {
                    queue.running -= 1;
                    return;
                }
                let as_of = self.hierarchy.watermark.load();
                let batch: Vec<Arc<Flight>> = queue.waiting.drain(..count).collect();
                for flight in &batch {
                    flight.as_of.store(as_of.as_u64(), Ordering::Release);
                }
                Batch { filler: self.clone(), entity: entity.clone(), as_of, flights: batch }
            };
            // In a task of its own: a panic there ends the batch, which lands its flights, and not this loop.
            let _ = tokio::spawn(batch.fly()).await;
        }
    }
}

/// A place among those who wait; given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, max: usize) -> Result<Self, ReadError> {
        let place = Place(waiting);
        if waiting.fetch_add(1, Ordering::AcqRel) < max { Ok(place) } else { Err(ReadError::Overloaded) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Flights that are flown together.
struct Batch {
    filler: Arc<Filler>,
    entity: Arc<Entity>,
    as_of: Lsn,
    flights: Vec<Arc<Flight>>,
}

impl Drop for Batch {
    /// Whatever has not landed by now never will: its waiters are told, and the next reader starts anew.
    fn drop(&mut self) {
        for flight in &self.flights {
            if flight.landing.borrow().is_none() {
                self.land(flight, Err(ReadError::SourceUnavailable));
            }
        }
    }
}

impl Batch {
    async fn fly(self) {
        let (direct, cached): (Vec<_>, Vec<_>) = self.flights.iter().cloned().partition(|f| f.direct);
        // Before the shape, which the query is made from.
        let generation = self.entity.generation();
        let mut uncached = direct;
        let mut leased = Vec::new();
        let mut busy = Vec::new();
        let mut lo = Lsn::ZERO;
        let lease = format!("{{\"lease\":\"{:016x}\"}}", rand::random::<u64>());
        if !cached.is_empty() {
            let keys: Vec<&str> = cached.iter().map(|f| f.key.redis()).collect();
            match self.filler.hierarchy.l2.lease(&keys, &lease, generation).await {
                Ok((Some(hw), looked)) => {
                    lo = hw;
                    for (flight, looked) in cached.iter().zip(looked) {
                        match looked {
                            Looked::Leased => leased.push(flight.clone()),
                            Looked::Stored(text) => match entry::decode(text) {
                                Stored::Entry(label, value) if self.servable(&label, generation) => {
                                    self.keep(flight, value, label, Outcome::HitL2).await;
                                }
                                Stored::Lease => busy.push(flight.clone()),
                                _ => uncached.push(flight.clone()),
                            },
                        }
                    }
                }
                // L2 lost its fence, or is away: it is not asked to keep anything.
                Ok((None, _)) | Err(_) => uncached.extend(cached),
            }
        }
        let fill = async {
            self.read(&leased, Outcome::Miss, generation, Some(Lease { text: &lease, lo })).await;
        };
        let bypass = self.read(&uncached, Outcome::Bypass, generation, None);
        tokio::join!(fill, bypass, self.wait_for_others(busy, generation));
    }

    /// Whether a stored value may be served. A value of a transaction that was applied in pieces may be one that was
    /// never committed, until the watermark, read before the lookup, has passed all of its pieces.
    fn servable(&self, label: &Label, generation: Generation) -> bool {
        label.generation >= generation && (!label.split || self.as_of >= label.lo)
    }

    /// Somebody else fills these: waits for that, then reads through.
    async fn wait_for_others(&self, mut busy: Vec<Arc<Flight>>, generation: Generation) {
        let deadline = Instant::now() + self.filler.hierarchy.l2.config.lease_wait;
        while !busy.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LEASE_POLL).await;
            let keys: Vec<&str> = busy.iter().map(|f| f.key.redis()).collect();
            let Ok(found) = self.filler.hierarchy.l2.get(&keys).await else { break };
            let mut still = Vec::new();
            let mut voided = Vec::new();
            for (flight, stored) in busy.into_iter().zip(found) {
                match stored.map(entry::decode) {
                    Some(Stored::Entry(label, value)) if self.servable(&label, generation) => {
                        self.keep(&flight, value, label, Outcome::HitL2).await;
                    }
                    Some(Stored::Lease) => still.push(flight),
                    _ => voided.push(flight),
                }
            }
            self.read(&voided, Outcome::Bypass, generation, None).await;
            busy = still;
        }
        self.read(&busy, Outcome::Bypass, generation, None).await;
    }

    /// Reads flights' rows from Postgres, publishes them if they hold a lease, and lands them.
    async fn read(&self, flights: &[Arc<Flight>], outcome: Outcome, generation: Generation, lease: Option<Lease<'_>>) {
        if flights.is_empty() {
            return;
        }
        let keys: Vec<&EntryKey> = flights.iter().map(|f| &f.key).collect();
        let rows = match self.filler.rows.read(&self.entity, &keys).await {
            Ok(rows) => rows,
            Err(e) => {
                self.count(Fill::Error, flights.len());
                for flight in flights {
                    self.land(flight, Err(e.clone()));
                }
                return;
            }
        };
        let label = match &lease {
            Some(lease) => Label { lo: lease.lo, hi: rows.hi, generation, split: false },
            // Labels of what is not published only bound L1.
            None => Label { lo: self.as_of, hi: rows.hi, generation, split: false },
        };
        match lease {
            Some(lease) => self.publish(flights, &rows.values, &label, lease.text).await,
            None => self.count(Fill::Uncached, flights.len()),
        }
        for (flight, value) in flights.iter().zip(rows.values) {
            self.keep(flight, value, label, outcome).await;
        }
    }

    async fn publish(&self, flights: &[Arc<Flight>], values: &[Option<Bytes>], label: &Label, lease: &str) {
        let texts: Vec<(&str, Vec<u8>)> =
            flights.iter().zip(values).map(|(f, v)| (f.key.redis(), entry::encode(label, v.as_deref()))).collect();
        match self.filler.hierarchy.l2.publish(&texts, lease, label.hi, self.entity.ttl).await {
            Ok(published) => {
                for (published, value) in published.iter().zip(values) {
                    self.count(
                        match (published, value) {
                            (true, Some(_)) => Fill::Published,
                            (true, None) => Fill::Absent,
                            (false, _) => Fill::Voided,
                        },
                        1,
                    );
                }
            }
            // The leases expire; until then readers read through.
            Err(_) => self.count(Fill::Uncached, flights.len()),
        }
    }

    fn count(&self, result: Fill, flights: usize) {
        self.filler.metrics[self.entity.id].fill(result, flights as u64);
    }

    /// Keeps a value in L1 and hands it to whoever waits.
    async fn keep(&self, flight: &Arc<Flight>, value: Option<Bytes>, label: Label, outcome: Outcome) {
        let etag = etag(value.as_deref());
        self.filler.hierarchy.keep(&self.entity, &flight.key, value.clone(), etag, self.as_of, &label).await;
        self.land(flight, Ok(Fetched { value, etag, outcome, as_of: self.as_of, hi: label.hi }));
    }

    fn land(&self, flight: &Arc<Flight>, result: Result<Fetched, ReadError>) {
        let mut queue = self.filler.queues[self.entity.id].lock();
        let name = (flight.key.redis().into(), flight.direct);
        if queue.flights.get(&name).is_some_and(|known| Arc::ptr_eq(known, flight)) {
            queue.flights.remove(&name);
        }
        drop(queue);
        flight.landing.send_replace(Some(result));
    }
}

/// The right to publish a batch's fills.
struct Lease<'a> {
    text: &'a str,
    /// The high-water mark when it was given.
    lo: Lsn,
}

impl Hierarchy {
    /// Puts a value that was fetched when the watermark stood at `as_of` into L1.
    pub async fn keep(
        &self,
        entity: &Entity,
        key: &EntryKey,
        value: Option<Bytes>,
        etag: u64,
        as_of: Lsn,
        label: &Label,
    ) {
        let Some(l1) = self.l1.as_ref().filter(|_| entity.is_servable()) else { return };
        let cached = Cached {
            key: key.redis().into(),
            value,
            etag,
            as_of,
            hi: label.hi,
            generation: label.generation,
            expires: Instant::now() + entity.ttl,
        };
        l1.insert(key.hash, cached).await;
    }
}
