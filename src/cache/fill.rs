//! Fills: values read from Postgres after a miss, and published to L2 only under a lease that still stands.
//!
//! Reads of one key share one flight; flights of one entity that come together share one query. A reader may join a
//! flight only if the flight reads Postgres after that reader looked at the watermark: else the shared answer could
//! be older than what the reader's answer says.
//!
//! How many keys are under way at a time is limited ([`super::permits`]). The rest wait in a queue, without a lease, so
//! that nobody waits for them in turn; and each reader only so long.

mod ahead;
mod batch;
mod behind;
mod lease;
mod publish;
mod queue;
mod renew;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::ahead::Ahead;
use self::batch::Batch;
use self::publish::texts;
use self::queue::{Flight, Landing, Queue};
use self::renew::Renewals;
use super::Hierarchy;
use super::answer::{Outcome, ReadError};
use super::rows::{MAX_RESULTS, Rows};
use crate::entity::{Entity, EntryKey};
use crate::lsn::Lsn;
use crate::metrics::{CacheMetrics, Fill};

/// Keys of one query.
const MAX_KEYS: usize = 256;

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
    renewals: Vec<Mutex<Renewals>>,
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
        let renewals = hierarchy.entities.iter().map(|_| Mutex::default()).collect();
        let max_running = rows.connections_each();
        let waiting = AtomicUsize::new(0);
        Arc::new(Filler { hierarchy, rows, queues, renewals, waiting, max_waiting, max_value, max_running, metrics })
    }

    /// Bytes of the largest value that is cached.
    pub fn max_value(&self) -> usize {
        self.max_value
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
                queue.waiting.len().min(most(&entity))
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

/// Keys that are read at a time, at most.
fn most(entity: &Entity) -> usize {
    if entity.query.is_some() { MAX_RESULTS } else { MAX_KEYS }
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
