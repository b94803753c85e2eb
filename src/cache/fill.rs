//! Fills: values read from Postgres after a miss, and published to L2 only under a lease that still stands.
//!
//! Reads of one key share one flight; flights of one entity that come together share one query. A reader may join a
//! flight only if the flight reads Postgres after that reader looked at the watermark: else the shared answer could
//! be older than what the reader's answer says.
//!
//! How many keys are under way at a time is limited ([`super::permits`]). The rest wait in a queue, without a lease, so
//! that nobody waits for them in turn; and each reader only so long.

mod behind;
mod queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::queue::{Flight, Landing, Queue};
use super::answer::{Outcome, ReadError};
use super::l1::Cached;
use super::l2::{L2, Looked};
use super::permits::Permit;
use super::rows::Rows;
use super::{Hierarchy, etag};
use crate::entity::{Entity, EntryKey, Generation};
use crate::entry::{self, Label, Stored};
use crate::failpoint::{self, Point};
use crate::lsn::Lsn;
use crate::metrics::{CacheMetrics, Fill};

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

/// Brings values that L1 does not have.
pub struct Filler {
    hierarchy: Arc<Hierarchy>,
    rows: Rows,
    queues: Vec<Mutex<Queue>>,
    waiting: AtomicUsize,
    max_waiting: usize,
    /// Bytes of the largest value that is cached.
    max_value: usize,
    /// Batches of one entity at a time: more would only wait for each other's connections.
    max_running: usize,
    metrics: Arc<Vec<CacheMetrics>>,
}

impl Filler {
    /// For the hierarchy's entities; at most `max_waiting` reads wait at a time, and no value of more than `max_value`
    /// bytes is cached.
    pub fn new(
        hierarchy: Arc<Hierarchy>,
        rows: Rows,
        max_waiting: usize,
        max_value: usize,
        metrics: Arc<Vec<CacheMetrics>>,
    ) -> Arc<Self> {
        let queues = hierarchy.entities.iter().map(|_| Mutex::default()).collect();
        let max_running = rows.connections_each();
        let waiting = AtomicUsize::new(0);
        Arc::new(Filler { hierarchy, rows, queues, waiting, max_waiting, max_value, max_running, metrics })
    }

    /// Brings one value, which contains everything committed up to `at_least`. With `direct`, L2 is not asked.
    ///
    /// # Errors
    /// If Postgres was needed and did not answer in time, or too many wait.
    pub async fn fetch(
        self: &Arc<Self>,
        entity: &Arc<Entity>,
        key: EntryKey,
        direct: bool,
        at_least: Lsn,
    ) -> Result<Fetched, ReadError> {
        let patience = self.rows.timeout();
        let result = match Place::take(self) {
            None => Err(ReadError::Overloaded),
            Some(_place) => {
                let (flight, mut landing) = self.join(entity, key, direct, at_least);
                match tokio::time::timeout(patience, landing.wait_for(Option::is_some)).await {
                    Ok(Ok(landed)) => landed.clone().unwrap_or(Err(ReadError::SourceUnavailable)),
                    // The task that flew it was torn down with the runtime.
                    Ok(Err(_)) => Err(ReadError::SourceUnavailable),
                    Err(_) if !flight.has_started() => Err(ReadError::Overloaded),
                    Err(_) => Err(ReadError::SourceTimeout(patience)),
                }
            }
        };
        if matches!(result, Err(ReadError::Overloaded)) {
            self.metrics[entity.id].fill(Fill::Refused, 1);
        }
        result
    }

    fn join(
        self: &Arc<Self>,
        entity: &Arc<Entity>,
        key: EntryKey,
        direct: bool,
        at_least: Lsn,
    ) -> (Arc<Flight>, watch::Receiver<Landing>) {
        let mut queue = self.queues[entity.id].lock();
        let name: (Box<str>, bool) = (key.redis().into(), direct);
        if let Some(flight) = queue.flights.get(&name)
            && flight.may_be_joined(entity.generation(), at_least)
        {
            return (flight.clone(), flight.landing.subscribe());
        }
        if queue.waiting.len() >= 2 * self.max_waiting {
            // Readers that went away leave their flights behind. Less than half of these are still waited for.
            queue.forget_abandoned();
        }
        let (landing, receiver) = watch::channel(None);
        let flight = Arc::new(Flight::new(key, direct, landing));
        queue.flights.insert(name, flight.clone());
        queue.waiting.push_back(flight.clone());
        if queue.running < self.max_running {
            queue.running += 1;
            tokio::spawn(self.clone().run(entity.clone()));
        }
        (flight, receiver)
    }

    /// Takes what waits, as many keys at a time as one query holds, until nothing waits.
    async fn run(self: Arc<Self>, entity: Arc<Entity>) {
        loop {
            // Flights wait in the queue for their permits: there they can still be joined, or abandoned.
            let wanted = {
                let mut queue = self.queues[entity.id].lock();
                if queue.waiting.is_empty() {
                    queue.running -= 1;
                    return;
                }
                queue.waiting.len().min(MAX_KEYS)
            };
            let mut permit = self.rows.permits().take(entity.id, wanted).await;
            let batch = {
                let mut queue = self.queues[entity.id].lock();
                let flights = queue.take(permit.keys());
                if flights.is_empty() {
                    queue.running -= 1;
                    return;
                }
                // The generation first: see `Hierarchy::restart`. And before the shape, which the query is made from.
                let generation = entity.generation();
                let as_of = self.hierarchy.watermark.load();
                for flight in &flights {
                    flight.start(generation, as_of);
                }
                Batch { filler: self.clone(), entity: entity.clone(), generation, as_of, flights }
            };
            permit.shrink(batch.flights.len());
            // In a task of its own: a panic there ends the batch, which lands its flights, and not this loop.
            let _ = tokio::spawn(batch.fly(permit)).await;
        }
    }
}

/// A place among those who wait; given back when dropped.
struct Place<'a>(&'a Filler);

impl<'a> Place<'a> {
    fn take(filler: &'a Filler) -> Option<Self> {
        let place = Place(filler);
        filler.rows.permits().metrics.waiting.increment(1.0);
        (filler.waiting.fetch_add(1, Ordering::AcqRel) < filler.max_waiting).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        self.0.rows.permits().metrics.waiting.decrement(1.0);
    }
}

/// Flights that are flown together.
struct Batch {
    filler: Arc<Filler>,
    entity: Arc<Entity>,
    generation: Generation,
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
    async fn fly(self, mut permit: Permit) {
        // After the generation: whoever takes the entity out of the tiers raises it then.
        let (direct, cached): (Vec<_>, Vec<_>) =
            self.flights.iter().cloned().partition(|f| f.direct || !self.entity.is_servable());
        let generation = self.generation;
        let Some(l2) = &self.filler.hierarchy.l2 else {
            let miss = self.read(&cached, Outcome::Miss, generation, None, &permit);
            let bypass = self.read(&direct, Outcome::Bypass, generation, None, &permit);
            tokio::join!(miss, bypass);
            return;
        };
        let mut uncached = direct;
        let mut leased = Vec::new();
        let mut busy = Vec::new();
        let mut lo = Lsn::ZERO;
        let lease = format!("{{\"lease\":\"{:016x}\"}}", rand::random::<u64>());
        if !cached.is_empty() {
            let keys: Vec<&str> = cached.iter().map(|f| f.key.redis()).collect();
            failpoint::reached(Point::BeforeLease);
            match l2.lease(&keys, &lease, generation).await {
                Ok((Some(hw), looked)) => {
                    lo = hw;
                    failpoint::reached(Point::Leased);
                    for (flight, looked) in cached.iter().zip(looked) {
                        match looked {
                            Looked::Leased => leased.push(flight.clone()),
                            Looked::Stored(text) => match entry::decode(text) {
                                Stored::Entry(label, value) if self.servable(&label) => {
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
        // What L2 had after all is not read.
        permit.shrink(leased.len() + uncached.len() + busy.len());
        let lease = Lease { l2, text: &lease, lo };
        let fill = self.read(&leased, Outcome::Miss, generation, Some(lease), &permit);
        let bypass = self.read(&uncached, Outcome::Bypass, generation, None, &permit);
        tokio::join!(fill, bypass, self.wait_for_others(l2, busy, generation, &permit));
    }

    /// Whether a stored value may be served. A value of a transaction that was applied in pieces may be one that was
    /// never committed, until the watermark, read before the lookup, has passed all of its pieces.
    fn servable(&self, label: &Label) -> bool {
        // As of now, not of when the flight started: L2 may have lost writes meanwhile, and have been claimed anew.
        label.generation == self.entity.generation() && (!label.split || self.as_of >= label.lo)
    }

    /// Somebody else fills these: waits for that, then reads through.
    async fn wait_for_others(&self, l2: &L2, mut busy: Vec<Arc<Flight>>, generation: Generation, permit: &Permit) {
        let deadline = Instant::now() + l2.config.lease_wait;
        while !busy.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LEASE_POLL).await;
            let keys: Vec<&str> = busy.iter().map(|f| f.key.redis()).collect();
            let Ok(found) = l2.get(&keys).await else { break };
            let mut still = Vec::new();
            let mut voided = Vec::new();
            for (flight, stored) in busy.into_iter().zip(found) {
                match stored.map(entry::decode) {
                    Some(Stored::Entry(label, value)) if self.servable(&label) => {
                        self.keep(&flight, value, label, Outcome::HitL2).await;
                    }
                    Some(Stored::Lease) => still.push(flight),
                    _ => voided.push(flight),
                }
            }
            self.read(&voided, Outcome::Bypass, generation, None, permit).await;
            busy = still;
        }
        self.read(&busy, Outcome::Bypass, generation, None, permit).await;
    }

    /// Reads flights' rows from Postgres, publishes them if they hold a lease, and lands them.
    async fn read(
        &self,
        flights: &[Arc<Flight>],
        outcome: Outcome,
        generation: Generation,
        lease: Option<Lease<'_>>,
        permit: &Permit,
    ) {
        if flights.is_empty() {
            return;
        }
        let keys: Vec<&EntryKey> = flights.iter().map(|f| &f.key).collect();
        let since = self.filler.hierarchy.watermark.restarted();
        let rows = match self.filler.rows.read(&self.entity, &keys, permit, since).await {
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
            Some(lease) => self.publish(flights, &rows.values, &label, &lease).await,
            None => self.count(Fill::Uncached, flights.len()),
        }
        for (flight, value) in flights.iter().zip(rows.values) {
            self.keep(flight, value, label, outcome).await;
        }
    }

    async fn publish(&self, flights: &[Arc<Flight>], values: &[Option<Bytes>], label: &Label, lease: &Lease<'_>) {
        failpoint::reached(Point::BeforePublish);
        let (small, large): (Vec<_>, Vec<_>) = flights.iter().zip(values).partition(|(_, value)| self.fits(value));
        for (flight, _) in &large {
            // So that others do not wait for it. If this fails, it expires.
            let _ = lease.l2.drop_same(flight.key.redis(), lease.text.as_bytes()).await;
        }
        if !large.is_empty() {
            self.count(Fill::Large, large.len());
        }
        if small.is_empty() {
            return;
        }
        let texts: Vec<(&str, Vec<u8>)> =
            small.iter().map(|(f, v)| (f.key.redis(), entry::encode(label, v.as_deref()))).collect();
        match lease.l2.publish(&texts, lease.text, label.hi, self.entity.ttl).await {
            Ok(published) => {
                failpoint::reached(Point::AfterPublish);
                for (published, (_, value)) in published.iter().zip(&small) {
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
            Err(_) => self.count(Fill::Uncached, small.len()),
        }
    }

    /// Whether a value may be cached. Copies of a huge one, on their way into the tiers, would cost more than they save.
    fn fits(&self, value: &Option<Bytes>) -> bool {
        value.as_ref().is_none_or(|value| value.len() <= self.filler.max_value)
    }

    fn count(&self, result: Fill, flights: usize) {
        self.filler.metrics[self.entity.id].fill(result, flights as u64);
    }

    /// Keeps a value in L1 and hands it to whoever waits.
    async fn keep(&self, flight: &Arc<Flight>, value: Option<Bytes>, label: Label, outcome: Outcome) {
        let etag = etag(value.as_deref());
        let basis = (self.generation, self.as_of);
        if self.fits(&value) {
            self.filler.hierarchy.keep(&self.entity, &flight.key, value.clone(), etag, basis, label.hi).await;
        }
        self.land(flight, Ok(Fetched { value, etag, outcome, as_of: self.as_of, hi: label.hi }));
    }

    fn land(&self, flight: &Arc<Flight>, result: Result<Fetched, ReadError>) {
        self.filler.queues[self.entity.id].lock().forget(flight);
        flight.landing.send_replace(Some(result));
    }
}

/// The right to publish a batch's fills.
struct Lease<'a> {
    l2: &'a L2,
    text: &'a str,
    /// The high-water mark when it was given.
    lo: Lsn,
}

impl Hierarchy {
    /// Puts a value into L1 that was fetched after the generation and then the watermark were taken.
    pub async fn keep(
        &self,
        entity: &Entity,
        key: &EntryKey,
        value: Option<Bytes>,
        etag: u64,
        (generation, as_of): (Generation, Lsn),
        hi: Lsn,
    ) {
        let Some(l1) = self.l1.as_ref().filter(|_| entity.is_servable()) else { return };
        let cached = Cached {
            key: key.redis().into(),
            value,
            etag,
            as_of,
            hi,
            generation,
            expires: Instant::now() + entity.ttl,
        };
        l1.insert(entity.id, key.hash, cached);
    }
}
