//! Batches: flights of one entity that are flown together.

use std::sync::Arc;

use bytes::Bytes;

use super::lease::Lease;
use super::queue::Flight;
use super::{Fetched, Filler};
use crate::cache::answer::{Outcome, ReadError};
use crate::cache::etag;
use crate::cache::permits::Permit;
use crate::cache::rows::Found;
use crate::entity::{Entity, EntryKey, Generation};
use crate::entry::{Due, Label};
use crate::lsn::Lsn;
use crate::metrics::Fill;

/// Flights that are flown together.
pub(super) struct Batch {
    pub(super) filler: Arc<Filler>,
    pub(super) entity: Arc<Entity>,
    pub(super) generation: Generation,
    pub(super) as_of: Lsn,
    pub(super) flights: Vec<Arc<Flight>>,
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
    pub(super) async fn fly(self, mut permit: Permit) {
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

    /// Reads flights' rows from Postgres, publishes them if they hold a lease, and lands them.
    pub(super) async fn read(
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

    /// Whether a value may be cached. Copies of a huge one, on their way into the tiers, would cost more than they save.
    pub(super) fn fits(&self, value: &Option<Bytes>) -> bool {
        value.as_ref().is_none_or(|value| value.len() <= self.filler.max_value)
    }

    pub(super) fn count(&self, result: Fill, flights: usize) {
        self.filler.metrics[self.entity.id].fill(result, flights as u64);
    }

    /// Keeps a value in L1, unless it is over, and hands it to whoever waits.
    pub(super) async fn keep(
        &self,
        flight: &Arc<Flight>,
        value: Option<Bytes>,
        label: Label,
        due: Option<Due>,
        outcome: Outcome,
    ) {
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
