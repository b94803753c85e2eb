//! Fills: values read from Postgres after a miss, and published to L2 only under a lease that still stands.
//!
//! Reads of one key share one flight; flights of one entity that come together share one query. A reader may join a
//! flight only if the flight reads Postgres after that reader looked at the watermark: else the shared answer could
//! be older than what the reader's answer says.
//!
//! How many keys are under way at a time is limited ([`super::permits`]). The rest wait in a queue, without a lease, so
//! that nobody waits for them in turn; and each reader only so long.

mod ahead;
mod behind;
mod queue;
mod renew;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub use self::ahead::Ahead;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::queue::{Flight, Landing, Queue};
use self::renew::Renewals;
use super::answer::{Outcome, ReadError};
use super::l1::{Cached, Charge};
use super::l2::{L2, Looked};
use super::permits::Permit;
use super::rows::{Found, MAX_RESULTS, Rows};
use super::{Hierarchy, etag};
use crate::entity::{Entity, EntryKey, Generation};
use crate::entry::{self, Due, Label, Stored};
use crate::failpoint::{self, Point};
use crate::lsn::Lsn;
use crate::metrics::{CacheMetrics, Fill};

/// Keys of one query.
const MAX_KEYS: usize = 256;
/// How often somebody else's fill is looked for.
const LEASE_POLL: Duration = Duration::from_millis(5);

/// Bytes of values that are compressed at once; more are left to a thread of their own.
const PACK_INLINE: usize = 64 << 10;

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
        let lease = format!("{{\"lease\":\"{:016x}\"}}", rand::random::<u64>());
        let floor = |flight: Arc<Flight>| {
            let floor = self.filler.hierarchy.voids.floor(&self.entity, flight.key.redis());
            (flight, floor)
        };
        let mut found = self.look(l2, cached.into_iter().map(floor).collect(), &lease).await;
        // What tags an entry bears is known only now. Below the floor of one it counts as absent, too.
        let voided = std::mem::take(&mut found.voided);
        let again = self.look(l2, voided, &lease).await;
        let mut uncached = direct;
        uncached.extend(found.uncached.into_iter().chain(again.uncached));
        uncached.extend(again.voided.into_iter().map(|(flight, _)| flight));
        let busy: Vec<_> = found.busy.into_iter().chain(again.busy).collect();
        // What L2 had after all is not read.
        permit.shrink(found.leased.len() + again.leased.len() + uncached.len() + busy.len());
        let lease = |lo| Some(Lease { l2, text: &lease, lo });
        let fill = self.read(&found.leased, Outcome::Miss, generation, lease(found.lo), &permit);
        let refill = self.read(&again.leased, Outcome::Miss, generation, lease(again.lo), &permit);
        let bypass = self.read(&uncached, Outcome::Bypass, generation, None, &permit);
        tokio::join!(fill, refill, bypass, self.wait_for_others(l2, busy, generation, &permit));
    }

    /// Looks flights up in L2, each with what its entry must have seen at least; lands those that are there, and takes
    /// leases for those that are not.
    async fn look(&self, l2: &L2, flights: Vec<(Arc<Flight>, Lsn)>, lease: &str) -> Looks {
        let mut looks = Looks::default();
        if flights.is_empty() {
            return looks;
        }
        let keys: Vec<&str> = flights.iter().map(|(flight, _)| flight.key.redis()).collect();
        let floors: Vec<Lsn> = flights.iter().map(|(_, floor)| *floor).collect();
        failpoint::reached(Point::BeforeLease);
        let over = Due::now().before(self.entity.lifetime.stale);
        let swept = self.filler.hierarchy.voids.swept(&self.entity);
        let (hw, looked) = match l2.lease(&keys, lease, self.generation, over, &floors).await {
            Ok((Some(hw), looked)) => (hw, looked),
            // L2 lost its fence, or is away: it is not asked to keep anything.
            Ok((None, _)) | Err(_) => {
                looks.uncached = flights.into_iter().map(|(flight, _)| flight).collect();
                return looks;
            }
        };
        looks.lo = hw;
        failpoint::reached(Point::Leased);
        for ((flight, _), looked) in flights.into_iter().zip(looked) {
            match looked {
                Looked::Leased => looks.leased.push(flight),
                Looked::Stored(text) => match entry::decode(text.clone(), self.filler.max_value) {
                    Stored::Entry(label, value) if self.servable(&flight, &label, &value, swept) => {
                        self.keep(&flight, value, label, Some(label.due), Outcome::HitL2).await;
                    }
                    Stored::Entry(label, value) => {
                        let (hierarchy, key) = (&self.filler.hierarchy, flight.key.redis());
                        match hierarchy.tag_floor(&self.entity, key, value.as_deref()) {
                            floor if label.lo < floor => looks.voided.push((flight, floor)),
                            _ => {
                                if label.due.since(Due::now()).is_some() {
                                    // Served as stale to others, and not to be replaced by a lease.
                                    self.filler.renew(&self.entity, &flight.key, label.due);
                                }
                                looks.uncached.push(flight);
                            }
                        }
                    }
                    Stored::Lease => looks.busy.push(flight),
                    Stored::Foreign => {
                        // A damaged value under a good head: the next reader may fill it.
                        let _ = l2.drop_same(flight.key.redis(), &text).await;
                        looks.uncached.push(flight);
                    }
                },
            }
        }
        looks
    }

    /// Whether a stored value may be served. A value of a transaction that was applied in pieces may be one that was
    /// never committed, until the watermark, read before the lookup, has passed all of its pieces.
    fn servable(&self, flight: &Flight, label: &Label, value: &Option<Bytes>, swept: Lsn) -> bool {
        // As of now, not of when the flight started: L2 may have lost writes meanwhile, and have been claimed anew.
        label.generation == self.entity.generation()
            && (!label.split || self.as_of >= label.lo)
            && label.due.since(Due::now()).is_none()
            && self.filler.hierarchy.stands(&self.entity, flight.key.redis(), label.lo, value.as_deref(), swept)
    }

    /// Somebody else fills these: waits for that, then reads through.
    async fn wait_for_others(&self, l2: &L2, mut busy: Vec<Arc<Flight>>, generation: Generation, permit: &Permit) {
        let deadline = Instant::now() + l2.config.lease_wait;
        while !busy.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LEASE_POLL).await;
            let keys: Vec<&str> = busy.iter().map(|f| f.key.redis()).collect();
            let swept = self.filler.hierarchy.voids.swept(&self.entity);
            let Ok(found) = l2.get(&keys).await else { break };
            let mut still = Vec::new();
            let mut voided = Vec::new();
            for (flight, stored) in busy.into_iter().zip(found) {
                match stored.map(|stored| entry::decode(stored, self.filler.max_value)) {
                    Some(Stored::Entry(label, value)) if self.servable(&flight, &label, &value, swept) => {
                        self.keep(&flight, value, label, Some(label.due), Outcome::HitL2).await;
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
        let mut rows = match self.filler.rows.read(&self.entity, &keys, permit, since).await {
            Ok(rows) => rows,
            Err(e) => {
                self.count(if e == ReadError::SeveralRows { Fill::Several } else { Fill::Error }, flights.len());
                for flight in flights {
                    self.land(flight, Err(e.clone()));
                }
                return;
            }
        };
        let answered = self.land_refused(flights, &mut rows, lease.as_ref()).await;
        let flights = answered.as_deref().unwrap_or(flights);
        // Labels of what is not published only bound L1.
        let lo = lease.as_ref().map_or(self.as_of, |lease| lease.lo);
        let label = Label { lo, hi: rows.hi, generation, split: false, due: Due::NEVER };
        let now = Due::now();
        let due = |value: &Option<Bytes>| self.entity.due(value.as_deref(), now);
        let dues: Vec<Option<Due>> = rows.values.iter().map(due).collect();
        match lease {
            Some(lease) => self.publish(flights, (&rows.values, &dues), &label, now, &lease).await,
            None => self.count(Fill::Uncached, flights.len()),
        }
        for ((flight, value), due) in flights.iter().zip(rows.values).zip(dues) {
            self.keep(flight, value, label, due, outcome).await;
        }
    }

    /// Lands those that have no value, and takes them out of what was found; gives the others, if there were any such.
    async fn land_refused(
        &self,
        flights: &[Arc<Flight>],
        rows: &mut Found,
        lease: Option<&Lease<'_>>,
    ) -> Option<Vec<Arc<Flight>>> {
        if rows.refused.is_empty() {
            return None;
        }
        let mut answered: Vec<Option<&Arc<Flight>>> = flights.iter().map(Some).collect();
        for (at, error) in std::mem::take(&mut rows.refused) {
            let Some(flight) = answered.get_mut(at).and_then(Option::take) else { continue };
            if let Some(lease) = lease {
                // So that others do not wait for it. If this fails, it expires.
                let _ = lease.l2.drop_same(flight.key.redis(), lease.text.as_bytes()).await;
            }
            self.count(if error == ReadError::SeveralRows { Fill::Several } else { Fill::Error }, 1);
            self.land(flight, Err(error));
        }
        let mut has_value = answered.iter().map(Option::is_some);
        rows.values.retain(|_| has_value.next().unwrap_or(false));
        Some(answered.into_iter().flatten().cloned().collect())
    }

    async fn publish(
        &self,
        flights: &[Arc<Flight>],
        (values, dues): (&[Option<Bytes>], &[Option<Due>]),
        label: &Label,
        now: Due,
        lease: &Lease<'_>,
    ) {
        failpoint::reached(Point::BeforePublish);
        let mut small = Vec::with_capacity(flights.len());
        for ((flight, value), due) in flights.iter().zip(values).zip(dues) {
            match due.filter(|_| self.fits(value)) {
                Some(due) => small.push((flight, value, due)),
                None => {
                    // So that others do not wait for it. If this fails, it expires.
                    let _ = lease.l2.drop_same(flight.key.redis(), lease.text.as_bytes()).await;
                    self.count(if due.is_some() { Fill::Large } else { Fill::Uncached }, 1);
                }
            }
        }
        if small.is_empty() {
            return;
        }
        let entries = small.iter().map(|(_, value, due)| (Label { due: *due, ..*label }, (*value).clone())).collect();
        let texts = texts(&self.entity, entries).await;
        let texts: Vec<(&str, Vec<u8>)> =
            small.iter().zip(texts).map(|((flight, ..), text)| (flight.key.redis(), text)).collect();
        let base = now.before(self.entity.lifetime.stale);
        match lease.l2.publish(&texts, lease.text, label.hi, base).await {
            Ok(published) => {
                failpoint::reached(Point::AfterPublish);
                for (published, (_, value, _)) in published.iter().zip(&small) {
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

    /// Keeps a value in L1, unless it is over, and hands it to whoever waits.
    async fn keep(&self, flight: &Arc<Flight>, value: Option<Bytes>, label: Label, due: Option<Due>, outcome: Outcome) {
        let etag = etag(value.as_deref());
        let basis = (self.generation, self.as_of);
        if let Some(due) = due.filter(|_| self.fits(&value)) {
            self.filler.hierarchy.keep(&self.entity, &flight.key, value.clone(), etag, basis, (label.hi, due)).await;
        }
        self.land(flight, Ok(Fetched { value, etag, outcome, as_of: self.as_of, hi: label.hi }));
    }

    fn land(&self, flight: &Arc<Flight>, result: Result<Fetched, ReadError>) {
        self.filler.queues[self.entity.id].lock().forget(flight);
        flight.landing.send_replace(Some(result));
    }
}

/// What became of flights that were looked up in L2 and are not landed.
#[derive(Default)]
struct Looks {
    /// Our lease stands there, given at this high-water mark.
    leased: Vec<Arc<Flight>>,
    lo: Lsn,
    /// Somebody else's does.
    busy: Vec<Arc<Flight>>,
    /// L2 is not to keep them.
    uncached: Vec<Arc<Flight>>,
    /// An entry stands there that a tag has voided, and what it must have seen.
    voided: Vec<(Arc<Flight>, Lsn)>,
}

/// The right to publish a batch's fills.
struct Lease<'a> {
    l2: &'a L2,
    text: &'a str,
    /// The high-water mark when it was given.
    lo: Lsn,
}

/// Entries' texts as they are stored in L2; none if they could not be made.
async fn texts(entity: &Entity, entries: Vec<(Label, Option<Bytes>)>) -> Vec<Vec<u8>> {
    let Some(above) = entity.compress_above else {
        return entries.iter().map(|(label, value)| entry::encode(label, value.as_deref())).collect();
    };
    let size: usize = entries.iter().flat_map(|(_, value)| value).map(Bytes::len).sum();
    let pack = move || {
        let text = |(label, value): &(Label, Option<Bytes>)| {
            let text = entry::encode(label, value.as_deref());
            entry::packed::pack_text(&text, above).unwrap_or(text)
        };
        entries.iter().map(text).collect()
    };
    // Much of it takes milliseconds: not on a thread that serves readers, too.
    if size < PACK_INLINE { pack() } else { tokio::task::spawn_blocking(pack).await.unwrap_or_default() }
}

impl Hierarchy {
    /// Puts a value into L1 that was fetched after the generation and then the watermark were taken. Whatever its due time
    /// is by another clock, it lives no longer there than a new entry would.
    pub async fn keep(
        &self,
        entity: &Entity,
        key: &EntryKey,
        value: Option<Bytes>,
        etag: u64,
        (generation, as_of): (Generation, Lsn),
        (hi, due): (Lsn, Due),
    ) {
        let Some(l1) = self.l1.as_ref().filter(|_| entity.is_servable()) else { return };
        let tags = entity.cells(key.redis(), value.as_deref());
        let longest = entity.longest(value.as_deref());
        let life = due.from(Due::now()).map_or(longest, |life| life.min(longest));
        if life.is_zero() {
            return;
        }
        let expires = Instant::now() + life;
        let cached = Cached {
            key: key.redis().into(),
            value,
            etag,
            as_of,
            hi,
            generation,
            due,
            expires,
            over: expires + entity.lifetime.stale,
            tags,
            checked: AtomicU64::new(0),
            charge: Charge::default(),
        };
        l1.insert(entity.id, key.hash, cached);
    }
}
